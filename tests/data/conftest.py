"""A COCO data set of a few pictures, to be bent by the tests."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data.sources.coco import CocoSource


def encode_picture(
    pixels: np.ndarray, kind: str = "PNG", *, mode: str | None = None, orientation: int = 1, **more
) -> bytes:
    picture = Image.fromarray(pixels)
    if mode:
        picture = picture.convert(mode)
    if orientation != 1:
        tags = Image.Exif()
        tags[0x0112] = orientation
        more["exif"] = tags.tobytes()
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


@pytest.fixture
def encode():
    """`encode_picture`: pixels to the bytes of a file."""
    return encode_picture


class Folder:
    """A COCO JSON and its pictures on disk; change `content`, then `load`."""

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
        number = len(self.content["images"]) + 1
        name = f"{number}.img"
        if data is None:
            data = encode_picture(np.full((height, width, 3), number, np.uint8))
        (self.images / name).write_bytes(data)
        image = {"id": number, "file_name": name, "height": height, "width": width}
        self.content["images"].append(image)
        return number

    def add_box(self, image_id: int, bbox: list, category_id: int = 3, **more) -> int:
        number = len(self.content["annotations"]) + 101
        self.content["annotations"].append(
            {"id": number, "image_id": image_id, "bbox": bbox, "category_id": category_id} | more
        )
        return number

    def load(self) -> CocoSource:
        path = self.path / "instances.json"
        path.write_text(json.dumps(self.content))
        return CocoSource(path, self.images)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "data")
