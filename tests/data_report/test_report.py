"""The doctor finds what is planted, and nothing where nothing is."""

import collections
import contextlib
import io
import json
import pathlib
import shlex
import sys
from typing import NamedTuple

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from retinanet_jax import input_pipeline
from retinanet_jax.configs import r50_fpn
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data_report import fit, sheets, views
from retinanet_jax.data_report import report as inspect
from retinanet_jax.data_report.findings import Finding
from retinanet_jax.modeling import network_input

CATEGORIES = {"cat": 3, "dog": 7, "ant": 8, "snake": 9, "newt": 11, "unicorn": 40}


class Folder:
    """Pictures and their COCO JSON, written box by box."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        (path / "images").mkdir(parents=True)
        self.images, self.annotations = [], []

    def image(self, height=96, width=128) -> int:
        """Draws one that no other is like; returns its id."""
        number = len(self.images) + 1
        seed = [number, len(str(self.path))]
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(self.path / "images" / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        self.images.append(image)
        return number

    def box(self, image_id, bbox, name="cat", **more) -> int:
        """Returns the annotation's id."""
        number = len(self.annotations) + 101
        one = {"id": number, "image_id": image_id, "bbox": bbox, "category_id": CATEGORIES[name]}
        self.annotations.append(one | more)
        return number

    def write(self) -> dict[str, str]:
        """The fields of config.data that name it."""
        categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
        content = {"images": self.images, "annotations": self.annotations}
        path = self.path / "instances.json"
        path.write_text(json.dumps({**content, "categories": categories}))
        return {"source": "coco", "annotations": str(path), "images": str(self.path / "images")}


def small_config(train, evaluation, **data):
    """Pictures of 96 x 128 become 64 x 85."""
    config = r50_fpn.get_config("tiny").unlock()
    config.data.train.update(train)
    config.data.eval.update(evaluation)
    config.data.update(
        loader="numpy",
        batch_size=4,
        buckets=((64, 96), (96, 64)),
        short_sides=(64,),
        eval_short_side=64,
        long_side=96,
    )
    config.data.update(data)
    return config


class Inspected(NamedTuple):
    """A run of the doctor."""

    findings: dict[str, Finding]
    output: pathlib.Path
    printed: str


def run(config, output, max_images=0) -> Inspected:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = inspect.run(config, output, max_images)
    subjects = collections.Counter(one.subject for one in found)
    assert max(subjects.values()) == 1
    return Inspected({one.subject: one for one in found}, output, printed.getvalue())


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Inspected:
    """Every fault that the doctor knows of, in one data set: anchors take seconds to compile."""
    tmp_path = tmp_path_factory.mktemp("faulty")
    train, evaluation = Folder(tmp_path / "train"), Folder(tmp_path / "eval")
    for _ in range(8):
        train.box(train.image(), [10, 20, 45, 40])
    train.box(1, [5, 5, 0, 40])  # annotation 109
    train.box(2, [130, 5, 10, 10])  # 110, beside its picture
    train.box(3, [10.1, 20, 45, 40])  # 111, as 103
    train.box(4, [10, 20, 45, 40], "dog")  # 112, as 104
    train.box(5, [0, 0, 100, 50], iscrowd=1)  # 113
    train.box(6, [100, 60, 50, 20])  # 114, 22 pixels of which are outside
    for image_id in range(1, 5):
        train.box(image_id, [80, 10, 4, 4], "ant")
        train.box(image_id, [5, 84, 110, 12], "snake")
    for _ in range(12):
        train.image(128, 96)  # empty
    twin = (train.path / "images" / "12.png").read_bytes()
    (train.path / "images" / "13.png").write_bytes(twin)

    for _ in range(12):
        evaluation.box(evaluation.image(), [10, 20, 45, 40], "newt")
    leaked = (train.path / "images" / "7.png").read_bytes()
    (evaluation.path / "images" / "5.png").write_bytes(leaked)
    broken = evaluation.path / "images" / "9.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    config = small_config(train.write(), evaluation.write(), buckets=((192, 192),))
    return run(config, tmp_path / "out")


def test_each_planted_fault_is_found(faulty):
    expected = {
        "train: categories": ("look", "2 of 6 categories have no box, 3 fewer than 10", "11 newt"),
        "train: empty pictures": ("look", "12 of 20 pictures (60.0%) show no object", "9.png"),
        "train: crowd regions": ("look", "1 of 22 boxes (4.5%)", "5.png: annotation 113 (cat)"),
        "train: boxes without area": ("fault", "2 of 22", "1.png: annotation 109 (cat)"),
        "train: boxes outside": ("fault", "1 of 22", "6.png: annotation 114 (cat)"),
        "train: duplicate boxes": ("fault", "1 of 22", "3.png: annotations 103 and 111 (cat)"),
        "train: boxes of two classes": (
            "fault",
            "1 of 22",
            "4.png: annotations 104 and 112 (cat and dog)",
        ),
        "train: duplicate pictures": ("look", "1 of 20", "12.png = 13.png"),
        "eval: pictures": ("fault", "1 of 12 pictures cannot be read", "9.png: the picture is"),
        "eval: categories": ("look", "5 of 6 categories have no box, 0 fewer", "3 cat"),
        "leak": ("fault", "1 of 12 pictures of eval are also in train", "7.png = 5.png"),
        "unlearnt categories": ("fault", "1 of 1 categories with boxes in eval have none", "newt"),
        "coverage": ("fault", "9 of 19 boxes (47.4%) have no anchor at IoU 0.5", ": ant, 3 high"),
        "buckets": ("look", "85.2% of what is computed is padding, with 1 shape", ""),
    }
    found = {name: one for name, one in faulty.findings.items() if one.verdict != "ok"}
    assert set(found) == set(expected)
    for subject, (verdict, says, example) in expected.items():
        one = found[subject]
        assert one.verdict == verdict, one
        assert says in one.says, one
        assert one.advice.endswith("."), one
        assert "\n" not in one.says + one.advice
        assert any(example in name for name in one.examples) or not example, one


def test_the_report_says_what_to_do(faulty, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    report = json.loads((faulty.output / "report.json").read_text())
    assert [one["verdict"] for one in report["findings"]] == sorted(
        (one.verdict for one in faulty.findings.values()), key=["fault", "look", "ok"].index
    )
    # Better anchors, found for the planted forms, and the flags that a run takes.
    configured, *better = report["anchors"].values()
    assert configured["covered"] < 0.6
    assert better
    assert len(better[0]["scales"]) == len(configured["scales"])
    assert len(better[0]["ratios"]) == len(configured["ratios"])
    assert better[-1]["covered"] > 0.7
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    buckets, more = faulty.findings["buckets"].advice.split(" has ")
    assert "8 shapes, each compiled once, have 11.5%" in more
    own = "--config=configs/r50_fpn.py"
    argv = ["program", own, *shlex.split(better[-1]["flags"]), *shlex.split(buckets)]
    monkeypatch.setattr(sys, "argv", argv)
    values(argv)
    assert list(values.config.anchors.scales) == better[-1]["scales"]
    assert list(values.config.anchors.ratios) == better[-1]["ratios"]
    # One shape was configured and one is proposed, that of landscape and portrait together.
    assert values.config.data.buckets == ((96, 96),)
    shares = {name: table["padding_overhead"] for name, table in report["buckets"].items()}
    assert shares["the config's"] > shares["one shape"] > shares["3 chosen"]
    assert report["chosen_buckets"] == [[96, 96]]
    assert faulty.printed.index("fault  ") < faulty.printed.index("look   ")
    assert (faulty.output / "report.txt").read_text() in faulty.printed
    assert not list(faulty.output.glob("*.partial"))
    rows = {row["name"]: row for row in report["categories"]}
    assert rows["ant"] == {"id": 8, "name": "ant", "train": 4, "eval": 0, "no_anchor": 1.0}
    assert rows["unicorn"]["no_anchor"] is None


def test_nothing_is_found_where_nothing_is_planted(tmp_path):
    parts = Folder(tmp_path / "train"), Folder(tmp_path / "evaluation")
    for part in parts:
        for number in range(12):
            image_id = part.image()
            for k, name in enumerate(CATEGORIES):
                part.box(image_id, [6 * k, 2 * number, 45, 40 + 4 * k], name)
    inspected = run(small_config(*(p.write() for p in parts)), tmp_path / "out")
    assert {one.verdict for one in inspected.findings.values()} == {"ok"}
    assert not [one for one in inspected.findings.values() if one.advice or one.examples]


def test_buckets_that_hold_too_little_are_a_fault_and_the_rest_is_told(tmp_path):
    folder = Folder(tmp_path / "train")
    for _ in range(4):
        folder.box(folder.image(), [10, 20, 45, 40])
    none = {"source": "coco", "annotations": "", "images": ""}
    config = small_config(folder.write(), none, buckets=((64, 64),))
    inspected = run(config, tmp_path / "out")
    one = inspected.findings["buckets"]
    assert one.verdict == "fault"
    assert "becomes (64, 85), which no bucket of" in one.says
    assert one.advice == "give --config.data.buckets='((64, 96),)'."
    assert inspected.findings["coverage"].verdict == "ok"
    assert inspected.findings["eval"].verdict == "look"
    assert (inspected.output / "batches.png").exists()


def test_buckets_that_evaluation_needs_are_asked_for(tmp_path):
    source = Folder(tmp_path / "eval")
    source.image(128, 96)
    fields = source.write()
    config = small_config(fields, fields, buckets=((64, 96),))
    data = input_pipeline.open_evaluation(config, tmp_path)
    one = fit.evaluation_finding(config, data)
    assert one.verdict == "fault"
    assert "becomes (85, 64), which no bucket" in one.says
    config.data.buckets = ((96, 64),)
    one = fit.evaluation_finding(config, data)
    assert one == Finding("ok", "eval: buckets", "11.5% of what is computed is padding")


def test_data_without_boxes_is_told_as_such(tmp_path):
    folder = Folder(tmp_path / "train")
    folder.image()
    none = {"source": "coco", "annotations": "", "images": ""}
    inspected = run(small_config(folder.write(), none), tmp_path / "out")
    assert inspected.findings["train: content"].verdict == "fault"
    assert "coverage" not in inspected.findings
    json.loads((inspected.output / "report.json").read_text())


def test_a_sample_is_drawn_by_seed_and_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = Folder(tmp_path / "train")
    for _ in range(9):
        folder.box(folder.image(), [10, 20, 45, 40])
    fields = folder.write()
    inspected = run(small_config(fields, fields), tmp_path / "out", max_images=5)
    report = json.loads((inspected.output / "report.json").read_text())
    assert report["sample"] == {"pictures": 5, "seed": 0}
    assert "matched on 5 pictures (seed 0)" in inspected.printed
    # Whatever the sample, every picture's bytes are looked at.
    assert inspected.findings["leak"].says.startswith("9 of 9")
    # It needs no matplotlib, and says what it cannot draw without.
    assert (
        "no anchors.png: matplotlib is not installed; pip install 'retinanet_jax[inspect]'."
        in inspected.printed.splitlines()
    )
    assert {path.name for path in inspected.output.iterdir()} == {
        "report.txt",
        "report.json",
        "batches.png",
    }
    rows = inspect.sample_rows(100, 5, 0)
    assert rows == sorted(set(rows)) == inspect.sample_rows(100, 5, 0)
    assert rows != inspect.sample_rows(100, 5, 1)
    assert inspect.sample_rows(4, 0, 0) == inspect.sample_rows(4, 9, 0) == [0, 1, 2, 3]


def test_views_are_the_boxes_of_the_batches(tmp_path):
    """And targets those of the training step."""
    folder = Folder(tmp_path / "train")
    rng = np.random.default_rng(0)
    for number in range(10):
        image_id = folder.image()
        for _ in range(number):
            low, size = rng.uniform(0, 60, 2), rng.uniform(10, 35, 2)
            crowd = int(rng.random() < 0.2)
            folder.box(image_id, [*low, *size], iscrowd=crowd)
    recipe = {
        "rot90": True,
        "scale_jitter": (0.8, 2.0),
        "crop_size": (64, 64),
        "min_visible": 0.4,
        "buckets": ((64, 64),),
    }
    fields = folder.write()
    config = small_config(fields, fields, **recipe)
    source = input_pipeline.open_training(config, tmp_path)
    plan = input_pipeline.train_plan(config, source)
    seen = iter(views.epoch_views(source, plan, min_visible=0.4))
    match = views.make_matcher(config, (64, 64))
    few = dict(start_step=0, num_steps=plan.steps_per_epoch, prefetch=1, num_threads=None)
    dropped = 0
    for batch in batches(source, plan, **few, loader="numpy", min_visible=0.4):
        matched, forced = sheets.foreground_anchors(config, batch)
        for row in np.flatnonzero(batch.weights):
            view = next(seen)
            assert (view.index, view.bucket) == (batch.index[row], (64, 64))
            assert view.size == tuple(batch.sizes[row])
            np.testing.assert_array_equal(view.boxes, batch.boxes[row][batch.mask[row]])
            np.testing.assert_array_equal(view.classes, batch.classes[row][batch.mask[row]])
            crowd = batch.crowd_boxes[row][batch.crowd_mask[row]]
            np.testing.assert_array_equal(view.crowd_boxes, crowd)
            assert view.dropped == batch.dropped[row]
            dropped += view.dropped
            labels = np.asarray(match(view).labels)
            np.testing.assert_array_equal(labels >= 0, matched[row] | forced[row])
            counts = np.asarray(views.label_counts(labels)).tolist()
            assert counts == [(labels >= 0).sum(), (labels == -1).sum(), (labels == -2).sum()]
            assert sum(counts) == len(labels)
    assert next(seen, None) is None
    assert dropped > 0


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_what_the_network_reads_is_shown_as_it_was(tmp_path, order):
    folder = Folder(tmp_path / "train")
    folder.image()
    fields = folder.write()
    config = small_config(fields, fields)
    config.input.update(order=order, mean=(103.9, 116.8, 123.7), std=(58.0, 57.0, 56.0))
    source = input_pipeline.open_training(config, tmp_path)
    plan = input_pipeline.train_plan(config, source)
    (batch,) = input_pipeline.host_batches(config, source, plan, range(1))
    pixels = np.asarray(network_input(batch, config, train=True))[0]
    shown = sheets.denormalized(pixels, **config.input)
    np.testing.assert_array_equal(shown[:64, :85], batch.images[0, :64, :85])
    # The padding has the mean colour, which is the network's zero.
    mean = (104, 117, 124) if order == "rgb" else (124, 117, 104)
    assert (shown[:, 85:] == mean).all()


def test_anchors_lie_on_the_sheet_where_they_lie_on_the_picture(tmp_path):
    folder = Folder(tmp_path / "train")
    folder.box(folder.image(), [30, 30, 48, 48])
    fields = folder.write()
    config = small_config(fields, fields, flip=False)
    source = input_pipeline.open_training(config, tmp_path)
    plan = input_pipeline.train_plan(config, source)
    (batch,) = input_pipeline.host_batches(config, source, plan, range(1))
    black = np.zeros((64, 96, 3), np.uint8)
    box = np.array([[8.0, 16, 40, 64]])
    drawn = np.asarray(sheets.draw_anchors(black, batch, 0, source, box, box[:0]))
    scale = sheets.HEIGHT / 64
    assert drawn.shape == (sheets.HEIGHT, 96 * scale, 3)
    yellow = (drawn[..., 0] > 60) & (drawn[..., 1] > 60) & (drawn[..., 2] == 0)
    rows, columns = np.flatnonzero(yellow.any(axis=1)), np.flatnonzero(yellow.any(axis=0))
    assert (rows[0], rows[-1] + 1) == (8 * scale, 40 * scale)
    assert (columns[0], columns[-1] + 1) == (16 * scale, 64 * scale)


def test_rows_of_the_sheet_hold_what_fits():
    pictures = [Image.new("RGB", (width, 40), "red") for width in (900, 600, 700, 2000)]
    sheet = np.asarray(sheets.in_rows(pictures))
    red = (sheet == (255, 0, 0)).all(axis=-1)
    step = 40 + sheets.GAP
    assert sheet.shape[0] == 3 * step
    assert [int(red[row * step].sum()) for row in range(3)] == [1500, 700, 2000]


def test_a_caption_is_never_cut():
    short, long = (
        sheets.captioned(Image.new("RGB", (50, 40)), [text, "b"]) for text in ("a", "a" * 40)
    )
    assert short.width == 50
    assert long.width > 200
    assert short.height == long.height == 40 + 2 * sheets.LINE


def test_histograms_are_drawn(faulty):
    pytest.importorskip("matplotlib")
    with Image.open(faulty.output / "anchors.png") as picture:
        assert min(picture.size) > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "error: give --config=FILE and --output=DIR."),
        (("--config=configs/shpes.py", "--output={tmp}/o"), "configs/shpes.py"),
        (("--config=configs/r50_fpn.py", "--output={tmp}/o"), "data/coco/"),
        (("--config=configs/shapes.py:tiny", "--output={tmp}/file"), "{tmp}/file"),
        (
            ("--config=configs/shapes.py:tiny", "--output={tmp}/o", "--max_images=-1"),
            "--max_images=-1 must not be negative; 0 looks at all.",
        ),
        (
            ("--config=configs/shapes.py:tiny", "--output={tmp}/o", "--config.data.sede=1"),
            "sede",
        ),
    ],
)
def test_a_mistake_ends_in_one_line(program, tmp_path, arguments, told):
    (tmp_path / "file").write_text("")
    status, stdout, stderr = program.run("inspect", *(a.format(tmp=tmp_path) for a in arguments))
    assert status == 1
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert told.format(tmp=tmp_path) in line
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_the_embedded_data_is_in_order(program, tmp_path):
    status, stdout, stderr = program.run(
        "inspect", "--config=configs/shapes.py:tiny", f"--output={tmp_path}"
    )
    assert status == 0, stderr
    assert "fault " not in stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"report.json", "batches.png"}
