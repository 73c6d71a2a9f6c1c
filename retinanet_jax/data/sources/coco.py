"""COCO's own format: a JSON file of instances and a folder of images (https://cocodataset.org)."""

import functools
import json
import os
import pathlib
from typing import Any

from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.instances import InstancesSource

# COCO's ids are from 1 to 90, but ten of these numbers are not used.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(category_id for category_id in range(1, 91) if category_id not in _UNUSED_IDS)
_NAMES = (  # in the order of the ids
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, "
    "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
COCO_CATEGORIES = tuple(Category(*pair) for pair in zip(COCO_IDS, _NAMES.split(", "), strict=True))


class CocoSource(InstancesSource):
    """The images and boxes of a COCO JSON file.

    `ground_truth` reads the file again, so that its polygons are not in memory during training.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        """Read and check the JSON file.

        Args:
            annotations: The JSON file.
            images: The folder that the `file_name`s in it are relative to.

        Raises:
            FileNotFoundError: If the JSON, the folder or an image is missing.
            ValueError: If the JSON is not COCO instances or contradicts itself.
        """
        load = functools.partial(load_instances, pathlib.Path(annotations))
        super().__init__(str(annotations), load, images)


def load_instances(path: pathlib.Path) -> dict[str, Any]:
    """Read a COCO JSON file without checking its entries.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON with the lists `images`, `annotations` and `categories`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such annotation file; check the path.")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); give COCO instances.") from None
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise ValueError(
                f"{path}: has no list `{section}`; give COCO instances: images, annotations, "
                "categories."
            )
    return content
