"""COCO's own format: a JSON file of instances and a folder of images (https://cocodataset.org)."""

import collections
import json
import math
import os
import pathlib
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int32

from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.image_folder import ImageFolderSource, check_files_exist
from retinanet_jax.data.sources.instances import ObjectList, Objects

SIDES = ("height", "width")
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


class CocoSource(ImageFolderSource):
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
        self._path = pathlib.Path(annotations)
        content = _Content(str(annotations), load_instances(self._path))
        super().__init__(
            str(annotations),
            pathlib.Path(images),
            image_ids=content.image_ids,
            file_names=content.file_names,
            sizes=content.sizes,
            categories=content.categories,
        )
        self._set_objects(content.objects(), content.annotation_label)
        check_files_exist(self.name, self._folder, content.file_names)

    def ground_truth(self) -> dict[str, Any]:
        """Return the content of the file, with `area` and `iscrowd` where they are missing."""
        content = load_instances(self._path)
        annotations = [complete_annotation(annotation) for annotation in content["annotations"]]
        return {**content, "annotations": annotations}


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


def complete_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with `area` and `iscrowd`, which pycocotools needs and a file may lack."""
    area = annotation.get("area")
    if area is None:
        area = annotation["bbox"][2] * annotation["bbox"][3]
    return {**annotation, "area": area, "iscrowd": int(annotation.get("iscrowd") or 0)}


class _Content:
    """The content of a COCO JSON file; every entry is checked."""

    def __init__(self, name: str, content: dict[str, Any]):
        """Check the images and the categories; `objects` checks the annotations."""
        self._name = name
        self._annotations = content["annotations"]
        images, categories = content["images"], content["categories"]
        self.image_ids = self._unique_ids("image", images)
        self.file_names = [self._field("image", image, "file_name", str) for image in images]
        self._index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}
        self.sizes = self._sizes(images)
        ids = self._unique_ids("category", categories)
        names = [self._field("category", category, "name", str) for category in categories]
        self.categories = sorted(map(Category, ids, names))

    def objects(self) -> Objects:
        """Check the annotations; the id of an object is its position, since any ids are allowed."""
        self._unique_ids("annotation", self._annotations)
        class_of = {category.id: k for k, category in enumerate(self.categories)}
        objects = ObjectList()
        for position, annotation in enumerate(self._annotations):
            image_id = self._field("annotation", annotation, "image_id", int)
            category_id = self._field("annotation", annotation, "category_id", int)
            if image_id not in self._index_of:
                self._raise(annotation, f"image_id={image_id}, which `images` does not list")
            if category_id not in class_of:
                self._raise(
                    annotation, f"category_id={category_id}, which `categories` does not list"
                )
            objects.append(
                position,
                self._index_of[image_id],
                class_of[category_id],
                self._box(annotation),
                crowd=bool(annotation.get("iscrowd")),
            )
        return objects.to_objects()

    def annotation_label(self, position: int) -> str:
        """Return the label in messages of the annotation at a position."""
        return f"annotation id {self._annotations[position]['id']}"

    def _sizes(self, images: list[dict]) -> Int32[np.ndarray, "N 2"]:
        """Return the height and width of every image; raise ValueError if one is not positive."""
        sizes = [[self._field("image", image, side, int) for side in SIDES] for image in images]
        for image_id, size in zip(self.image_ids, sizes, strict=True):
            if min(size) < 1:
                raise ValueError(
                    f"{self._name}: image id {image_id} has height and width {size}; both must be "
                    "at least 1: correct them."
                )
        return np.array(sizes, np.int32).reshape(-1, 2)

    def _box(self, annotation: dict) -> tuple[float, float, float, float]:
        """Return the box as yxyx."""
        xywh = self._field("annotation", annotation, "bbox", list)
        if len(xywh) != 4 or not all(
            isinstance(value, int | float) and math.isfinite(value) for value in xywh
        ):
            self._raise(annotation, f"bbox={xywh}, not four finite numbers [x, y, w, h]")
        x, y, width, height = map(float, xywh)
        if width < 0 or height < 0:
            self._raise(annotation, f"bbox={xywh} with a negative size; it is [x, y, w, h]")
        return y, x, y + height, x + width

    def _unique_ids(self, entry_type: str, entries: list[dict]) -> list[int]:
        """Return the ids of all entries; raise ValueError if two are equal."""
        ids = [self._field(entry_type, entry, "id", int) for entry in entries]
        if len(set(ids)) < len(ids):
            repeated = collections.Counter(ids).most_common(1)[0][0]
            raise ValueError(
                f"{self._name}: {entry_type} id {repeated} occurs twice; make ids unique."
            )
        return ids

    def _field(self, entry_type: str, entry: dict, name: str, expected: type) -> Any:
        """Return a field of an entry; raise ValueError if it is not of the expected type."""
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, expected):
            problem = f"{name}={value!r}" if value is not None else f"no `{name}`"
            raise ValueError(
                f"{self._name}: {self._label(entry_type, entry)} has {problem}; give it a "
                f"`{name}` of type {expected.__name__}."
            )
        return value

    def _raise(self, annotation: dict, problem: str) -> NoReturn:
        label = self._label("annotation", annotation)
        raise ValueError(f"{self._name}: {label} has {problem}; correct or remove it.")

    def _label(self, entry_type: str, entry: Any) -> str:
        """Return the label of an entry in messages: its id and, for an annotation, the file."""
        if not isinstance(entry, dict) or "id" not in entry:
            return f"{entry_type} {str(entry)[:60]}"
        image_id, file = entry.get("image_id"), ""
        if isinstance(image_id, int) and image_id in self._index_of:
            file = f" ({self.file_names[self._index_of[image_id]]})"
        return f"{entry_type} id {entry['id']}{file}"
