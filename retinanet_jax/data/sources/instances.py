"""The base class of datasets of image files, which checks their content in COCO's JSON format."""

import collections
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from absl import logging
from jaxtyping import Float64

from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.data.sources.boxes import OUTSIDE, WITHOUT_AREA, clip_to_image
from retinanet_jax.data.sources.image_folder import check_files_exist

SIDES = ("height", "width")


class InstancesSource(Source):
    """Images in a folder, with boxes in COCO's JSON format.

    Everything is checked when the source is opened, before a run begins. Boxes without an area
    inside their image are left out of training, and boxes that extend beyond their image are
    clipped; warnings report how many. `ground_truth` contains all boxes unchanged.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], dict[str, Any]],
        images: str | os.PathLike,
        *,
        label: Callable[[int], str] = "annotation id {}".format,
    ):
        """Load and check the content.

        Args:
            name: The file that lists the images, for messages.
            load: Returns a dict with `images`, `categories` and `annotations` in COCO's JSON
                format. It is called now and for every `ground_truth`.
            images: The folder that the `file_name`s are relative to.
            label: Returns the name, for messages, of the annotation with an id.

        Raises:
            FileNotFoundError: If the folder or images are missing.
            ValueError: If the content contradicts itself.
        """
        self.name = name
        self._load = load
        self._folder = pathlib.Path(images)
        self._annotation_label = label
        content = load()
        self._read_images(content["images"])
        self._read_categories(content["categories"])
        self._read_boxes(content["annotations"])
        check_files_exist(self.name, self._folder, self._file_names)

    def annotations(self, index: int) -> Annotations:
        """Return the objects of the image at `index`, except boxes without an area."""
        return self._annotations[index]

    def file_name(self, index: int) -> str:
        """Return the path of the image at `index`, relative to the image folder."""
        return self._file_names[index]

    def read(self, index: int) -> bytes:
        """Return the content of the image file at `index`.

        Raises:
            FileNotFoundError: If the file is missing.
        """
        path = self._folder / self._file_names[index]
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: the image of id {self.image_ids[index]} is missing; restore it, or "
                f"remove it from {self.name}."
            ) from None

    def ground_truth(self) -> dict[str, Any]:
        """Return the content, with `area` and `iscrowd` added where they are missing."""
        content = self._load()
        annotations = [complete_annotation(annotation) for annotation in content["annotations"]]
        return {**content, "annotations": annotations}

    def _read_images(self, images: list[dict]) -> None:
        """Check the images and store their ids, file names and sizes."""
        if not images:
            raise ValueError(f"{self.name}: has no images; give a file that lists some.")
        self.image_ids = self._unique_ids("image", images)
        self._file_names = [self._field("image", image, "file_name", str) for image in images]
        self.sizes = np.array(
            [[self._field("image", image, side, int) for side in SIDES] for image in images],
            np.int32,
        )
        if (self.sizes < 1).any():
            index = int(np.flatnonzero((self.sizes < 1).any(axis=1))[0])
            raise ValueError(
                f"{self.name}: image id {self.image_ids[index]} has height and width "
                f"{self.sizes[index].tolist()}; both must be at least 1: correct them."
            )

    def _read_categories(self, categories: list[dict]) -> None:
        """Check the categories and store them sorted by id."""
        if not categories:
            raise ValueError(f"{self.name}: has no categories; give it at least one.")
        ids = self._unique_ids("category", categories)
        names = [self._field("category", category, "name", str) for category in categories]
        repeated = [name for name, count in collections.Counter(names).items() if count > 1]
        if repeated:
            raise ValueError(
                f"{self.name}: {len(repeated)} names belong to several categories, first "
                f"{repeated[0]!r}; give each category a different name."
            )
        self.categories = tuple(sorted(map(Category, ids, names)))

    def _read_boxes(self, annotations: list[dict]) -> None:
        """Check the annotations and store those with an area, clipped to their images."""
        self._unique_ids("annotation", annotations)
        index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}
        class_of = {category.id: k for k, category in enumerate(self.categories)}
        objects, without_area, outside = collections.defaultdict(list), [], []
        for annotation in annotations:
            image_id = self._field("annotation", annotation, "image_id", int)
            category_id = self._field("annotation", annotation, "category_id", int)
            if image_id not in index_of:
                self._raise(annotation, f"image_id={image_id}, which `images` does not list")
            if category_id not in class_of:
                self._raise(
                    annotation, f"category_id={category_id}, which `categories` does not list"
                )
            index = index_of[image_id]
            box, has_area, is_outside = clip_to_image(self._box(annotation), self.sizes[index])
            if not has_area:
                without_area.append(annotation)
                continue
            if is_outside:
                outside.append(annotation)
            crowd = bool(annotation.get("iscrowd"))
            objects[index].append((box, class_of[category_id], crowd))
        self._warn(without_area, WITHOUT_AREA)
        self._warn(outside, OUTSIDE)
        self._annotations = [_stack(objects[index]) for index in range(len(self))]

    def _box(self, annotation: dict) -> Float64[np.ndarray, " 4"]:
        """Return the box as yxyx, in float64 so that the exact numbers of the file are checked."""
        xywh = self._field("annotation", annotation, "bbox", list)
        if len(xywh) != 4 or not all(
            isinstance(value, int | float) and math.isfinite(value) for value in xywh
        ):
            self._raise(annotation, f"bbox={xywh}, not four finite numbers [x, y, w, h]")
        x, y, width, height = xywh
        if width < 0 or height < 0:
            self._raise(annotation, f"bbox={xywh} with a negative size; it is [x, y, w, h]")
        return np.array([y, x, y + height, x + width], np.float64)

    def _unique_ids(self, entry_type: str, entries: list[dict]) -> list[int]:
        """Return the ids of all entries; raise ValueError if two are equal."""
        ids = [self._field(entry_type, entry, "id", int) for entry in entries]
        if len(set(ids)) < len(ids):
            repeated = collections.Counter(ids).most_common(1)[0][0]
            raise ValueError(
                f"{self.name}: {entry_type} id {repeated} occurs twice; make ids unique."
            )
        return ids

    def _field(self, entry_type: str, entry: dict, name: str, expected: type) -> Any:
        """Return a field of an entry; raise ValueError if it is not of the expected type."""
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, expected):
            problem = f"{name}={value!r}" if value is not None else f"no `{name}`"
            raise ValueError(
                f"{self.name}: {self._label(entry_type, entry)} has {problem}; give it a "
                f"`{name}` of type {expected.__name__}."
            )
        return value

    def _raise(self, annotation: dict, problem: str) -> NoReturn:
        label = self._label("annotation", annotation)
        raise ValueError(f"{self.name}: {label} has {problem}; correct or remove it.")

    def _warn(self, annotations: list[dict], problem: str) -> None:
        """Log a warning with the number of annotations and the label of the first."""
        if annotations:
            first = self._label("annotation", annotations[0])
            logging.warning(
                "%s: %d boxes %s (first: %s).", self.name, len(annotations), problem, first
            )

    def _label(self, entry_type: str, entry: Any) -> str:
        """Return the label of an entry in messages: its id and, for an annotation, the file."""
        if not isinstance(entry, dict) or "id" not in entry:
            return f"{entry_type} {str(entry)[:60]}"
        if entry_type != "annotation":
            return f"{entry_type} id {entry['id']}"
        image_id, file = entry.get("image_id"), ""
        if image_id in self.image_ids:
            file = f" ({self._file_names[self.image_ids.index(image_id)]})"
        return f"{self._annotation_label(entry['id'])}{file}"


def complete_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with `area` and `iscrowd`, which pycocotools needs and a file may lack."""
    area = annotation.get("area")
    if area is None:
        area = annotation["bbox"][2] * annotation["bbox"][3]
    return {**annotation, "area": area, "iscrowd": int(annotation.get("iscrowd") or 0)}


def _stack(objects: list[tuple[np.ndarray, int, bool]]) -> Annotations:
    """Stack the (box, class, crowd) of an image's objects; there may be no objects."""
    return Annotations(
        boxes=np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        classes=np.array([k for _, k, _ in objects], np.int32),
        crowd=np.array([crowd for _, _, crowd in objects], bool),
    )
