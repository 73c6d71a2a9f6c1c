"""COCO's own format: one JSON of instances beside a folder of pictures (cocodataset.org)."""

import functools
import json
import os
import pathlib
from typing import Any

from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.instances import InstancesSource

# In the order of their ids; of the numbers from 1 to 90 ten stand for nothing.
_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, "
    "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORIES = tuple(
    Category(number, name)
    for number, name in zip(
        (number for number in range(1, 91) if number not in _GAPS), _NAMES.split(", "), strict=True
    )
)


class CocoSource(InstancesSource):
    """Pictures and boxes of a COCO JSON.

    annotations: the JSON. images: the folder that its `file_name`s are relative to.
    `ground_truth` reads the JSON anew: a training run has no use for its polygons in memory.
    Raises as `InstancesSource` does, and FileNotFoundError where the JSON is missing.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        load = functools.partial(load_instances, pathlib.Path(annotations))
        super().__init__(str(annotations), load, images)


def load_instances(path: pathlib.Path) -> dict[str, Any]:
    """The JSON's content; FileNotFoundError or ValueError where it is not there or not COCO's."""
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
