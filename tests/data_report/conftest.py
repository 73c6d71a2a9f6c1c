"""Datasets that are written box by box, and a config that reads them."""

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from retinanet_jax.configs import r50_fpn

CATEGORIES = {"cat": 3, "dog": 7, "ant": 8, "snake": 9, "newt": 11, "unicorn": 40}


class DatasetFolder:
    """A folder of images with their COCO JSON, written box by box."""

    categories = CATEGORIES

    def __init__(self, path: pathlib.Path):
        self.path = path
        (path / "images").mkdir(parents=True)
        self.images, self.annotations = [], []

    def add_image(self, height=96, width=128) -> int:
        """Write an image that differs from all others; return its id."""
        image_id = len(self.images) + 1
        seed = [image_id, len(str(self.path))]
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(self.path / "images" / f"{image_id}.png")
        image = {"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
        self.images.append(image)
        return image_id

    def add_box(self, image_id, bbox, name="cat", **fields) -> int:
        """Add an annotation; return its id."""
        annotation_id = len(self.annotations) + 101
        annotation = {"id": annotation_id, "image_id": image_id, "bbox": bbox}
        self.annotations.append(annotation | {"category_id": CATEGORIES[name]} | fields)
        return annotation_id

    def write(self) -> dict[str, str]:
        """Write the JSON; return the fields of config.data.train or config.data.eval to read it."""
        categories = [{"id": value, "name": name} for name, value in CATEGORIES.items()]
        content = {"images": self.images, "annotations": self.annotations}
        path = self.path / "instances.json"
        path.write_text(json.dumps({**content, "categories": categories}))
        return {"source": "coco", "annotations": str(path), "images": str(self.path / "images")}


@pytest.fixture(scope="session")
def make_dataset() -> Callable[[pathlib.Path], DatasetFolder]:
    """Return a function `path -> DatasetFolder`."""
    return DatasetFolder


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ConfigDict]:
    """Return a function `(train fields, eval fields, **other fields of data) -> config`.

    Images of 96 x 128 are resized to 64 x 85.
    """

    def make(train, evaluation, **data) -> ConfigDict:
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

    return make
