"""Detections that are written as labels are read back as a dataset with the same boxes."""

import json
import logging
import os
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import datasets
from retinanet_jax.config import default_config
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference import predictions
from retinanet_jax.inference.formats import FORMATS
from retinanet_jax.inference.names import MAX_BYTES, safe_name, unique_names

# Ids that are no positions; the last category never occurs.
CATEGORIES = (Category(3, "dog, wet"), Category(7, 'cat "Tom"'), Category(90, "\u00e9l\u00e9phant"))
# x0, y0, x1, y1, score and class; the fourth is too uncertain, the fifth has no area in the image.
FOUND = [
    (0.0, 0.0, 60.0, 40.0, 0.9, 0),
    (3.1, 2.7, 30.123456, 20.0, 0.8, 1),
    (33.3, 11.1, 61.5, 45.0, 0.5, 1),
    (1.0, 1.0, 9.0, 9.0, 0.49, 1),
    (60.0, 1.0, 61.0, 9.0, 0.7, 0),
]
LABELS = {(0, 0, 40, 60, "dog, wet"), (2.7, 3.1, 20, 30.123456, 'cat "Tom"')}
LABELS |= {(11.1, 33.3, 40, 60, 'cat "Tom"')}


class KnownDetector:
    """A detector that finds FOUND in each image that is not black."""

    checkpoint = types.SimpleNamespace(categories=CATEGORIES)

    def batch_with_errors(self, images, batch_size):
        for path in images:
            try:
                image = read_image(path)
            except ValueError as error:
                yield error
                continue
            found = np.float32(FOUND if image.any() else np.zeros((0, 6)))
            classes = found[:, 5].astype(int)
            yield Detections(image, found[:, :4], found[:, 4], classes, CATEGORIES)


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
        "\u00e4 %20;'.PNG",
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
