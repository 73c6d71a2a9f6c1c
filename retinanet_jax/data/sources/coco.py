"""COCO's own format: one JSON of instances beside a folder of pictures (cocodataset.org)."""

import collections
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from retinanet_jax.data.sources import Annotations, Category, Source

OUTSIDE = 1.0  # pixels a box may stand out by: what rounding does, and not worth a warning


class CocoSource(Source):
    """Pictures and boxes of a COCO JSON.

    annotations: the JSON. images: the folder that its `file_name`s are relative to.
    Everything is checked here, before a run has begun: ValueError where the JSON contradicts
    itself, FileNotFoundError where it or pictures are missing. Boxes without an area inside their
    picture are left out of training, boxes that stand out are clipped, and both are counted in a
    warning; `ground_truth` keeps them all.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        self.name = str(annotations)
        self._path = pathlib.Path(annotations)
        self._folder = pathlib.Path(images)
        content = _load(self._path)
        self._read_images(content["images"])
        self._read_categories(content["categories"])
        self._read_boxes(content["annotations"])
        self._check_pictures()

    def annotations(self, index: int) -> Annotations:
        """The objects that can be trained on."""
        return self._annotations[index]

    def file_name(self, index: int) -> str:
        """Relative to the picture folder."""
        return self._file_names[index]

    def read(self, index: int) -> bytes:
        """The file's content."""
        path = self._folder / self._file_names[index]
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: the picture of image id {self.image_ids[index]} is missing; restore it, "
                f"or remove it from {self.name}."
            ) from None

    def ground_truth(self) -> dict[str, Any]:
        """The JSON's content, read anew: a training run has no use for its polygons in memory.

        Only what pycocotools needs and the file lacks is added: `area`, `iscrowd`.
        """
        content = _load(self._path)
        for annotation in content["annotations"]:
            if annotation.get("area") is None:
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        return content

    def _read_images(self, images: list[dict]) -> None:
        if not images:
            raise ValueError(f"{self.name}: has no images; give a JSON that lists some.")
        self.image_ids = self._unique_ids("image", images)
        self._file_names = [self._field("image", image, "file_name", str) for image in images]
        self.sizes = np.array(
            [[self._field("image", image, side, int) for side in SIDES] for image in images],
            np.int32,
        )
        if (self.sizes < 1).any():
            wrong = int(np.flatnonzero((self.sizes < 1).any(axis=1))[0])
            raise ValueError(
                f"{self.name}: image id {self.image_ids[wrong]} has height and width "
                f"{self.sizes[wrong].tolist()}; both must be at least 1: correct them."
            )

    def _read_categories(self, categories: list[dict]) -> None:
        if not categories:
            raise ValueError(f"{self.name}: has no categories; list each as {{id, name}}.")
        ids = self._unique_ids("category", categories)
        names = [self._field("category", category, "name", str) for category in categories]
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"{self.name}: {len(twice)} names stand for several categories, first "
                f"{twice[0]!r}; give each category a name of its own."
            )
        self.categories = tuple(sorted(map(Category, ids, names)))

    def _read_boxes(self, annotations: list[dict]) -> None:
        ids = self._unique_ids("annotation", annotations)
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        class_of = {category.id: k for k, category in enumerate(self.categories)}
        kept, empty, clipped = collections.defaultdict(list), [], []
        for annotation_id, annotation in zip(ids, annotations, strict=True):
            image_id = self._field("annotation", annotation, "image_id", int)
            category_id = self._field("annotation", annotation, "category_id", int)
            if image_id not in row_of:
                self._refuse(annotation_id, f"image_id={image_id}, which `images` does not list")
            if category_id not in class_of:
                self._refuse(
                    annotation_id, f"category_id={category_id}, which `categories` does not list"
                )
            row = row_of[image_id]
            box = self._box(annotation_id, annotation)
            # In float32, as it will be trained on: there a hair of a box has no area either.
            inside = np.clip(box, 0, np.tile(self.sizes[row], 2)).astype(np.float32)
            if (inside[2:] <= inside[:2]).any():
                empty.append(annotation_id)
                continue
            if np.abs(inside - box).max() > OUTSIDE:
                clipped.append(annotation_id)
            crowd = bool(annotation.get("iscrowd"))
            kept[row].append((inside, class_of[category_id], crowd))
        self._warn(empty, "have no area inside their picture and are not trained on")
        self._warn(clipped, f"stand out of their picture by more than {OUTSIDE:g} pixel: clipped")
        self._annotations = [_stack(kept[row]) for row in range(len(self))]

    def _box(self, annotation_id: int, annotation: dict) -> np.ndarray:
        """From xywh to yxyx, in float64 so that the JSON's numbers are judged as they are."""
        xywh = self._field("annotation", annotation, "bbox", list)
        if len(xywh) != 4 or not all(
            isinstance(number, int | float) and math.isfinite(number) for number in xywh
        ):
            self._refuse(annotation_id, f"bbox={xywh}, not four finite numbers [x, y, w, h]")
        x, y, width, height = xywh
        if width < 0 or height < 0:
            self._refuse(annotation_id, f"bbox={xywh} with a negative size; it is [x, y, w, h]")
        return np.array([y, x, y + height, x + width], np.float64)

    def _check_pictures(self) -> None:
        """By one listing a folder, not one look a file, which is slow on network disks."""
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"{self._folder}: there is no such folder of pictures; give the one that the file "
                f"names of {self.name} are relative to."
            )
        wanted = [os.path.normpath(name) for name in self._file_names]
        folders = {os.path.dirname(name) for name in wanted}
        there = {
            os.path.join(folder, name)
            for folder in folders
            if (self._folder / folder).is_dir()
            for name in os.listdir(self._folder / folder)
        }
        missing = [name for name in wanted if name not in there]
        if missing:
            raise FileNotFoundError(
                f"{self._folder}: {len(missing)} of {len(self)} pictures of {self.name} are "
                f"missing ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); give "
                "the folder that file_name is relative to, or remove them from the JSON."
            )

    def _unique_ids(self, kind: str, entries: list[dict]) -> list[int]:
        ids = [self._field(kind, entry, "id", int) for entry in entries]
        if len(set(ids)) < len(ids):
            twice = collections.Counter(ids).most_common(1)[0][0]
            raise ValueError(f"{self.name}: {kind} id {twice} is given twice; make ids unique.")
        return ids

    def _field(self, kind: str, entry: dict, name: str, of_type: type) -> Any:
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, of_type):
            what = f"{name}={value!r}" if value is not None else f"no `{name}`"
            raise ValueError(
                f"{self.name}: {_label(kind, entry)} has {what}; give it one of type "
                f"{of_type.__name__}."
            )
        return value

    def _refuse(self, annotation_id: int, what: str) -> None:
        raise ValueError(
            f"{self.name}: annotation id {annotation_id} has {what}; correct or remove it."
        )

    def _warn(self, ids: list[int], what: str) -> None:
        if ids:
            logging.warning(
                "%s: %d boxes %s (first: annotation %s).", self.name, len(ids), what, ids[0]
            )


SIDES = ("height", "width")


def _label(kind: str, entry: Any) -> str:
    if isinstance(entry, dict) and "id" in entry:
        return f"{kind} id {entry['id']}"
    return f"{kind} {str(entry)[:60]}"


def _stack(objects: list[tuple[np.ndarray, int, bool]]) -> Annotations:
    return Annotations(
        boxes=np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        classes=np.array([k for _, k, _ in objects], np.int32),
        crowd=np.array([crowd for _, _, crowd in objects], bool),
    )


def _load(path: pathlib.Path) -> dict[str, Any]:
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
