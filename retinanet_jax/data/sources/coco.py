"""COCO's own format: a JSON file of instances and a folder of images (https://cocodataset.org)."""

import collections
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.fields import (
    FieldError,
    parse_flag,
    parse_integer,
    parse_name,
    parse_number,
    parse_side,
    parse_xywh,
    show,
)
from retinanet_jax.data.sources.image_folder import ImageFolderSource
from retinanet_jax.data.sources.objects import ObjectList, Objects

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

    Only the fields that detection needs are kept. Every value is read once: `area` is that of the
    box if the file has none, and `ignore` marks crowd regions, as `iscrowd` does.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        *,
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Read and check the JSON file.

        Args:
            annotations: The JSON file.
            images: The folder that the `file_name`s in it are relative to.
            decoding: As in `ImageFolderSource`.

        Raises:
            FileNotFoundError: If the JSON, the folder or an image is missing.
            ValueError: If the JSON is not COCO instances or contradicts itself.
        """
        content = CocoContent(str(annotations), load_instances(pathlib.Path(annotations)))
        super().__init__(
            str(annotations),
            pathlib.Path(images),
            image_ids=content.image_ids,
            file_names=content.file_names,
            sizes=content.sizes,
            categories=content.categories,
            objects=content.objects,
            label="annotation id {}".format,
            decoding=decoding,
        )


class CocoAnnotations(Source):
    """The boxes of a COCO JSON file, of which the images are not here."""

    has_images = False

    def __init__(self, annotations: str | os.PathLike):
        """Read and check the JSON file.

        Args:
            annotations: The JSON file.

        Raises:
            FileNotFoundError: If the JSON is missing.
            ValueError: If it is not COCO instances or contradicts itself.
        """
        content = CocoContent(str(annotations), load_instances(pathlib.Path(annotations)))
        super().__init__(
            str(annotations),
            image_ids=content.image_ids,
            file_names=content.file_names,
            sizes=content.sizes,
            categories=content.categories,
            objects=content.objects,
        )

    def read(self, index: int) -> bytes:
        """Raise FileNotFoundError."""
        raise FileNotFoundError(f"{self.name}: the image {self.file_names[index]} is missing.")


def coco_json(source: Source, folder: pathlib.Path) -> dict[str, Any]:
    """Return a dataset of any format as the content of a COCO JSON file.

    Args:
        source: The dataset.
        folder: The folder of the file, which the paths of the images are relative to; images that
            are no files of their own have their names in the dataset.
    """
    content = source.ground_truth()
    for index, image in enumerate(content["images"]):
        path = source.path(index)
        if path is not None:
            image["file_name"] = pathlib.Path(os.path.relpath(path, folder)).as_posix()
    return content


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); give COCO instances.") from None
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise ValueError(
                f"{path}: has no list `{section}`; give COCO instances: images, annotations, "
                "categories."
            )
    return content


class CocoContent:
    """The content of a COCO JSON file; every entry is checked.

    Attributes:
        image_ids: The id of every image.
        file_names: The file name of every image.
        sizes: Height and width of every image in pixels.
        categories: Sorted by id.
        objects: The objects in the order of the file.
    """

    def __init__(self, name: str, content: dict[str, Any]):
        """Check and read the entries.

        Args:
            name: The file's name in messages.
            content: Its content, from `load_instances`.

        Raises:
            ValueError: If an entry is invalid; the message has the file and the entry.
        """
        self._name = name
        self.image_ids: list[int] = []
        self.file_names: list[str] = []
        self._read_images(content["images"])
        self._index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}
        categories = self._read_categories(content["categories"])
        self.categories = self._without_unused_names(categories, content["annotations"])
        self._class_of = {category.id: k for k, category in enumerate(self.categories)}
        self.objects = self._read_objects(content["annotations"])

    def _read_images(self, entries: list) -> None:
        """Read the ids, file names, and heights and widths of all images."""
        sides: list[int] = []
        for entry in entries:
            try:
                self.image_ids.append(parse_integer("id", entry["id"]))
                self.file_names.append(parse_name("file_name", entry["file_name"]))
                sides += [parse_side(side, entry[side]) for side in SIDES]
            except (FieldError, KeyError, TypeError) as error:
                raise self._invalid("image", entry, error) from None
        self._check_unique("image", self.image_ids)
        self.sizes = np.array(sides, np.int32).reshape(-1, 2)

    def _read_categories(self, entries: list) -> list[Category]:
        """Return the categories, sorted by id."""
        categories = []
        for entry in entries:
            try:
                name = parse_name("name", entry["name"])
                categories.append(Category(parse_integer("id", entry["id"]), name))
            except (FieldError, KeyError, TypeError) as error:
                raise self._invalid("category", entry, error) from None
        self._check_unique("category", [category.id for category in categories])
        return sorted(categories)

    def _without_unused_names(self, categories: list[Category], entries: list) -> list[Category]:
        """Return the categories, of those with the same name only the ones with annotations.

        Some tools export an unused category 0 for the dataset itself, which may have the name of a
        class. If none of a name is used, the last remains.
        """
        names = collections.Counter(category.name for category in categories)
        if max(names.values(), default=1) == 1:
            return categories
        used = set(map(_category_id, entries))
        last = {category.name: category for category in categories}
        used_names = {category.name for category in categories if category.id in used}
        remaining, dropped = [], []
        for category in categories:
            is_needed = (
                category.id in used
                if category.name in used_names
                else category == last[category.name]
            )
            (remaining if is_needed else dropped).append(category)
        for category_id, name in dropped:
            logging.warning(
                "%s: category id %d is dropped, since it has no annotations and the name %r of "
                "another category.",
                self._name,
                category_id,
                name,
            )
        return remaining

    def _read_objects(self, entries: list) -> Objects:
        """Return the objects of all annotations."""
        objects = ObjectList()
        ids, computed_areas, ignored = [], [], []
        for entry in entries:
            try:
                annotation_id = parse_integer("id", entry["id"])
                image_index = self._index_by_id(self._index_of, entry, "image_id", "images")
                class_index = self._index_by_id(self._class_of, entry, "category_id", "categories")
                x, y, width, height = parse_xywh("bbox", entry["bbox"])
                area = entry.get("area")
                area = math.nan if area is None else parse_number("area", area)
                is_crowd = parse_flag("iscrowd", entry.get("iscrowd"))
                is_ignored = parse_flag("ignore", entry.get("ignore"))
            except (FieldError, KeyError, TypeError) as error:
                raise self._invalid("annotation", entry, error) from None
            ids.append(annotation_id)
            if area <= 0 < width * height:  # no object has this area, and AP would ignore it
                area = math.nan
                computed_areas.append(annotation_id)
            if is_ignored and not is_crowd:
                ignored.append(annotation_id)
            objects.append(
                annotation_id,
                image_index,
                class_index,
                (y, x, y + height, x + width),
                crowd=is_crowd or is_ignored,
                area=area,
            )
        self._check_unique("annotation", ids)
        self._warn(computed_areas, "an `area` of 0 or less; that of the box is used instead")
        self._warn(ignored, "`ignore`, which is read as `iscrowd`: a crowd region, not an object")
        return objects.to_objects()

    def _index_by_id(self, indices: dict[int, int], entry: dict, field: str, section: str) -> int:
        """Return the index of the image or category that a field of an annotation refers to."""
        value = parse_integer(field, entry[field])
        if value not in indices:
            raise FieldError(f"{field}={show(value)}, which `{section}` does not list")
        return indices[value]

    def _check_unique(self, entry_type: str, ids: list[int]) -> None:
        """Raise ValueError if two ids are equal."""
        if len(set(ids)) < len(ids):
            repeated = collections.Counter(ids).most_common(1)[0][0]
            raise ValueError(
                f"{self._name}: {entry_type} id {repeated} occurs twice; make ids unique."
            )

    def _warn(self, ids: list[int], problem: str) -> None:
        """Log a warning about annotations, if there are any."""
        if ids:
            logging.warning(
                "%s: %d annotations have %s (first: annotation id %s).",
                self._name,
                len(ids),
                problem,
                ids[0],
            )

    def _invalid(self, entry_type: str, entry: Any, error: Exception) -> ValueError:
        """Return the error about an entry with a missing or invalid field."""
        problem = f"has no `{error.args[0]}`" if isinstance(error, KeyError) else f"has {error}"
        if not isinstance(entry, dict):
            problem = "is no JSON object"
        return ValueError(
            f"{self._name}: {self._label(entry_type, entry)} {problem}; correct or remove it."
        )

    def _label(self, entry_type: str, entry: Any) -> str:
        """Return the label of an entry in messages: its id and, for an annotation, the file."""
        if not isinstance(entry, dict) or "id" not in entry:
            return f"{entry_type} {show(entry)}"
        label = f"{entry_type} id {show(entry['id'])}"
        try:
            index = self._index_of[parse_integer("image_id", entry["image_id"])]
        except (AttributeError, FieldError, KeyError):
            return label
        return f"{label} ({self.file_names[index]})"


def _category_id(entry: Any) -> int | None:
    """Return the category id of an annotation that is not checked yet; None if it is invalid."""
    try:
        return parse_integer("category_id", entry["category_id"])
    except (FieldError, KeyError, TypeError):
        return None
