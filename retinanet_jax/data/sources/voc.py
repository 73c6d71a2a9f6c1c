"""Pascal VOC: an XML a picture, in the folders of its devkit or side by side with the pictures."""

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from retinanet_jax.data.sources.instances import InstancesSource, oriented_sizes, parse_corners

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocSource(InstancesSource):
    """Pictures and boxes of Pascal VOC's XML, in one of two layouts.

    annotations: a root that holds Annotations, JPEGImages and ImageSets/Main, as the devkit's
    VOC2007 does, or a folder of XML. images: the folder of pictures; empty for JPEGImages, or for
    where the XML is. split: the file of ImageSets/Main that lists the pictures; empty for a folder
    of XML, of which each is a picture. categories: names in the order of their ids, from 1; empty
    for those found, sorted, which another part of the data may not all have.

    In the devkit, coordinates number pixels from 1 and include the last: xmin=1 is the picture's
    left edge, xmax=width its right edge. In a folder of XML (labelImg's and others') they are
    edges, from 0, and taken as they stand.
    "Difficult" objects become crowd regions: not trained on as objects, and ignored by pycocotools
    (which for a region asks what share of the detection it covers). An object's parts (a person's
    head) are not read. A picture is the file that <filename> names or, where it is not there, the
    one that is named as the XML. A missing size is read from the picture's header.
    Raises as `InstancesSource` does, naming the XML.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        *,
        images: str | os.PathLike | None,
        split: str,
        categories: Sequence[str],
    ):
        files = _find(pathlib.Path(annotations), images, split)
        parsed = [_parse(path) for path in files.xmls]
        names = _picture_names(files, parsed)
        content = _content(files, parsed, names, categories)
        # An annotation's id counts objects over all files.
        owners = [
            f"object {number} of {one.path.name}"
            for one in parsed
            for number in range(1, len(one.objects) + 1)
        ]
        super().__init__(
            files.listed_by, lambda: content, files.images, place=lambda number: owners[number - 1]
        )


class _Files(NamedTuple):
    """What is read, and how its coordinates are to be understood."""

    listed_by: str
    xmls: list[pathlib.Path]
    images: pathlib.Path
    first_pixel: int  # the number of a picture's first pixel in the XML


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]  # as in the XML
    difficult: bool


class _Picture(NamedTuple):
    """An XML's content."""

    path: pathlib.Path
    file_name: str  # empty where it says none
    size: tuple[int, int]  # height and width; 0 where it says none
    objects: list[_Object]


def _find(root: pathlib.Path, images: str | os.PathLike | None, split: str) -> _Files:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder of annotations; check the path.")
    if (root / "Annotations").is_dir():
        listing = root / "ImageSets" / "Main" / f"{split}.txt"
        pictures = pathlib.Path(images) if images else root / "JPEGImages"
        return _Files(str(listing), _listed(root, listing), pictures, first_pixel=1)
    if root.name == "Annotations" and _splits(root.parent):
        raise ValueError(
            f"{root}: belongs to the devkit's {root.parent}; give that folder and a split "
            f"({', '.join(_splits(root.parent))}), so that training and test stay apart."
        )
    if split:
        raise ValueError(
            f"{root}: has no folder Annotations and so no split {split!r}; give the root that "
            "holds Annotations and ImageSets/Main, or an empty split for a folder of XML."
        )
    xmls = sorted(path for path in root.iterdir() if path.suffix.lower() == ".xml")
    if not xmls:
        raise FileNotFoundError(
            f"{root}: holds no XML; give a folder of XML, or a root that holds Annotations."
        )
    return _Files(str(root), xmls, pathlib.Path(images) if images else root, first_pixel=0)


def _splits(root: pathlib.Path) -> list[str]:
    """Those of whole pictures: the devkit's others, as cat_train, are of one class."""
    names = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
    return [name for name in names if "_" not in name] or names


def _listed(root: pathlib.Path, listing: pathlib.Path) -> list[pathlib.Path]:
    """The XML of every picture of a split, in its order."""
    if not listing.is_file():
        splits = ", ".join(_splits(root))
        fix = (
            f"or give one of {splits}" if splits else f"or give {root / 'Annotations'} for all XML"
        )
        raise FileNotFoundError(f"{listing}: there is no such split; write it, {fix}.")
    there = set(os.listdir(root / "Annotations"))
    stems = [line.strip() for line in listing.read_text("utf-8").splitlines() if line.strip()]
    missing = [stem for stem in stems if f"{stem}.xml" not in there]
    if missing:
        raise FileNotFoundError(
            f"{listing}: {len(missing)} of {len(stems)} pictures have no XML in "
            f"{root / 'Annotations'} (first: {missing[0]}.xml); restore it, or list names alone."
        )
    twice = [stem for stem, count in collections.Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(f"{listing}: lists {twice[0]!r} twice; list each picture once.")
    return [root / "Annotations" / f"{stem}.xml" for stem in stems]


def _parse(path: pathlib.Path) -> _Picture:
    """An entity from elsewhere is an error here: none is fetched."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: is not XML ({error}); write it anew.") from None
    if root.tag != "annotation":
        raise ValueError(
            f"{path}: begins with <{root.tag}>, not with VOC's <annotation>; take it away or "
            "convert it."
        )
    height, width = (_side(path, root, side) for side in ("height", "width"))
    objects = [
        _parse_object(f"{path}: object {number}", one)
        for number, one in enumerate(root.findall("object"), start=1)
    ]
    return _Picture(path, _text(root, "filename"), (height, width), objects)


def _side(path: pathlib.Path, root: ElementTree.Element, side: str) -> int:
    text = _text(root, f"size/{side}") or "0"
    if not text.isdecimal():
        raise ValueError(f"{path}: has <{side}> {text!r}; write a whole number of pixels.")
    return int(text)


def _parse_object(where: str, element: ElementTree.Element) -> _Object:
    for field in ("name", *(f"bndbox/{corner}" for corner in CORNERS)):
        if not _text(element, field):
            raise ValueError(f"{where} has no <{field.replace('/', '><')}>; give it one.")
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise ValueError(f"{where} has <difficult> {difficult!r}; write 0 or 1.")
    corners = {corner: _text(element, f"bndbox/{corner}") for corner in CORNERS}
    return _Object(_text(element, "name"), parse_corners(where, corners), difficult == "1")


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _picture_names(files: _Files, parsed: Iterable[_Picture]) -> list[str]:
    """The file of every XML's picture."""
    if not files.images.is_dir():
        raise FileNotFoundError(
            f"{files.images}: there is no such folder of pictures; give the one that the pictures "
            f"of {files.listed_by} are in."
        )
    there = set(os.listdir(files.images))
    of_stem = collections.defaultdict(list)
    for name in sorted(there):
        stem, extension = os.path.splitext(name)
        if extension.lower() in EXTENSIONS:
            of_stem[stem].append(name)
    owner: dict[str, pathlib.Path] = {}
    for path, file_name, _, _ in parsed:
        candidates = [file_name] if file_name in there else of_stem[path.stem]
        if len(candidates) != 1:
            raise FileNotFoundError(
                f"{path}: <filename> {file_name!r} is not in {files.images}, where its own name "
                f"fits {' and '.join(candidates) or 'no picture'}; correct <filename>, or give the "
                "folder of pictures."
            )
        name = candidates[0]
        if name in owner:
            raise ValueError(
                f"{path}: is of the picture {name}, and so is {owner[name].name}; correct "
                "<filename>, or remove one of them."
            )
        owner[name] = path
    return list(owner)


def _content(
    files: _Files, parsed: Sequence[_Picture], names: Sequence[str], categories: Sequence[str]
) -> dict[str, Any]:
    """COCO's sections; pictures, categories and objects are numbered from 1."""
    classes = categories or sorted({one.name for picture in parsed for one in picture.objects})
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(parsed, start=1):
        for name, (x1, y1, x2, y2), difficult in picture.objects:
            if name not in classes:
                raise ValueError(
                    f"{picture.path}: has an object {name!r}, and the categories are "
                    f"{', '.join(classes)}; correct it, or add it to data.categories."
                )
            left, top = x1 - files.first_pixel, y1 - files.first_pixel
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": classes.index(name) + 1,
                    "bbox": [left, top, x2 - left, y2 - top],
                    "iscrowd": int(difficult),
                }
            )
    sizes = _sizes(files, parsed, names)
    images = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, (name, (height, width)) in enumerate(zip(names, sizes, strict=True), start=1)
    ]
    return {
        "images": images,
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes, start=1)],
        "annotations": annotations,
    }


def _sizes(
    files: _Files, parsed: Sequence[_Picture], names: Sequence[str]
) -> list[tuple[int, int]]:
    """Height and width of every picture: what its XML says, else what its header says."""
    unsaid = [name for name, picture in zip(names, parsed, strict=True) if not all(picture.size)]
    read = dict(zip(unsaid, oriented_sizes([files.images / name for name in unsaid]), strict=True))
    return [read.get(name, picture.size) for name, picture in zip(names, parsed, strict=True)]
