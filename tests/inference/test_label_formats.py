"""Detections that are written as labels are read back as a dataset with the same boxes."""

import csv
import json
import logging
import os
import pathlib
import types

import numpy as np
import pytest
import yaml
from PIL import Image

from retinanet_jax import datasets
from retinanet_jax.config import default_config
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.sources.base import Category, subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference import predictions
from retinanet_jax.inference.crops import crop
from retinanet_jax.inference.drawings import drawing_names
from retinanet_jax.inference.formats import FORMATS
from retinanet_jax.inference.names import MAX_BYTES, safe_name, unique_names
from retinanet_jax.utils.output_folder import OutputFolder

# Ids that are no positions; the last category never occurs.
CATEGORIES = (Category(3, "dog, wet"), Category(7, 'cat "Tom"'), Category(90, "\u00e9l\u00e9phant"))
# x0, y0, x1, y1, score and class; the fourth is too uncertain, the fifth has no area in the image.
DETECTED = [
    (0.0, 0.0, 60.0, 40.0, 0.9, 0),
    (3.1, 2.7, 30.123456, 20.0, 0.8, 1),
    (33.3, 11.1, 61.5, 45.0, 0.5, 1),
    (1.0, 1.0, 9.0, 9.0, 0.49, 1),
    (60.0, 1.0, 61.0, 9.0, 0.7, 0),
]
LABELS = {(0, 0, 40, 60, "dog, wet"), (2.7, 3.1, 20, 30.123456, 'cat "Tom"')}
LABELS |= {(11.1, 33.3, 40, 60, 'cat "Tom"')}


class KnownDetector:
    """A detector that finds DETECTED in each image that is not black."""

    checkpoint = types.SimpleNamespace(categories=CATEGORIES)

    def batch_with_errors(self, images, batch_size):
        for path in images:
            try:
                image = read_image(path)
            except ValueError as error:
                yield error
                continue
            rows = np.float32(DETECTED if image.any() else np.zeros((0, 6)))
            classes = rows[:, 5].astype(int)
            yield Detections(image, rows[:, :4], rows[:, 4], classes, CATEGORIES)


def save(path: pathlib.Path, *, is_black: bool = False, **options) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), (0, 0, 0) if is_black else (90, 80, 70)).save(path, **options)
    return path


@pytest.fixture
def images(tmp_path) -> list[pathlib.Path]:
    """Images with names that a format could confuse, one rotated by EXIF, one without objects."""
    folder = tmp_path / "my photos, 2026"
    names = [
        "a.png",
        "deep/a.png",
        "a.jpg",
        "a-2.png",
        "deep/c, d.png",
        "\u00e4 %20;'\u202f.PNG",
        "#x.png",
    ]
    paths = [save(folder / name) for name in names]
    paths.append(save(folder / "nothing.png", is_black=True))
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a rotation by 90 degrees
    rotated = Image.new("RGB", (40, 60), (90, 80, 70))
    rotated.save(folder / "rotated.jpg", exif=exif)
    return [*paths, folder / "rotated.jpg"]


def predict(output, paths, formats, **options):
    """Write labels; return the errors of images."""
    images = predictions.input_files(paths)
    return predictions.predict_images(
        KnownDetector(), images, output, draw_threshold=None, formats=formats, **options
    )


def open_labels(path: pathlib.Path):
    """Open a dataset as `train --data=PATH` does."""
    config = default_config()
    config.data.validation_fraction = 0.0
    datasets.use_dataset(config, path, ["data.validation_fraction"])
    return datasets.open_source(config, "train", path)


def labels_of(source, index) -> set:
    boxes, classes, crowd = source.annotations(index)
    assert not crowd.any()
    names = [source.categories[k].name for k in classes]
    # The third digit is rounded off.
    return {(*box, name) for box, name in zip(np.round(boxes, 4).tolist(), names, strict=True)}


def rounded(labels) -> set:
    return {(*np.float32(np.round(label[:4], 4)).tolist(), label[4]) for label in labels}


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_read_back_as_they_were_written(images, tmp_path, name, caplog):
    """Without copies of the images, and by the folder that --output names."""
    assert predict(tmp_path / "out", images, [name]) == []
    with caplog.at_level(logging.WARNING):
        source = open_labels(tmp_path / "out")
    # YOLO has fractions of the image, which do not show whether its orientation was applied.
    assert [record for record in caplog.records if name != "yolo"] == []
    assert len(source) == len(images)
    files = [os.path.realpath(source.path(index)) for index in range(len(source))]
    assert sorted(files) == sorted(map(str, images))
    for index, file in enumerate(files):
        expected = set() if file.endswith("nothing.png") else rounded(LABELS)
        assert {(*np.float32(b[:4]).tolist(), b[4]) for b in labels_of(source, index)} == expected
        assert source.image(index).shape == (40, 60, 3)
    names = [category.name for category in source.categories]
    assert set(names) == {category.name for category in CATEGORIES[: 2 if name == "labelme" else 3]}
    if name in ("coco", "csv"):
        assert source.categories == CATEGORIES


@pytest.fixture
def written(tmp_path):
    """`written(*names, formats, ...)`: the output folder after predicting images of these names."""

    def written(*names, formats=tuple(FORMATS), **options):
        paths = [tmp_path / "photos" / name for name in names]
        for path in paths:
            if not path.exists():
                save(path)
        assert predict(tmp_path / "out", paths, formats, **options) == []
        return tmp_path / "out"

    return written


def test_files_that_other_tools_read(written):
    """Literals of each format, for one image."""
    output = written("a.png")
    path = "../../photos/a.png"
    assert (output / "yolo/images/a.png").readlink() == pathlib.Path("../../../photos/a.png")
    assert yaml.safe_load((output / "yolo/data.yaml").read_text()) == {
        "train": "train.txt",
        "names": {0: "dog, wet", 1: 'cat "Tom"', 2: "\u00e9l\u00e9phant"},
    }
    assert (output / "yolo/train.txt").read_text() == "./images/a.png\n"
    assert (output / "yolo/classes.txt").read_text().splitlines()[1] == 'cat "Tom"'
    first, second, _ = (output / "yolo/labels/a.txt").read_text().splitlines()
    assert first == "0 0.50000000 0.50000000 1.00000000 1.00000000"
    assert second.startswith("1 0.27686")  # (3.1 + 30.123456) / 2 / 60

    content = json.loads((output / "coco/instances.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": path, "height": 40, "width": 60}]
    assert content["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 3,
        "bbox": [0, 0, 60, 40],
        "area": 2400,
        "iscrowd": 0,
        "score": pytest.approx(0.9),
    }
    header, row, *_ = csv.reader((output / "csv/boxes.csv").read_text().splitlines())
    assert ",".join(header) == "filename,width,height,class,xmin,ymin,xmax,ymax"
    assert row == [path, "60", "40", "dog, wet", "0.0", "0.0", "60.0", "40.0"]

    content = json.loads((output / "labelme/a.json").read_text())
    assert content["imagePath"] == path
    assert (content["imageHeight"], content["imageWidth"]) == (40, 60)
    assert content["shapes"][0]["points"] == [[0, 0], [60, 40]]
    assert content["shapes"][0]["shape_type"] == "rectangle"


def test_only_the_detections_of_the_threshold_are_labels(written, capsys):
    output = written("a.png", formats=["coco"], label_threshold=0.85)
    annotations = json.loads((output / "coco/instances.json").read_text())["annotations"]
    assert [annotation["category_id"] for annotation in annotations] == [3]
    line = f"1 label with a score of 0.85 or more in 1 image: {output / 'coco'}"
    assert line in capsys.readouterr().out
    assert len(json.loads((output / "detections.json").read_text())) == len(DETECTED)


def test_an_image_that_cannot_be_read_is_no_image_without_objects(tmp_path):
    paths = [save(tmp_path / "a.png"), tmp_path / "b.png"]
    paths[1].write_text("not an image")
    (error,) = predict(tmp_path / "out", paths, list(FORMATS))
    assert "b.png" in error
    for name in FORMATS:
        assert len(open_labels(tmp_path / "out" / name)) == 1


def test_labels_that_were_corrected_are_not_replaced(written):
    """They are an error before any image is read; others are replaced."""
    output = written("a.png", "b.png", formats=["labelme", "yolo"])
    written("a.png", "b.png", formats=["labelme", "yolo"], label_threshold=0.85)
    (label,) = (output / "yolo/labels/a.txt").read_text().splitlines()
    assert label.startswith("0 ")
    for name in ("labelme/a.json", "yolo/labels/b.txt"):
        before = (output / name).read_text()
        (output / name).write_text(corrected := before + " ")
        (output / "detections.json").unlink(missing_ok=True)
        with pytest.raises(FileExistsError, match=f"out/{name} is not replaced"):
            written("a.png", "b.png", formats=["labelme", "yolo"])
        assert (output / name).read_text() == corrected
        assert not (output / "detections.json").exists()
        (output / name).write_text(before)


def test_labels_of_other_images_stay_and_are_not_read(written):
    output = written("a.png", formats=["yolo"])
    written("b.png", formats=["yolo"])
    assert sorted(path.name for path in (output / "yolo/labels").iterdir()) == ["a.txt", "b.txt"]
    assert len(open_labels(output)) == 1


def test_without_links_the_images_are_copied(written, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "symlink_to", no_links)
    image = written("a.png", formats=["yolo"]) / "yolo/images/a.png"
    assert not image.is_symlink()
    assert image.read_bytes() == (tmp_path / "photos/a.png").read_bytes()
    assert len(open_labels(tmp_path / "out")) == 1


def test_images_in_the_output_folder_are_labeled_where_they_are(written, tmp_path):
    """As in a second run on the dataset of the first one."""
    output = written("a.png", formats=["yolo"])
    image = output / "yolo/images/a.png"
    assert predict(output, [image], ["yolo"]) == []
    assert image.resolve() == tmp_path / "photos/a.png"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/a.jpg", r"^https://example.org/a.jpg: is no image file, to which"),
        ("a\nb.png", r"a\\nb.png': the files of --format cannot contain this path"),
        ("a.png ", r"a.png ': the files of --format cannot contain this path"),
        (os.fsdecode(b"\xff.png"), r"udcff.png': the files of --format cannot contain this path"),
    ],
)
def test_an_image_that_labels_cannot_name_is_an_error_before_any_work(tmp_path, name, message):
    path = tmp_path / "nowhere" if "//" in name else tmp_path / name
    if "//" not in name:
        save(tmp_path / "image.png").rename(path)
    image = predictions.InputImage(path, 1, name, path)
    with pytest.raises(ValueError, match=message):
        predictions.predict_images(KnownDetector(), [image], tmp_path / "out", formats=["coco"])
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_suffix_is_read_in_a_yolo_dataset(written, tmp_path):
    save(tmp_path / "photos/a.png").rename(tmp_path / "photos/a")
    written("a", formats=["yolo"])
    assert open_labels(tmp_path / "out").file_names == ["images/a.jpg"]


def test_labels_of_a_dataset_have_its_ids(tmp_path, synthetic_dataset):
    source = subset(
        CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images"), [4, 2]
    )
    images = predictions.input_dataset(source)
    images = [image._replace(image=image.path) for image in images]
    output = tmp_path / "out"
    predictions.predict_images(
        KnownDetector(), images, output, draw_threshold=None, formats=["coco"]
    )
    labels = open_labels(output)
    assert labels.image_ids == source.image_ids
    assert [labels.path(index).resolve() for index in (0, 1)] == [
        source.path(index).resolve() for index in (0, 1)
    ]


def test_labelme_labels_mean_the_images_that_they_list(tmp_path):
    """Not those of the same names in a folder next to them."""
    other = save(tmp_path / "images/a.png", is_black=True)
    image = save(tmp_path / "new/a.png")
    assert predict(tmp_path, [image], ["labelme"]) == []
    source = open_labels(tmp_path / "labelme")
    assert os.path.realpath(source.path(0)) == str(image) != str(other)


def test_categories_may_have_names_like_those_of_openimages(tmp_path, monkeypatch):
    categories = (Category(1, "/m/0bt9lr"), Category(2, "/m/01yrx"), Category(3, "class"))
    monkeypatch.setattr(KnownDetector, "checkpoint", types.SimpleNamespace(categories=categories))
    predict(tmp_path / "out", [save(tmp_path / "a.png")], ["csv", "yolo", "coco"])
    for name in ("csv", "yolo", "coco"):
        source = open_labels(tmp_path / "out" / name)
        assert [category.name for category in source.categories] == [c.name for c in categories]


# ---- crops


def crops_in(output: pathlib.Path) -> dict[str, tuple[int, int]]:
    sizes = {}
    for path in sorted((output / "crops").rglob("*.jpg")):
        with Image.open(path) as image:
            sizes[path.relative_to(output / "crops").as_posix()] = image.size
    return sizes


def test_a_crop_is_what_a_detection_shows_in_the_folder_of_its_category(written):
    output = written("a.png", "deep/a.png", formats=[], save_crops=True)
    assert crops_in(output) == {
        "dog, wet/a_1.jpg": (60, 40),
        "dog, wet/a-2_1.jpg": (60, 40),
        "cat _Tom_/a_2.jpg": (28, 18),  # from 3 to 31 and from 2 to 20
        "cat _Tom_/a_3.jpg": (27, 29),  # from 33 to 60 and from 11 to 40
        "cat _Tom_/a-2_2.jpg": (28, 18),
        "cat _Tom_/a-2_3.jpg": (27, 29),
    }
    written("b.png", formats=[], save_crops=True, label_threshold=0.85)
    assert crops_in(output) == {"dog, wet/b_1.jpg": (60, 40)}


def test_the_pixels_of_a_crop_are_those_that_the_box_overlaps():
    image = np.arange(40 * 60).reshape(40, 60)
    assert crop(image, np.float32([3.1, 2.7, 5, 4])).tolist() == [
        [2 * 60 + 3, 2 * 60 + 4],
        [3 * 60 + 3, 3 * 60 + 4],
    ]
    assert crop(image, np.float32([-5, -5, 2, 1])).tolist() == [[0, 1]]
    assert crop(image, np.float32([60, 0, 70, 9])).size == 0


def test_crops_next_to_a_users_file_are_an_error_before_any_work(written):
    output = written("a.png", formats=[], save_crops=True)
    before = crops_in(output)
    (output / "crops/mine.jpg").write_text("mine")
    (output / "detections.json").unlink()
    with pytest.raises(FileExistsError, match=r"crops/mine\.jpg is not replaced"):
        written("b.png", formats=[], save_crops=True)
    assert (output / "crops/mine.jpg").read_text() == "mine"
    (output / "crops/mine.jpg").unlink()
    assert crops_in(output) == before


# ---- names


def test_names_differ_also_where_the_case_is_ignored():
    assert unique_names(["a", "A", "b", "a"]) == ["a", "A-2", "b", "a-3"]
    # A file keeps its own name, which no other file takes.
    assert unique_names(["a", "a", "a-2"]) == ["a", "a-3", "a-2"]
    assert unique_names(["a", "b"], lambda name: name != "a") == ["a-2", "b"]


def test_names_are_valid_on_every_system():
    assert safe_name("dog, wet") == "dog, wet"
    assert safe_name("../a\\b:c\n") == "_a_b_c_"
    assert safe_name(os.fsdecode(b"\xff")) == "_"
    assert safe_name(" .. ") == "_"
    assert len(safe_name("\u00e9" * 300).encode()) == MAX_BYTES


def test_a_long_name_is_cut_so_that_a_number_can_be_added(tmp_path):
    long = "\u00e9" * 125  # a file system allows 255 bytes with the suffix
    paths = [tmp_path / folder / f"{long}.png" for folder in ("a", "b")]
    short = long[: MAX_BYTES // 2]
    assert drawing_names(paths, OutputFolder(tmp_path)) == [f"{short}.jpg", f"{short}-2.jpg"]
    not_utf8 = os.fsdecode(b"\xff" + b"a" * 100)
    assert drawing_names([tmp_path / not_utf8], OutputFolder(tmp_path)) == [f"{not_utf8}.jpg"]
