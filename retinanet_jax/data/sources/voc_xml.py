"""The content of an XML file in Pascal VOC's format, as annotation tools write it."""

import math
import pathlib
import re
from typing import NamedTuple
from xml.etree import ElementTree

from retinanet_jax.data.sources.fields import (
    FieldError,
    parse_edges,
    parse_flag,
    parse_integer,
    parse_number,
    parse_side,
)

Corners = tuple[float, float, float, float]
CORNERS = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h", "angle")
# What an object may have instead of <bndbox>: roLabelImg's rotated box, and a polygon.
OUTLINES = ("robndbox", "polygon")
COORDINATE = re.compile(r"([xy])\d*")  # of a polygon: <x1><y1><x2>... or <pt><x><y></pt>...
DECLARED_ENCODING = re.compile(rb"<\?xml[^>]*?encoding=[\"']([\w.-]+)[\"']")


class VocObject(NamedTuple):
    """An <object>."""

    name: str
    corners: Corners  # xmin, ymin, xmax and ymax in the file
    difficult: bool
    outline: str  # the one of OUTLINES that the corners enclose; empty for a <bndbox>


class VocAnnotation(NamedTuple):
    """The content of an XML file."""

    path: pathlib.Path
    file_name: str  # empty if missing
    size: tuple[int, int]  # height and width in pixels; 0 if missing
    objects: list[VocObject]


def parse_xml(path: pathlib.Path) -> VocAnnotation:
    """Parse an XML file; external entities are errors and are not fetched.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is invalid; the message contains its path.
    """
    try:
        root = _read_root(path)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: is not XML ({error}); write it again.") from None
    if root.tag != "annotation":
        raise ValueError(
            f"{path}: begins with <{root.tag}>, not with VOC's <annotation>; remove it or convert "
            "it."
        )
    where = str(path)
    objects = []
    try:
        size = _parse_size(root, "height"), _parse_size(root, "width")
        for position, element in enumerate(root.findall("object"), start=1):
            where = f"{path}: object {position}"
            objects.append(_parse_object(element))
    except FieldError as error:
        raise ValueError(f"{where} has {error}; correct or remove it.") from None
    return VocAnnotation(path, _text(root, "filename"), size, objects)


def _read_root(path: pathlib.Path) -> ElementTree.Element:
    """Return the root element of an XML file in any encoding of Python."""
    content = path.read_bytes().strip()  # some tools begin with an empty line
    declared = DECLARED_ENCODING.match(content)
    if declared is None:
        return ElementTree.fromstring(content)
    encoding = declared[1].decode()
    # Text in UTF-16 would not have matched: some tools declare it and write UTF-8.
    is_wrong = encoding.lower().startswith(("utf-16", "utf16"))
    return ElementTree.fromstring(content.decode("utf-8" if is_wrong else encoding))


def _parse_size(root: ElementTree.Element, side: str) -> int:
    """Return the height or width in pixels, or 0 if it is missing."""
    text = _text(root, f"size/{side}") or "0"
    return parse_side(side, text) if parse_integer(side, text) else 0


def _parse_object(element: ElementTree.Element) -> VocObject:
    """Parse an <object>; those of its parts are not read."""
    name = _text(element, "name")
    if not name:
        raise FieldError("no <name>")
    outline = _outline(element)
    parse = {"": _parse_box, "robndbox": _parse_rotated, "polygon": _parse_polygon}
    corners = parse[outline](element)
    difficult = parse_flag("difficult", _text(element, "difficult"))
    return VocObject(name, corners, difficult, outline)


def _outline(element: ElementTree.Element) -> str:
    """Return the name of what an object has instead of a <bndbox>; empty if it has one."""
    counts = {tag: len(element.findall(tag)) for tag in ("bndbox", *OUTLINES)}
    repeated = [tag for tag, count in counts.items() if count > 1]
    if repeated:
        raise FieldError(f"{counts[repeated[0]]} <{repeated[0]}>, of which one is expected")
    if counts["bndbox"]:
        return ""
    return next((tag for tag in OUTLINES if counts[tag]), "")


def _parse_box(element: ElementTree.Element) -> Corners:
    """Return the corners of a <bndbox>."""
    return parse_edges(_texts(element, "bndbox", CORNERS))


def _parse_rotated(element: ElementTree.Element) -> Corners:
    """Return the corners of the box that encloses a rotated one; its angle is in radians."""
    texts = _texts(element, "robndbox", ROTATED)
    x, y, width, height, angle = (parse_number(name, text) for name, text in texts.items())
    if min(width, height) < 0 or abs(angle) > 2 * math.pi:
        raise FieldError(f"<robndbox> of w={width:g}, h={height:g} and {angle=:g} in radians")
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    half_width = (width * cosine + height * sine) / 2
    half_height = (width * sine + height * cosine) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def _parse_polygon(element: ElementTree.Element) -> Corners:
    """Return the corners of the box that encloses a <polygon>."""
    values: dict[str, list[float]] = {"x": [], "y": []}
    for point in element.iterfind("polygon//*"):
        if coordinate := COORDINATE.fullmatch(point.tag):
            values[coordinate[1]].append(parse_number(point.tag, (point.text or "").strip()))
    xs, ys = values.values()
    if not xs or len(xs) != len(ys):
        raise FieldError(f"<polygon> of {len(xs)} x and {len(ys)} y")
    return min(xs), min(ys), max(xs), max(ys)


def _texts(element: ElementTree.Element, parent: str, fields: tuple[str, ...]) -> dict[str, str]:
    """Return the texts of the children of an element's child.

    Raises:
        FieldError: If one is missing.
    """
    texts = {field: _text(element, f"{parent}/{field}") for field in fields}
    missing = [field for field, text in texts.items() if not text]
    if missing:
        raise FieldError(f"no <{parent}><{missing[0]}>")
    return texts


def _text(element: ElementTree.Element, path: str) -> str:
    """Return the stripped text of an element's descendant, which is empty if there is none."""
    return (element.findtext(path) or "").strip()
