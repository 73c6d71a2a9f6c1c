"""CVAT for images 1.1: an XML file of all images (https://docs.cvat.ai/docs/dataset_management)."""

import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from absl import logging

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.base import number_categories
from retinanet_jax.data.sources.fields import (
    FieldError,
    parse_edges,
    parse_integer,
    parse_name,
    parse_number,
    parse_side,
    show,
    unknown_category,
)
from retinanet_jax.data.sources.image_folder import ImageFolderSource
from retinanet_jax.data.sources.layouts import find_image_folder
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.utils.progress import join_first

EDGES = ("xtl", "ytl", "xbr", "ybr")
SUBSET = re.compile(rb'<image\b[^<>]*\ssubset="([^"<>]+)"')
MAX_SAMPLE = 20  # images by which their folder is found
SHAPES = ("box", "polygon", "ellipse", "mask")  # other elements have no box


class CvatSource(ImageFolderSource):
    """The images and shapes of an XML file that CVAT has exported as "CVAT for images 1.1".

    The box of a shape is the smallest one that contains it: a box, which may be rotated, a polygon,
    an ellipse or a mask. The names of the categories are the task's labels in their order, with ids
    from 1. Image ids are those of CVAT, which start from 0, plus 1. The export of a project has
    subsets, too, such as Train and Validation.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        *,
        images: str | os.PathLike | None = None,
        split: str = "",
        categories: Sequence[str] = (),
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Read and check the XML file.

        Args:
            annotations: The XML file.
            images: The folder of images; None or empty means the folder next to the XML that
                contains them.
            split: The subset of which the images are read; empty for all images.
            categories: The names in the order of their ids, which start from 1. If there are none,
                the labels of the task are used or, if the file does not list them, the sorted
                labels of the shapes.
            decoding: How the images are decoded.

        Raises:
            FileNotFoundError: If the XML, the folder or an image is missing.
            ValueError: If the XML is invalid; the message contains its path and the image.
        """
        path = pathlib.Path(annotations)
        root = _read_root(path)
        elements = _select_split(path, list(root.iter("image")), split)
        parsed = [_read_image(path, element) for element in elements]
        used = {shape.label for image in parsed for shape in image.shapes}
        labels = [
            label.findtext("name", "").strip()
            for label in root.findall("meta//label")
            if label.find("parent") is None  # otherwise it is a point of a skeleton
        ]
        names = list(categories or dict.fromkeys(labels) or sorted(used))
        unknown = sorted(used - set(names))
        if unknown:
            raise ValueError(
                f"{path}: has a shape with the label {unknown_category(unknown[0], names)}."
            )
        class_of = {name: k for k, name in enumerate(names)}
        objects, shape_labels = ObjectList(), []
        for index, image in enumerate(parsed):
            for position, shape in enumerate(image.shapes, 1):
                shape_labels.append(f"shape {position}")
                objects.append(len(shape_labels), index, class_of[shape.label], shape.box)
        _warn_of_skipped(str(path), parsed)
        folder, file_names = _find_images(path, parsed, images)
        super().__init__(
            str(path),
            folder,
            image_ids=[image.id + 1 for image in parsed],
            file_names=file_names,
            sizes=np.array([image.size for image in parsed], np.int32).reshape(-1, 2),
            categories=number_categories(names),
            objects=objects.to_objects(),
            label=lambda annotation_id: shape_labels[annotation_id - 1],
            decoding=decoding,
        )


class _Shape(NamedTuple):
    """An object."""

    label: str
    box: tuple[float, float, float, float]  # yxyx


class _Image(NamedTuple):
    """An <image>."""

    id: int
    name: str
    subset: str  # empty in the export of a task
    size: tuple[int, int]  # height and width
    shapes: list[_Shape]
    skipped: list[str]  # the elements without a box


def _read_root(path: pathlib.Path) -> ElementTree.Element:
    """Return the root of the XML file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such annotation file; check the path.")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: is not XML ({error}); export it again.") from None
    if root.tag != "annotations":
        raise ValueError(
            f"{path}: begins with <{root.tag[:60]}>, not with CVAT's <annotations>; export the "
            "task as CVAT for images 1.1."
        )
    if root.find("track") is not None:
        raise ValueError(
            f"{path}: contains the tracks of a video, which have no image files; export the task "
            "as CVAT for images 1.1, with its images."
        )
    return root


def _select_split(
    path: pathlib.Path, elements: list[ElementTree.Element], split: str
) -> list[ElementTree.Element]:
    """Return the <image> elements of a subset, or all of them."""
    selected = [element for element in elements if split in ("", element.get("subset"))]
    if split and not selected:
        subsets = sorted({element.get("subset", "") for element in elements} - {""})
        advice = f"give one of {join_first(subsets)}" if subsets else "give no split"
        raise ValueError(f"{path}: has no image of the subset {split!r}; {advice}.")
    return selected


def list_subsets(path: pathlib.Path) -> list[str]:
    """Return the subsets of an export's images, without parsing it.

    Args:
        path: The XML file.
    """
    return sorted({match.decode("utf-8", "replace") for match in SUBSET.findall(path.read_bytes())})


def _read_image(path: pathlib.Path, element: ElementTree.Element) -> _Image:
    """Return the content of an <image>."""
    where = f"image {show(element.get('name'))}"
    shapes, skipped = [], []
    try:
        image_id = parse_integer("id", element.get("id"))
        name = parse_name("name", element.get("name"))
        height, width = (parse_side(side, element.get(side)) for side in ("height", "width"))
        for position, child in enumerate(element, 1):
            where = f"image {name}, shape {position}"
            if child.tag in SHAPES:
                shapes.append(_Shape(parse_name("label", child.get("label")), _box(child)))
            elif child.tag != "tag":
                skipped.append(child.tag)
    except FieldError as error:
        raise ValueError(f"{path}: {where} has {error}; correct or remove it.") from None
    return _Image(image_id, name, element.get("subset", ""), (height, width), shapes, skipped)


def _find_images(
    path: pathlib.Path, parsed: Sequence[_Image], images: str | os.PathLike | None
) -> tuple[pathlib.Path, list[str]]:
    """Return the folder of images and their names in it, which are in a folder for each subset."""
    names = [f"{image.subset}/{image.name}" if image.subset else image.name for image in parsed]
    folder = pathlib.Path(images) if images else find_image_folder(path, names[:MAX_SAMPLE])
    return folder, [
        name if image.subset and (folder / name).is_file() else image.name
        for name, image in zip(names, parsed, strict=True)
    ]


def _box(element: ElementTree.Element) -> tuple[float, float, float, float]:
    """Return the smallest box, as yxyx, that contains a shape."""

    def number(name: str) -> float:
        return parse_number(name, element.get(name))

    match element.tag:
        case "box":
            x1, y1, x2, y2 = parse_edges({edge: element.get(edge) for edge in EDGES})
            half_height, half_width = (y2 - y1) / 2, (x2 - x1) / 2
            center_y, center_x = y1 + half_height, x1 + half_width
            rotation = element.get("rotation")
            angle = math.radians(parse_number("rotation", rotation)) if rotation else 0.0
            if not angle:
                return y1, x1, y2, x2
            cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
            extent_y = half_height * cosine + half_width * sine
            extent_x = half_width * cosine + half_height * sine
        case "ellipse":
            center_y, center_x = number("cy"), number("cx")
            extent_y, extent_x = number("ry"), number("rx")
        case "mask":
            left, top = number("left"), number("top")
            return top, left, top + number("height"), left + number("width")
        case _:
            return _bounds(element.get("points") or "")
    return center_y - extent_y, center_x - extent_x, center_y + extent_y, center_x + extent_x


def _bounds(points: str) -> tuple[float, float, float, float]:
    """Return the smallest box, as yxyx, that contains points "x,y;x,y;..."."""
    pairs = [point.split(",") for point in points.split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise FieldError(f"points={show(points)}, not x,y;x,y")
    xs = [parse_number("points", x) for x, _ in pairs]
    ys = [parse_number("points", y) for _, y in pairs]
    return min(ys), min(xs), max(ys), max(xs)


def _warn_of_skipped(name: str, images: Sequence[_Image]) -> None:
    """Log how many shapes have no box."""
    skipped = [(tag, image.name) for image in images for tag in image.skipped]
    if skipped:
        logging.warning(
            "%s: %d shapes are not read (first: a %s in %s); only %s have a box.",
            name,
            len(skipped),
            *skipped[0],
            ", ".join(SHAPES),
        )
