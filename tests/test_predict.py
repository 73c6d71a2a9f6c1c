"""Prediction: the same detections as evaluation, and what it needs and does not need."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import core, datasets, predict
from retinanet_jax.data.sources import Category
from retinanet_jax.data.transforms import PIXEL_TYPES

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


class OneBox:
    """A predictor that finds a cat at .9 and a dog at .2 in every picture."""

    def __init__(self, trained):
        self.categories = trained.categories

    def __call__(self, image):
        assert image.dtype == np.uint8
        return core.Detections(
            boxes=np.float32([[2, 3, 20, 30], [0, 0, 9, 5], [0, 0, 0, 0]]),
            scores=np.float32([0.9, 0.2, 0]),
            classes=np.int32([1, 0, 0]),
            mask=np.array([True, True, False]),
        )


@pytest.fixture
def found(monkeypatch, tmp_path):
    """`found(*paths, threshold)` -> (how many were unreadable, output folder, detections)."""

    class Trained:
        categories = (Category(3, "dog"), Category(7, "cat"))

    monkeypatch.setattr(predict, "Predictor", OneBox)
    monkeypatch.setattr(predict.checkpoint, "load", lambda path: Trained())

    def found(*paths, threshold=0.5):
        output = tmp_path / "out"
        failed = predict.run("run", output, [str(path) for path in paths], threshold)
        return failed, output, json.loads((output / "detections.json").read_text())

    return found


def test_pictures_are_found_to_the_bottom(pictures):
    listed = predict.find_pictures([str(pictures)])
    assert [str(p.relative_to(pictures)) for p in listed] == ["a.png", "b.JPG", "deep/a.jpg"]
    # A file that is named is taken, whatever it is called.
    notes = pictures / "notes.txt"
    assert predict.find_pictures([str(notes), str(pictures / "a.png")]) == [
        notes,
        pictures / "a.png",
    ]


def test_results_have_original_ids_file_names_and_the_pictures_own_pixels(found, pictures):
    failed, output, results = found(pictures)
    assert failed == 0
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


def test_the_draw_threshold_concerns_the_pictures_alone(found, pictures):
    _, output, results = found(pictures / "a.png", threshold=0.1)
    both = (output / "a.jpg").read_bytes()
    _, output, same_results = found(pictures / "a.png", threshold=0.5)
    one = (output / "a.jpg").read_bytes()
    _, output, _ = found(pictures / "a.png", threshold=0.95)
    none = (output / "a.jpg").read_bytes()
    assert len({both, one, none}) == 3
    assert results == same_results


def test_an_unreadable_picture_is_named_and_the_others_are_done(found, pictures, caplog):
    (pictures / "b.JPG").write_bytes((pictures / "b.JPG").read_bytes()[:300])
    failed, output, results = found(pictures)
    assert failed == 1
    assert {one["file_name"] for one in results} == {
        str(pictures / "a.png"),
        str(pictures / "deep/a.jpg"),
    }
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert str(pictures / "b.JPG") in line
    assert "corrupt or truncated" in line
    assert "\n" not in line


def test_the_originals_are_never_overwritten(found, pictures):
    """Also where the output folder is the pictures' own."""
    (pictures.parent / "out").symlink_to(pictures)
    before = {path: path.read_bytes() for path in pictures.rglob("*.*g")}
    found(pictures)
    assert {path: path.read_bytes() for path in before} == before
    assert {"a.jpg", "b.jpg", "a-2.jpg"} <= {path.name for path in pictures.glob("*.jpg")}


def test_a_picture_that_no_bucket_holds_is_named_and_the_others_are_done(
    found, pictures, monkeypatch, caplog
):
    class Narrow(OneBox):
        def __call__(self, image):
            if image.shape[1] == 61:
                raise ValueError("picture 0 of (40, 61) fits no bucket")
            return super().__call__(image)

    monkeypatch.setattr(predict, "Predictor", Narrow)
    failed, _, results = found(pictures)
    assert failed == 1
    assert [one["image_id"] for one in results] == [1, 1, 3, 3]
    assert f"{pictures / 'b.JPG'}: picture 0 of (40, 61)" in caplog.text


@pytest.mark.parametrize("shapes", ["buckets", "own"])
@pytest.mark.parametrize("kind", PIXEL_TYPES)
def test_the_network_reads_what_it_reads_in_evaluation(config, drawn, tmp_path, kind, shapes):
    config.data.eval.update(annotations=f"{drawn}/instances.json", images=f"{drawn}/images")
    config.data.update(resize=kind, eval_shapes=shapes, eval_short_side=90, loader="numpy")
    config.data.buckets = ((96, 128), (128, 128))
    source = datasets.open_evaluation(config, tmp_path)
    plan = datasets.eval_plan(config, source.sizes, batch_size=1)
    for batch in datasets.host_batches(config, source, plan, range(3)):
        image = source.picture(int(batch.index[0]))
        alone = datasets.eval_plan(config, np.array([image.shape[:2]]), batch_size=1).batch(0)
        read = predict.one_image_batch(image, alone)
        assert read.images.shape == (1, 96, 96 if shapes == "own" else 128, 3)
        assert read.images.dtype == batch.images.dtype == PIXEL_TYPES[kind]
        for field in ("images", "sizes", "scales", "colors"):
            np.testing.assert_array_equal(getattr(read, field), getattr(batch, field))


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
def test_a_mistake_ends_in_one_line(refusal, pictures, tmp_path, arguments, line):
    assert line in refusal(predict, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_a_folder_is_told(refusal, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.checkpoint, "load", lambda path: None)
    (tmp_path / "file").write_text("")
    line = refusal(predict, "--checkpoint=run", f"--output={tmp_path}/file/out", pictures / "a.png")
    assert f"{tmp_path}/file/out" in line


@pytest.mark.slow
def test_prediction_equals_evaluation_and_needs_no_training_stack(tiny_run, program, tmp_path):
    """The same pictures and checkpoint: in a process where TensorFlow cannot be imported."""
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
