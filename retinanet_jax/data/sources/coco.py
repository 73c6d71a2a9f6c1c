"""COCO's own format: one JSON of instances beside a folder of pictures (cocodataset.org)."""

import functools
import json
import os
import pathlib
from typing import Any

from retinanet_jax.data.sources.instances import InstancesSource


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
