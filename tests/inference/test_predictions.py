"""Detection in image files: the results of evaluation, written as JSON, CSV and drawings."""

import csv
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from retinanet_jax import checkpoint, core
from retinanet_jax import detector as detector_module
from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.sources.base import Category, subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.inference import latency, predictions
from retinanet_jax.utils import output_folder

WITHOUT_THE_TRAINING_STACK = (
    "sys.modules.update(tensorflow=None, pycocotools=None, matplotlib=None)"
)


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """A folder with three images, two of the same name in different folders, and a text file."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.JPG", "deep/a.jpg")):
        Image.new("RGB", (60 + index, 40), (50, 90, 130)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def detector(monkeypatch, toy_config) -> detector_module.Detector:
    """A detector of a cat at .9 and a dog at .2 in every image."""

    def detect(variables, batch, model, config, score_thresholds):
        detections = core.Detections(
            boxes=jnp.array([[2, 3, 20, 30], [0, 0, 9, 5], [0, 0, 0, 0.0]]),
            scores=jnp.array([0.9, 0.2, 0]),
            classes=jnp.array([1, 0, 0]),
            mask=jnp.array([True, True, False]),
        )
        return jax.tree.map(lambda x: jnp.stack([x] * len(batch.images)), detections)

    monkeypatch.setattr(latency, "detect", detect)
    categories = (Category(3, "dog"), Category(7, "cat"))
    return detector_module.Detector(
        checkpoint.Checkpoint({}, toy_config, categories, 0, pathlib.Path("run"))
    )


@pytest.fixture
def predict(detector, tmp_path):
    """`predict(*paths, ...)` -> (errors of unreadable images, output folder, detections)."""

    def predict(*paths, **options):
        output = tmp_path / "out"
        images = predictions.input_files(find_images(map(str, paths)))
        errors = predictions.predict_images(detector, images, output, **options)
        return errors, output, json.loads((output / "detections.json").read_text())

    return predict


def names(folder: pathlib.Path) -> list[str]:
    """Return the names of a folder's files, without the record of what was written."""
    return sorted(path.name for path in folder.iterdir() if path.name != output_folder.RECORD)


def test_results_have_original_ids_file_names_and_pixels(predict, images):
    errors, output, results = predict(images)
    assert errors == []
    assert len(results) == 6
    assert results[0] == {
        "image_id": 1,
        "category_id": 7,
        "bbox": [3, 2, 27, 18],
        "score": pytest.approx(0.9),
        "file_name": str(images / "a.png"),
    }
    assert [result["image_id"] for result in results] == [1, 1, 2, 2, 3, 3]
    # No drawing overwrites another one of its name.
    assert sorted(p.name for p in output.glob("*.jpg")) == ["a-2.jpg", "a.jpg", "b.jpg"]
    with Image.open(output / "b.jpg") as drawing:
        assert drawing.size == (61, 40)


def test_the_summary_counts_images_and_detections(predict, images, capsys):
    _, output, _ = predict(images)
    summary = "6 detections in 3 images (3 with a score of 0.5 or more are drawn)"
    assert f"{summary}: {output / 'detections.json'}" in capsys.readouterr().out


def test_progress_is_that_of_whole_batches(predict, images, monkeypatch):
    """The images of a batch are ready at once, and would count as faster than they are."""
    calls = []
    monkeypatch.setattr(predictions, "make_progress", lambda name, total: calls.append)
    predict(images, batch_size=2)
    assert calls == [2, 3]


def test_the_table_has_the_same_detections(predict, images):
    (images / "a, \u00e4.png").write_bytes((images / "a.png").read_bytes())
    _, output, results = predict(images, table=True)
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


def test_a_file_name_that_is_not_utf8_is_written_unchanged(predict, images):
    name = os.fsencode(images) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write((images / "a.png").read_bytes())
    errors, output, results = predict(os.fsdecode(name), table=True)
    assert errors == []
    assert os.fsencode(results[0]["file_name"]) == name
    assert (output / "detections.csv").read_bytes().splitlines()[1].startswith(name + b",cat")


def test_the_draw_threshold_changes_only_the_drawings(predict, images):
    drawings, results = set(), []
    for threshold in (0.1, 0.5, 0.95):
        _, output, detections = predict(images / "a.png", draw_threshold=threshold)
        drawings.add((output / "a.jpg").read_bytes())
        results.append(detections)
    assert len(drawings) == 3
    assert results[0] == results[1] == results[2]


def test_without_drawings_the_results_are_the_same(predict, images):
    _, output, without_drawings = predict(images, draw_threshold=None)
    assert names(output) == ["detections.json"]
    _, _, with_drawings = predict(images, batch_size=2)
    assert without_drawings == with_drawings


def test_an_unreadable_image_is_named_and_the_others_are_predicted(predict, images):
    (images / "b.JPG").write_bytes((images / "b.JPG").read_bytes()[:300])
    (error,), output, results = predict(images)
    # The others keep their image ids.
    assert [(result["image_id"], result["file_name"]) for result in results[::2]] == [
        (1, str(images / "a.png")),
        (3, str(images / "deep/a.jpg")),
    ]
    assert error.startswith(f"{images / 'b.JPG'}: the image is corrupt or truncated")
    assert "\n" not in error
    assert names(output) == ["a-2.jpg", "a.jpg", "detections.json"]


def test_the_images_themselves_are_never_overwritten(predict, images):
    """Also if the output folder is the folder of the images."""
    (images.parent / "out").symlink_to(images)
    (images / "deep/a.jpg").rename(images / "a.jpg")
    before = {path: path.read_bytes() for path in images.rglob("*.*g")}
    predict(images)
    assert {path: path.read_bytes() for path in before} == before
    assert {"a-2.jpg", "a-3.jpg", "b.jpg"} <= {path.name for path in images.glob("*.jpg")}


def test_an_earlier_run_is_replaced(predict, images):
    """A second run leaves nothing but its own results; with other settings, these are others."""
    _, output, _ = predict(images, table=True)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    predict(images, table=True, draw_threshold=0.1)
    after = {path.name: path.read_bytes() for path in output.iterdir()}
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"a.jpg", "a-2.jpg", "b.jpg", output_folder.RECORD}
    predict(images, table=True)
    assert {n: (output / n).read_bytes() for n in names(output)} == {
        name: content for name, content in before.items() if name != output_folder.RECORD
    }


def test_a_drawing_never_replaces_a_file_that_predict_did_not_write(predict, images, tmp_path):
    """Neither one that is no image of this run, nor a changed drawing, nor a link or a folder."""
    folder, precious = tmp_path / "out", tmp_path / "precious.jpg"
    precious.write_text("precious")
    folder.mkdir()
    (folder / "a.jpg").write_text("mine")
    (folder / "a-2.jpg").symlink_to(precious)
    (folder / "a-3.jpg").symlink_to("nowhere")
    (folder / "a-4.jpg").mkdir()
    os.link(precious, folder / "b.jpg")
    predict(images)
    drawings = ["a-5.jpg", "a-6.jpg", "b-2.jpg"]
    (folder / "a-6.jpg").write_text("changed")
    predict(images)
    assert (folder / "a.jpg").read_text() == "mine"
    assert [(folder / f"a-{i}.jpg").readlink() for i in (2, 3)] == [
        precious,
        pathlib.Path("nowhere"),
    ]
    assert (folder / "a-6.jpg").read_text() == "changed"
    assert precious.read_text() == (folder / "b.jpg").read_text() == "precious"
    others = ["a.jpg", "a-2.jpg", "a-3.jpg", "a-4.jpg", "b.jpg", "a-7.jpg", "detections.json"]
    assert names(folder) == sorted([*drawings, *others])


def test_a_drawing_replaces_no_image_of_the_run_under_any_of_its_names(predict, images, tmp_path):
    """Also if it is a drawing of an earlier run: it is read as an image now."""
    _, folder, _ = predict(images / "a.png")
    before = (folder / "a.jpg").read_bytes()
    (images / "link").mkdir()
    (images / "link/other.jpg").symlink_to(folder / "a.jpg")
    predict(images / "a.png", images / "link/other.jpg")
    assert (folder / "a.jpg").read_bytes() == before
    assert names(folder) == ["a-2.jpg", "a.jpg", "detections.json", "other.jpg"]


def test_names_that_differ_only_in_case_are_different_drawings(predict, images):
    (images / "A.bmp").write_bytes((images / "a.png").read_bytes())
    _, output, _ = predict(images / "a.png", images / "A.bmp")
    assert names(output) == ["A-2.jpg", "a.jpg", "detections.json"]


@pytest.mark.parametrize("name", ["detections.json", "detections.csv"])
def test_results_that_predict_did_not_write_are_an_error_before_any_work(
    predict, images, detector, monkeypatch, name
):
    """A file that was changed since, and one of which there is no record."""
    _, output, _ = predict(images, table=True)
    monkeypatch.setattr(detector, "_start", lambda *_: pytest.fail("the network runs"))
    message = f"/out/{name} is not replaced, because there is no record that .*; rename it"
    content = (output / name).read_bytes()
    (output / name).write_bytes(content + b" ")
    with pytest.raises(FileExistsError, match=message):
        predict(images, table=True)
    assert (output / name).read_bytes() == content + b" "
    for path in output.iterdir():
        path.unlink()
    (output / name).write_bytes(content)
    with pytest.raises(FileExistsError, match=message):
        predict(images, table=True)
    assert (output / name).read_bytes() == content


def test_a_table_of_the_user_stays_if_none_is_written(predict, images):
    (images.parent / "out").mkdir()
    (images.parent / "out/detections.csv").write_text("mine")
    _, output, _ = predict(images)
    assert (output / "detections.csv").read_text() == "mine"


@pytest.mark.slow
def test_prediction_equals_evaluation_and_needs_no_training_stack(
    tiny_run, program, tmp_path, monkeypatch
):
    """The same images and checkpoint, in a process where TensorFlow cannot be imported."""
    program.use_shared_cache(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compilation_cache"))
    folder = tiny_run.workdir / "data/shapes-2"
    (tmp_path / "broken.jpg").write_text("not an image")
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
    assert "in 8 images" in stdout
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 8

    truth = json.loads((folder / "instances.json").read_text())
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    predicted = json.loads((tmp_path / "out/detections.json").read_text())
    for result in predicted:
        result["image_id"] = ids[pathlib.Path(result.pop("file_name")).name]
    evaluated = json.loads((tiny_run.workdir / "eval/8_detections.json").read_text())

    def order(result):
        return result["image_id"], -result["score"], result["bbox"]

    assert len(evaluated) > 100
    assert sorted(predicted, key=order) == sorted(evaluated, key=order)


def test_images_of_a_dataset_are_read_in_its_way_and_boxes_are_in_its_pixels(
    detector, tmp_path, synthetic_dataset, monkeypatch
):
    """As of a packed dataset, which stores smaller images; one of them is missing."""
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    source = subset(source, [4, 2, 0])
    height, width = source.sizes[0].tolist()

    def image(index):
        if index == 1:
            raise FileNotFoundError("it is missing")
        return np.zeros((height // 2, width // 4, 3), np.uint8)

    monkeypatch.setattr(source, "image", image)
    images = predictions.input_dataset(source)
    errors = predictions.predict_images(detector, images, tmp_path, draw_threshold=None)
    assert errors == ["it is missing"]
    results = json.loads((tmp_path / "detections.json").read_text())
    ids, names = source.image_ids, source.file_names
    assert [entry["image_id"] for entry in results] == [ids[0], ids[0], ids[2], ids[2]]
    assert results[0]["file_name"] == names[0]
    # The detector's boxes (y, x) are 2, 3, 20, 30 in the image that it gets.
    assert results[0]["bbox"] == [3 * 4, 2 * 2, 27 * 4, 18 * 2]


def test_an_image_of_a_dataset_that_no_bucket_contains_is_named(
    detector, tmp_path, synthetic_dataset, toy_config
):
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    detector.checkpoint.config.data.buckets = ((32, 32),)
    images = predictions.input_dataset(source)[:1]
    (error,) = predictions.predict_images(detector, images, tmp_path, draw_threshold=None)
    assert error.startswith(f"{source.file_names[0]}: ")
