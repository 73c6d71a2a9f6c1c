"""LabelMe's format: a JSON file of shapes for each image (https://github.com/wkentaro/labelme)."""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.base import number_categories
from retinanet_jax.data.sources.fields import (
    FieldError,
    parse_flag,
    parse_name,
    parse_number,
    parse_side,
    show,
    unknown_category,
)
from retinanet_jax.data.sources.image_folder import ImageFolderSource
from retinanet_jax.data.sources.layouts import IMAGE_FOLDERS, list_files, list_folders
from retinanet_jax.data.sources.objects import ObjectList

# Shapes that are no outline of an object. All others have a box: rectangles, polygons, circles,
# masks, and X-AnyLabeling's rotated rectangles, quadrilaterals and cuboids.
WITHOUT_BOX = ("point", "points", "line", "linestrip")


class LabelmeSource(ImageFolderSource):
    """The images and shapes of a folder of LabelMe's JSON files.

    The box of a shape is the smallest one that contains it; points and lines have none. Objects
    that X-AnyLabeling marks as difficult are crowd regions, as in Pascal VOC's format. The image of
    a JSON file is the one with its name or, if there is none, `imagePath`. Image ids are numbered
    from 1 in the order of the JSON files' names.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        *,
        images: str | os.PathLike | None = None,
        categories: Sequence[str] = (),
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Read and check all JSON files.

        Args:
            annotations: The folder of JSON files.
            images: The folder of images; None or empty means that of the JSON files, or a folder
                images next to it.
            categories: The names in the order of their ids, which start from 1. If there are none,
                the sorted labels in the files are used, which may differ between training and
                evaluation data.
            decoding: How the images are decoded.

        Raises:
            FileNotFoundError: If a folder or an image is missing.
            ValueError: If a JSON file is invalid; the message contains its path.
        """
        folder = pathlib.Path(annotations)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder of annotations.")
        files = list(filter(None, map(_read_file, list_files(folder, ".json"))))
        if not files:
            raise ValueError(f"{folder}: contains no JSON of LabelMe; give the folder that does.")
        image_folder = pathlib.Path(images) if images else _image_folder(folder, files)
        names = categories or sorted({shape.label for file in files for shape in file.shapes})
        class_of = {name: k for k, name in enumerate(names)}
        objects, labels = ObjectList(), []
        for index, file in enumerate(files):
            for position, shape in enumerate(file.shapes, 1):
                if shape.label not in class_of:
                    raise ValueError(
                        f"{file.path}: has a shape {unknown_category(shape.label, names)}."
                    )
                labels.append(f"shape {position} of {file.path.name}")
                objects.append(
                    len(labels), index, class_of[shape.label], shape.box, crowd=shape.is_difficult
                )
        _warn_of_skipped(str(folder), files)
        super().__init__(
            str(folder),
            image_folder,
            image_ids=list(range(1, len(files) + 1)),
            file_names=[file.image_name(image_folder) for file in files],
            sizes=np.array([file.size for file in files], np.int32),
            categories=number_categories(names),
            objects=objects.to_objects(),
            label=lambda annotation_id: labels[annotation_id - 1],
            image_label=lambda index: files[index].path.name,
            decoding=decoding,
        )


class _Shape(NamedTuple):
    """An outlined object."""

    label: str
    box: tuple[float, float, float, float]  # yxyx
    is_difficult: bool


class _File(NamedTuple):
    """The content of a JSON file."""

    path: pathlib.Path
    listed_image: str  # its imagePath; empty if missing
    size: tuple[int, int]  # height and width; 0 if missing
    shapes: list[_Shape]
    skipped: list[str]  # the types of the shapes without an outline

    def image_name(self, folder: pathlib.Path) -> str:
        """Return the image's name: that of the JSON with the suffix of the listed image."""
        name = self.listed_image.replace("\\", "/")
        own = self.path.stem + pathlib.PurePosixPath(name).suffix
        return own if not name or (folder / own).is_file() else name


def _read_file(path: pathlib.Path) -> _File | None:
    """Return the content of a JSON file; None if it is not LabelMe's."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it again.") from None
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    try:
        sides = (content.get("imageHeight"), content.get("imageWidth"))
        height, width = (
            parse_side(name, side) if side is not None else 0
            for name, side in zip(("imageHeight", "imageWidth"), sides, strict=True)
        )
        listed = content.get("imagePath")
        listed = parse_name("imagePath", listed) if listed else ""
        if not isinstance(content["shapes"], list):
            raise FieldError(f"shapes={show(content['shapes'])}, not a list")
    except FieldError as error:
        raise ValueError(f"{path}: has {error}; correct it.") from None
    shapes, skipped = [], []
    for position, entry in enumerate(content["shapes"], 1):
        try:
            shape_type = _shape_type(entry)
            if shape_type in WITHOUT_BOX:
                skipped.append(shape_type)
                continue
            label = parse_name("label", entry["label"])
            is_difficult = parse_flag("difficult", entry.get("difficult"))
            shapes.append(_Shape(label, _box(shape_type, entry["points"]), is_difficult))
        except (FieldError, KeyError, TypeError) as error:
            problem = f"no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
            if not isinstance(entry, dict):
                problem = f"{show(entry)} in place of fields"
            raise ValueError(
                f"{path}: shape {position} has {problem}; correct or remove it."
            ) from None
    return _File(path, listed, (height, width), shapes, skipped)


def _shape_type(entry: dict[str, Any]) -> str:
    """Return the type of a shape, which old files leave out for polygons."""
    return parse_name("shape_type", entry.get("shape_type") or "polygon")


def _box(shape_type: str, points: Any) -> tuple[float, float, float, float]:
    """Return the smallest box, as yxyx, that contains a shape."""
    is_list = isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 for point in points
    )
    num_points = 2 if shape_type in ("rectangle", "circle", "mask") else 1
    if not is_list or len(points) < num_points:
        raise FieldError(f"points={show(points)}, not at least {num_points} [x, y]")
    xs = [parse_number("points", x) for x, _ in points]
    ys = [parse_number("points", y) for _, y in points]
    if shape_type == "circle":  # its center, and a point on it
        radius = math.dist((xs[0], ys[0]), (xs[1], ys[1]))
        return ys[0] - radius, xs[0] - radius, ys[0] + radius, xs[0] + radius
    return min(ys), min(xs), max(ys), max(xs)


def _image_folder(folder: pathlib.Path, files: Sequence[_File]) -> pathlib.Path:
    """Return the folder of the images: that of the JSON files, or a folder images next to it."""
    siblings = [path for path in list_folders(folder.parent) if path.name.lower() in IMAGE_FOLDERS]

    def count(candidate: pathlib.Path) -> int:
        return sum((candidate / file.image_name(candidate)).is_file() for file in files[:20])

    return max((folder, *siblings), key=count)


def _warn_of_skipped(name: str, files: Sequence[_File]) -> None:
    """Log how many shapes have no box."""
    skipped = [(shape_type, file.path.name) for file in files for shape_type in file.skipped]
    if skipped:
        logging.warning(
            "%s: %d shapes are points or lines, which have no box and are not read (first: a %s in "
            "%s).",
            name,
            len(skipped),
            *skipped[0],
        )
