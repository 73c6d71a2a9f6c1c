"""The flags of `predict`, and its errors in one line."""

import json
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.cli import predict
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import default_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections


class CatDetector:
    """A detector of a cat at .9 and a dog at .2 in every image that is not empty."""

    checkpoint = types.SimpleNamespace(
        config=default_config(), categories=(Category(3, "dog"), Category(7, "cat"))
    )

    def batch_with_errors(self, images, batch_size):
        assert batch_size == 2
        for path in images:
            if not path.stat().st_size:
                yield ValueError(f"{path}: empty")
                continue
            yield Detections(
                image=np.asarray(Image.open(path)),
                boxes=np.float32([[3, 2, 30, 20], [0, 0, 5, 9]]),
                scores=np.float32([0.9, 0.2]),
                classes=np.array([1, 0]),
                categories=self.checkpoint.categories,
            )


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    """The user's cache is not touched."""
    monkeypatch.setattr(predict, "use_compilation_cache", lambda: None)


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """A folder with three images, one of them in a folder of its own."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "deep/a.jpg"):
        Image.new("RGB", (60, 40), (50, 90, 130)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --weights=NAME_OR_DIR_OR_FILE --output=DIR"),
        (("--checkpoint={tmp}/absent",), "give --weights=NAME_OR_DIR_OR_FILE --out"),
        (
            ("--output={tmp}/o", "--weights={tmp}/absent", "{tmp}/images"),
            "absent does not exist, and",
        ),
        (("--output={tmp}/o", "--checkpoint={tmp}", "{tmp}/nope"), "nope: no such image"),
        (("--output={tmp}/o", "--checkpoint={tmp}"), "no images: pass image files, folders or p"),
        (("--output={tmp}/o", "--checkpoint={tmp}", "{tmp}/images/deep/.."), "no checkpoint"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(error_line, images, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message in error_line("predict", *arguments)
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_a_folder_is_named(error_line, images, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.Detector, "load", lambda path, **limits: CatDetector())
    (tmp_path / "file").write_text("")
    arguments = ["--batch_size=2", f"--output={tmp_path}/file/out", images / "a.png"]
    line = error_line("predict", "--checkpoint=run", *arguments)
    assert line.endswith(f"there is a file in place of this folder; rename it: '{tmp_path}/file'")


def test_the_flags_reach_the_detector(images, tmp_path, monkeypatch, capsys):
    """Images that cannot be read are listed at the end, with exit status 1."""
    given = {}
    monkeypatch.setattr(
        predict.Detector, "load", lambda path, **limits: given.update(limits) or CatDetector()
    )
    (images / "b.JPG").rename(images / "b\n.JPG").write_text("")
    argv = [
        "predict",
        "--checkpoint=run",
        f"--output={tmp_path}/out",
        "--score_threshold=0.3",
        "--iou_threshold=0.4",
        "--class_agnostic",
        "--max_detections=7",
        "--categories=dog,cat",
        "--batch_size=2",
        "--nodraw",
        "--csv",
        str(images),
    ]
    assert run_command(predict.COMMAND, argv) == 1
    assert given == {
        "score_threshold": 0.3,
        "iou_threshold": 0.4,
        "class_agnostic": True,
        "max_detections": 7,
        "categories": ["dog", "cat"],
    }
    written = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert written == ["detections.csv", "detections.json"]
    printed = capsys.readouterr()
    assert "4 detections in 2 images: " in printed.out
    assert f"1 of 3 images could not be read:\n  {images / 'b .JPG'}: " in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format=yolo,coc",), "--format='coc' must be one of yolo, coco, csv, labelme."),
        (("--label_threshold=.4",), "--label_threshold=0.4 has no effect without --format or --s"),
        (("--format=csv", "--label_threshold=40"), "--label_threshold=40 must be from 0 to 1, as "),
        (("--save_crops", "--draw_threshold=-1"), "--draw_threshold=-1 must be from 0 to 1, as "),
        (("--draw_threshold=50",), "--draw_threshold=50 must be from 0 to 1, as scores are; try"),
        (("--draw_threshold=nan",), "--draw_threshold=nan must be from 0 to 1, as scores are; try"),
        (("--format=csv", "https://example.org/a.jpg"), "a.jpg: is no image file, to which the "),
    ],
)
def test_mistakes_with_labels_are_errors_before_a_detector_is_loaded(
    error_line, images, tmp_path, monkeypatch, flags, message
):
    monkeypatch.setattr(predict.Detector, "load", lambda *_, **__: pytest.fail("it is loaded"))
    arguments = ("--weights=run", f"--output={tmp_path}/o", images / "a.png", *flags)
    assert message in error_line("predict", *arguments)


def test_labels_and_crops_have_the_threshold_of_the_drawings(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict.Detector, "load", lambda path, **limits: CatDetector())
    for threshold, count in (("--draw_threshold=0.1", 2), ("--label_threshold=0.6", 1)):
        flags = ("--batch_size=2", "--format=csv,labelme", "--save_crops", threshold)
        argv = ["predict", "--weights=run", f"--output={tmp_path}/out", *flags, f"{images}/a.png"]
        assert run_command(predict.COMMAND, argv) == 0
        labels = json.loads((tmp_path / "out/labelme/a.json").read_text())
        assert len(labels["shapes"]) == count
        assert len(list((tmp_path / "out/crops").rglob("*.jpg"))) == count
    assert f"in 1 image: {tmp_path}/out/csv, {tmp_path}/out/labelme\n" in capsys.readouterr().out


# ---- a dataset

# Ids that are no positions, and categories in another order than the detector's.
IMAGES = {900: "b.png", 41: "a.png", 2**40: "sub/c.png"}


@pytest.fixture
def dataset(tmp_path):
    """`dataset(*names, ids=...)`: a folder with three images and these categories."""

    def write(*names, first_id=5):
        folder = tmp_path / "mine"
        for index, name in enumerate(IMAGES.values()):
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (50, 90, index)).save(path)
        images = [
            {"id": image_id, "file_name": name, "width": 60, "height": 40}
            for image_id, name in IMAGES.items()
        ]
        categories = [{"id": first_id + k, "name": name} for k, name in enumerate(names)]
        box = {"id": 1, "image_id": 900, "bbox": [3, 2, 27, 18], "area": 486, "iscrowd": 0}
        annotations = [{**box, "category_id": first_id}]
        content = {"images": images, "categories": categories, "annotations": annotations}
        (folder / "instances.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def given(monkeypatch, tmp_path):
    """What the detector is made from: a detector of a cat at .9 and a dog at .2 in each image."""
    config = default_config()
    config.detections.score_threshold = 0.125
    categories = (Category(3, "dog"), Category(7, "cat"), Category(9, "cow"))
    trained = Checkpoint({}, config, categories, 0, tmp_path / "run")
    given = {}

    class DatasetDetector:
        def __init__(self, checkpoint, categories, **limits):
            given.update(limits, categories=categories)
            self.checkpoint = checkpoint

        def batch_with_errors(self, images, batch_size):
            for image in images:
                try:
                    pixels = image.read()
                except OSError as error:
                    yield ValueError(str(error))
                    continue
                boxes = np.float32([[3, 2, 30, 20], [0, 0, 5, 9]])
                scores, classes = np.float32([0.9, 0.2]), np.array([1, 0])
                yield Detections(pixels, boxes, scores, classes, self.checkpoint.categories)

    monkeypatch.setattr(predict.cached, "load", lambda weights: trained)
    monkeypatch.setattr(predict, "Detector", DatasetDetector)
    return given


def predict_dataset(folder, tmp_path, *flags):
    argv = ["predict", "--weights=run", f"--data={folder}", f"--output={tmp_path}/out", *flags]
    status = run_command(predict.COMMAND, argv)
    return status, json.loads((tmp_path / "out/detections.json").read_text())


def test_a_dataset_has_its_own_ids_of_images_and_of_categories_by_name(
    dataset, given, tmp_path, capsys
):
    status, results = predict_dataset(dataset("cow", "dog", "cat"), tmp_path)
    assert status == 0
    names = [(entry["image_id"], entry["file_name"]) for entry in results]
    assert names == [pair for pair in IMAGES.items() for _ in range(2)]
    assert [entry["category_id"] for entry in results] == [7, 6] * 3  # cat, dog
    assert results[0]["bbox"] == [3, 2, 27, 18]
    assert given["categories"] == ["dog", "cat", "cow"]
    assert given["score_threshold"] == 0.125  # of the config, as in an evaluation
    printed = capsys.readouterr().out
    assert f"images in {tmp_path}/mine/images; all images are used\n" in printed
    assert "same name" not in printed
    drawings = {path.name for path in (tmp_path / "out").glob("*.jpg")}
    assert drawings == {"a.jpg", "b.jpg", "c.jpg"}


def test_only_categories_of_the_same_name_are_detected(dataset, given, tmp_path, capsys):
    predict_dataset(dataset("cat", "hen"), tmp_path, "--score_threshold=0.5")
    assert given["categories"] == ["cat"]
    assert given["score_threshold"] == 0.5
    assert (
        "categories: the detector has 3 and the dataset 2, of which 1 have the same name; only "
        "these are detected\n"
    ) in capsys.readouterr().out


def test_an_image_of_a_dataset_that_is_missing_later_is_named(dataset, given, tmp_path, capsys):
    """As other images are; those that are missing from the beginning are an error."""
    folder = dataset("cat")
    opened = predict.datasets.open_evaluation

    def open_and_remove(config, workdir):
        source = opened(config, workdir)
        (folder / "images/a.png").unlink()
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict.datasets, "open_evaluation", open_and_remove)
        status, results = predict_dataset(folder, tmp_path)
    assert status == 1
    assert {entry["image_id"] for entry in results} == {900, 2**40}
    assert "1 of 3 images could not be read:\n  " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        (("hen",), (), "has none of the detector's categories: the dataset has hen, "),
        (("hen",), (), "run has dog, cat, cow; give a dataset with the same names."),
        (("cat", "hen"), ("--categories=dog",), "--categories=dog: not in "),
        (("cat", "hen"), ("--categories=dog",), "its categories are 5 cat, 6 hen."),
        (("cat",), ("a.jpg",), " and a.jpg both name images; give one."),
    ],
)
@pytest.mark.usefixtures("given")
def test_mistakes_with_a_dataset_are_errors_of_one_line(
    error_line, dataset, tmp_path, names, flags, message
):
    folder = dataset(*names)
    line = error_line(
        "predict", "--weights=run", f"--data={folder}", f"--output={tmp_path}/out", *flags
    )
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset_is_named(error_line, given, tmp_path):
    flags = (f"--data={tmp_path / 'none'}", f"--output={tmp_path}/out")
    assert "none" in error_line("predict", "--weights=run", *flags)
