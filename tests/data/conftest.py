"""Datasets of COCO and Pascal VOC that tests modify, and a measurement of memory."""

import gc
import io
import json
import pathlib
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from seeded_images import encode_image
from voc_files import Devkit

from retinanet_jax.data.sources.coco import CocoSource


@pytest.fixture
def encode():
    """Return `encode_image`, which encodes pixels as the bytes of a file."""
    return encode_image


class CocoFolder:
    """A COCO JSON and its images on disk; tests modify `content` and then call `load`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.images = path / "images"
        self.images.mkdir(parents=True)
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        }

    def add_image(self, height: int, width: int, data: bytes | None = None) -> int:
        image_id = len(self.content["images"]) + 1
        name = f"{image_id}.img"
        if data is None:
            data = encode_image(np.full((height, width, 3), image_id, np.uint8))
        (self.images / name).write_bytes(data)
        image = {"id": image_id, "file_name": name, "height": height, "width": width}
        self.content["images"].append(image)
        return image_id

    def add_box(self, image_id: int, bbox: list, category_id: int = 3, **fields) -> int:
        annotation_id = len(self.content["annotations"]) + 101
        annotation = {"id": annotation_id, "image_id": image_id, "bbox": bbox}
        self.content["annotations"].append(annotation | {"category_id": category_id} | fields)
        return annotation_id

    def load(self) -> CocoSource:
        path = self.path / "instances.json"
        path.write_text(json.dumps(self.content))
        return CocoSource(path, self.images)


@pytest.fixture
def folder(tmp_path) -> CocoFolder:
    return CocoFolder(tmp_path / "data")


@pytest.fixture(scope="session")
def image() -> bytes:
    """Return a JPEG file of 60 x 40 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def devkit(tmp_path, image) -> Devkit:
    return Devkit(tmp_path / "VOC2007", image)


@pytest.fixture
def measure_memory():
    """Return a function that calls `make` and returns the result and the bytes that it takes."""

    def measure(make):
        make()  # imports and caches
        gc.collect()
        tracemalloc.start()
        try:
            result = make()
            gc.collect()
            return result, tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    return measure
