"""Prediction: the same detections as evaluation, and what it needs and does not need."""

import csv
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from absl.testing import flagsaver
from PIL import Image

from retinanet_jax import checkpoint, compilation, core
from retinanet_jax import detector as detector_module
from retinanet_jax.cli import common, predict
from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation import predictions

WITHOUT_THE_TRAINING_STACK = (
    "sys.modules.update(tensorflow=None, pycocotools=None, matplotlib=None)"
)


@pytest.fixture
def pictures(tmp_path) -> pathlib.Path:
    """Two folders deep: three pictures, two of one name, and a text."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.JPG", "deep/a.jpg")):
        Image.new("RGB", (60 + number, 40), (50, 90, 130)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def home(monkeypatch, tmp_path) -> pathlib.Path:
    """Where the user's caches are; what jax is told is taken back."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield tmp_path / "home"
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def detector(monkeypatch, toy_config) -> detector_module.Detector:
    """Finds a cat at .9 and a dog at .2 in every picture."""

    def detect(variables, batch, model, config):
        one = core.Detections(
            boxes=jnp.array([[2, 3, 20, 30], [0, 0, 9, 5], [0, 0, 0, 0.0]]),
            scores=jnp.array([0.9, 0.2, 0]),
            classes=jnp.array([1, 0, 0]),
            mask=jnp.array([True, True, False]),
        )
        return jax.tree.map(lambda x: jnp.stack([x] * len(batch.images)), one)

    monkeypatch.setattr(detector_module, "detect", detect)
    categories = (Category(3, "dog"), Category(7, "cat"))
    return detector_module.Detector(
        checkpoint.Checkpoint({}, toy_config, categories, 0, pathlib.Path("run"))
    )


@pytest.fixture
def found(detector, tmp_path):
    """`found(*paths, ...)` -> (what was unreadable, output folder, detections)."""

    def found(*paths, **options):
        output = tmp_path / "out"
        unreadable = predictions.predict_files(
            detector, find_images(map(str, paths)), output, **options
        )
        return unreadable, output, json.loads((output / "detections.json").read_text())

    return found


def test_pictures_are_found_to_the_bottom(pictures):
    listed = find_images([str(pictures)])
    assert [str(p.relative_to(pictures)) for p in listed] == ["a.png", "b.JPG", "deep/a.jpg"]
    # A file that is named is taken, whatever it is called.
    notes = pictures / "notes.txt"
    assert find_images([str(notes), str(pictures / "a.png")]) == [
        notes,
        pictures / "a.png",
    ]


def test_patterns_are_taken_as_a_shell_takes_them(pictures):
    def found(*given):
        return [str(p.relative_to(pictures)) for p in find_images(given)]

    assert found(f"{pictures}/*.png") == ["a.png"]
    assert found(f"{pictures}/*") == ["a.png", "b.JPG", "deep/a.jpg", "notes.txt"]
    # However often it is met, a picture is taken once.
    assert found(f"{pictures}/**/a.*", f"{pictures}/a.png") == ["a.png", "deep/a.jpg"]
    (pictures / "odd[1].png").write_bytes((pictures / "a.png").read_bytes())
    assert found(f"{pictures}/odd[1].png") == ["odd[1].png"]
    (pictures / "folder.png").mkdir()
    assert found(str(pictures)) == ["a.png", "b.JPG", "deep/a.jpg", "odd[1].png"]
    with pytest.raises(FileNotFoundError, match=r"\*\.gif: no such picture"):
        found(f"{pictures}/*.gif")


def test_results_have_original_ids_file_names_and_the_pictures_own_pixels(found, pictures):
    unreadable, output, results = found(pictures)
    assert unreadable == []
    assert len(results) == 6
    assert results[0] == {
        "image_id": 1,
        "category_id": 7,
        "bbox": [3, 2, 27, 18],
        "score": pytest.approx(0.9),
        "file_name": str(pictures / "a.png"),
    }
    assert [one["image_id"] for one in results] == [1, 1, 2, 2, 3, 3]
    # No picture overwrites another of its name.
    assert sorted(p.name for p in output.glob("*.jpg")) == ["a-2.jpg", "a.jpg", "b.jpg"]
    with Image.open(output / "b.jpg") as drawn:
        assert drawn.size == (61, 40)


def test_the_table_says_the_same(found, pictures):
    (pictures / "a, \u00e4.png").write_bytes((pictures / "a.png").read_bytes())
    _, output, results = found(pictures, table=True)
    with (output / "detections.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == predictions.COLUMNS
    assert {row["name"] for row in rows} == {"cat", "dog"}
    for row, result in zip(rows, results, strict=True):
        x0, y0, x1, y1 = (float(row[name]) for name in ("x0", "y0", "x1", "y1"))
        assert [x0, y0, x1 - x0, y1 - y0] == result["bbox"]
        assert float(row["score"]) == pytest.approx(result["score"])
        assert int(row["category_id"]) == result["category_id"]
        assert row["file_name"] == result["file_name"]


def test_a_name_that_is_no_text_is_kept(found, pictures):
    name = os.fsencode(pictures) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write((pictures / "a.png").read_bytes())
    unreadable, output, results = found(os.fsdecode(name), table=True)
    assert unreadable == []
    assert os.fsencode(results[0]["file_name"]) == name
    assert (output / "detections.csv").read_bytes().splitlines()[1].startswith(name + b",cat")


def test_the_draw_threshold_concerns_the_pictures_alone(found, pictures):
    drawn, results = {}, []
    for threshold in (0.1, 0.5, 0.95):
        _, output, one = found(pictures / "a.png", draw_threshold=threshold)
        drawn[(output / "a.jpg").read_bytes()] = threshold
        results.append(one)
    assert len(drawn) == 3
    assert results[0] == results[1] == results[2]


def test_without_pictures_the_results_are_the_same(found, pictures):
    _, output, results = found(pictures, draw_threshold=None)
    assert [path.name for path in output.iterdir()] == ["detections.json"]
    _, _, drawn = found(pictures, batch_size=2)
    assert results == drawn


def test_an_unreadable_picture_is_named_and_the_others_are_done(found, pictures):
    (pictures / "b.JPG").write_bytes((pictures / "b.JPG").read_bytes()[:300])
    (line,), output, results = found(pictures)
    # The others keep their numbers.
    assert [(one["image_id"], one["file_name"]) for one in results[::2]] == [
        (1, str(pictures / "a.png")),
        (3, str(pictures / "deep/a.jpg")),
    ]
    assert line.startswith(f"{pictures / 'b.JPG'}: the picture is corrupt or truncated")
    assert "\n" not in line
    assert sorted(p.name for p in output.iterdir()) == ["a-2.jpg", "a.jpg", "detections.json"]


def test_the_originals_are_never_overwritten(found, pictures):
    """Also where the output folder is the pictures' own."""
    (pictures.parent / "out").symlink_to(pictures)
    (pictures / "deep/a.jpg").rename(pictures / "a.jpg")
    before = {path: path.read_bytes() for path in pictures.rglob("*.*g")}
    found(pictures)
    assert {path: path.read_bytes() for path in before} == before
    assert {"a-2.jpg", "a-3.jpg", "b.jpg"} <= {path.name for path in pictures.glob("*.jpg")}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "give --checkpoint=DIR and --output=DIR"),
        (("--checkpoint={tmp}/absent",), "give --checkpoint=DIR and --output=DIR"),
        (("--output={tmp}/o", "--checkpoint={tmp}/absent", "{tmp}/pictures"), "no checkpoint here"),
        (("--output={tmp}/o", "--checkpoint={tmp}", "{tmp}/nope"), "nope: no such picture"),
        (("--output={tmp}/o", "--checkpoint={tmp}"), "no picture (.bmp, "),
        (("--output={tmp}/o", "--checkpoint={tmp}", "{tmp}/pictures/deep/.."), "no checkpoint"),
    ],
)
def test_a_mistake_ends_in_one_line(refusal, home, pictures, tmp_path, arguments, line):
    assert line in refusal(predict, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_a_folder_is_told(
    refusal, home, detector, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict.Detector, "load", lambda path, **limits: detector)
    (tmp_path / "file").write_text("")
    line = refusal(predict, "--checkpoint=run", f"--output={tmp_path}/file/out", pictures / "a.png")
    assert f"{tmp_path}/file/out" in line


def test_the_flags_reach_the_detector(home, detector, pictures, tmp_path, monkeypatch, capsys):
    """And pictures that cannot be read are listed at the end, with exit status 1."""
    given = {}
    monkeypatch.setattr(
        predict.Detector, "load", lambda path, **limits: given.update(limits) or detector
    )
    (pictures / "b.JPG").write_text("")
    argv = [
        "predict",
        "--checkpoint=run",
        f"--output={tmp_path}/out",
        "--score_threshold=0.3",
        "--max_detections=7",
        "--categories=dog,cat",
        "--batch_size=2",
        "--nodraw",
        "--csv",
        str(pictures),
    ]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        predict.main(common.parse_flags_and_words(argv))
    assert stopped.value.code == 1
    assert given == {"score_threshold": 0.3, "max_detections": 7, "categories": ["dog", "cat"]}
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["detections.csv", "detections.json"]
    told = capsys.readouterr()
    assert "4 detections on 2 pictures: " in told.out
    assert f"1 of 3 pictures could not be read:\n  {pictures / 'b.JPG'}: " in told.err


def test_compiled_programs_are_kept_for_the_user(home, monkeypatch, tmp_path):
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(home / "retinanet_jax")
    assert (home / "retinanet_jax").is_dir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_where_nothing_can_be_kept_nothing_is_said(home, capsys):
    home.write_text("no folder")
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_prediction_equals_evaluation_and_needs_no_training_stack(
    tiny_run, program, tmp_path, monkeypatch
):
    """The same pictures and checkpoint: in a process where TensorFlow cannot be imported."""
    program.share_compiled(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compilation_cache"))
    folder = tiny_run.workdir / "data/shapes-2"
    (tmp_path / "broken.jpg").write_text("not a picture")
    status, stdout, stderr = program.run(
        "predict",
        f"--checkpoint={tiny_run.workdir / 'checkpoints' / '8'}",
        f"--output={tmp_path / 'out'}",
        folder / "images",
        tmp_path / "broken.jpg",
        preamble=WITHOUT_THE_TRAINING_STACK,
    )
    assert status == 1, stderr
    assert f"{tmp_path / 'broken.jpg'}: " in stderr
    assert "Traceback" not in stderr
    assert "on 8 pictures" in stdout
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 8

    truth = json.loads((folder / "instances.json").read_text())
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    predicted = json.loads((tmp_path / "out/detections.json").read_text())
    for one in predicted:
        one["image_id"] = ids[pathlib.Path(one.pop("file_name")).name]
    evaluated = json.loads((tiny_run.workdir / "eval/8_detections.json").read_text())

    def order(one):
        return one["image_id"], -one["score"], one["bbox"]

    assert len(evaluated) > 100
    assert sorted(predicted, key=order) == sorted(evaluated, key=order)
