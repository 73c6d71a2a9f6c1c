"""Pascal VOC: an XML file for each image, in the folders of the devkit or next to the images.

The devkit is described at http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf.
"""

import collections
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Int32

from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.fields import FieldError, parse_edges
from retinanet_jax.data.sources.image_folder import ImageFolderSource, read_oriented_sizes
from retinanet_jax.data.sources.objects import ObjectList, Objects

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocSource(ImageFolderSource):
    """The images and boxes of Pascal VOC's XML files, in one of two layouts.

    In the layout of the devkit, coordinates are numbers of pixels, starting from 1, and a box
    includes its last pixel: xmin=1 is the left edge of the image, and xmax=width the right edge. In
    a folder of XML files, which labelImg and other tools write, coordinates are edges, and 0 is the
    left edge of the image.

    "Difficult" objects become crowd regions: they are not trained on as objects, and pycocotools
    ignores detections of them (for a region it computes the fraction of the detection that is
    inside). The parts of an object, such as the head of a person, are not read. The image of an XML
    file is the file in <filename> or, if it does not exist, the image of the same stem as the XML
    file. A missing size is read from the header of the image.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        *,
        images: str | os.PathLike | None,
        split: str,
        categories: Sequence[str],
    ):
        """Read and check all XML files.

        Args:
            annotations: A folder with Annotations, JPEGImages and ImageSets/Main, such as VOC2007
                of the devkit, or a folder of XML files.
            images: The folder of images; None or empty means JPEGImages, or the folder of the XML
                files.
            split: The file in ImageSets/Main that lists the images; empty for a folder of XML
                files, all of which are read.
            categories: The names in the order of their ids, which start from 1. If there are none,
                the sorted names in the files are used, which may differ between training and
                evaluation data.

        Raises:
            FileNotFoundError: If a folder, a split, an XML file or an image is missing.
            ValueError: If an XML file is invalid; the message contains its path.
        """
        files = _find_files(pathlib.Path(annotations), images, split)
        parsed = [_parse(path) for path in files.xml_paths]
        image_names = _find_images(files, parsed)
        names = categories or sorted({entry.name for xml in parsed for entry in xml.objects})
        objects = _stack_objects(files, parsed, names)

        def label(annotation_id: int) -> str:
            index = objects.image_index[annotation_id - 1]
            first = np.searchsorted(objects.image_index, index)  # annotations are in this order
            return f"object {annotation_id - first} of {files.xml_paths[index].name}"

        super().__init__(
            files.listing,
            files.image_folder,
            image_ids=list(range(1, len(image_names) + 1)),
            file_names=image_names,
            sizes=_sizes(files, parsed, image_names),
            categories=[Category(k, name) for k, name in enumerate(names, start=1)],
            objects=objects,
            label=label,
        )


class _Files(NamedTuple):
    """The files of a dataset."""

    listing: str  # the file of the split, or the folder, for messages
    xml_paths: list[pathlib.Path]
    image_folder: pathlib.Path
    first_pixel: int  # the coordinate of the left edge of an image's first pixel


class _Object(NamedTuple):
    """An <object>."""

    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax and ymax in the file
    difficult: bool


class _Annotation(NamedTuple):
    """The content of an XML file."""

    path: pathlib.Path
    file_name: str  # empty if missing
    size: tuple[int, int]  # height and width; 0 if missing
    objects: list[_Object]


def _find_files(root: pathlib.Path, images: str | os.PathLike | None, split: str) -> _Files:
    """Detect the layout and find the XML files."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder of annotations; check the path.")
    if (root / "Annotations").is_dir():
        listing = root / "ImageSets" / "Main" / f"{split}.txt"
        image_folder = pathlib.Path(images) if images else root / "JPEGImages"
        return _Files(str(listing), _read_split(root, listing), image_folder, first_pixel=1)
    if root.name == "Annotations" and _split_names(root.parent):
        raise ValueError(
            f"{root}: belongs to the devkit's {root.parent}; give that folder and a split "
            f"({', '.join(_split_names(root.parent))}), so that training and test data are not "
            "mixed."
        )
    if split:
        raise ValueError(
            f"{root}: has no folder Annotations and so no split {split!r}; give the root that "
            "contains Annotations and ImageSets/Main, or an empty split for a folder of XML."
        )
    xml_paths = sorted(path for path in root.iterdir() if path.suffix.lower() == ".xml")
    if not xml_paths:
        raise FileNotFoundError(
            f"{root}: contains no XML; give a folder of XML, or a root that contains Annotations."
        )
    return _Files(str(root), xml_paths, pathlib.Path(images) if images else root, first_pixel=0)


def _split_names(root: pathlib.Path) -> list[str]:
    """Return the splits, except those of a single class, such as cat_train, if there are others."""
    names = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
    return [name for name in names if "_" not in name] or names


def _read_split(root: pathlib.Path, listing: pathlib.Path) -> list[pathlib.Path]:
    """Return the XML file of every image of a split, in the split's order."""
    if not listing.is_file():
        splits = ", ".join(_split_names(root))
        fix = (
            f"or give one of {splits}" if splits else f"or give {root / 'Annotations'} for all XML"
        )
        raise FileNotFoundError(f"{listing}: there is no such split; write it, {fix}.")
    existing = set(os.listdir(root / "Annotations"))
    stems = [line.strip() for line in listing.read_text("utf-8").splitlines() if line.strip()]
    missing = [stem for stem in stems if f"{stem}.xml" not in existing]
    if missing:
        raise FileNotFoundError(
            f"{listing}: {len(missing)} of {len(stems)} images have no XML in "
            f"{root / 'Annotations'} (first: {missing[0]}.xml); restore it, or list only names."
        )
    repeated = [stem for stem, count in collections.Counter(stems).items() if count > 1]
    if repeated:
        raise ValueError(f"{listing}: lists {repeated[0]!r} twice; list each image once.")
    return [root / "Annotations" / f"{stem}.xml" for stem in stems]


def _parse(path: pathlib.Path) -> _Annotation:
    """Parse an XML file; external entities are errors and are not fetched."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: is not XML ({error}); write it again.") from None
    if root.tag != "annotation":
        raise ValueError(
            f"{path}: begins with <{root.tag}>, not with VOC's <annotation>; remove it or convert "
            "it."
        )
    height, width = (_parse_side(path, root, side) for side in ("height", "width"))
    objects = [
        _parse_object(f"{path}: object {position}", element)
        for position, element in enumerate(root.findall("object"), start=1)
    ]
    return _Annotation(path, _text(root, "filename"), (height, width), objects)


def _parse_side(path: pathlib.Path, root: ElementTree.Element, side: str) -> int:
    """Return the height or width in pixels, or 0 if it is missing."""
    text = _text(root, f"size/{side}") or "0"
    if not text.isdecimal():
        raise ValueError(f"{path}: has <{side}> {text!r}; write a whole number of pixels.")
    return int(text)


def _parse_object(where: str, element: ElementTree.Element) -> _Object:
    """Parse an <object>; messages begin with `where`."""
    for field in ("name", *(f"bndbox/{corner}" for corner in CORNERS)):
        if not _text(element, field):
            raise ValueError(f"{where} has no <{field.replace('/', '><')}>; add it.")
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise ValueError(f"{where} has <difficult> {difficult!r}; write 0 or 1.")
    texts = {corner: _text(element, f"bndbox/{corner}") for corner in CORNERS}
    try:
        corners = parse_edges(texts)
    except FieldError as error:
        raise ValueError(f"{where} has {error}; correct or remove it.") from None
    return _Object(_text(element, "name"), corners, difficult == "1")


def _text(element: ElementTree.Element, path: str) -> str:
    """Return the stripped text of an element's descendant, which is empty if there is none."""
    return (element.findtext(path) or "").strip()


def _find_images(files: _Files, parsed: Iterable[_Annotation]) -> list[str]:
    """Return the name of the image file of every XML file."""
    if not files.image_folder.is_dir():
        raise FileNotFoundError(
            f"{files.image_folder}: there is no such folder of images; give the folder that "
            f"contains the images of {files.listing}."
        )
    existing = set(os.listdir(files.image_folder))
    names_of_stem = collections.defaultdict(list)
    for name in sorted(existing):
        if has_image_suffix(name):
            names_of_stem[os.path.splitext(name)[0]].append(name)
    xml_of_image: dict[str, pathlib.Path] = {}
    for path, file_name, _, _ in parsed:
        candidates = [file_name] if file_name in existing else names_of_stem[path.stem]
        if len(candidates) != 1:
            raise FileNotFoundError(
                f"{path}: <filename> {file_name!r} is not in {files.image_folder}, where the name "
                f"of the XML matches {' and '.join(candidates) or 'no image'}; correct <filename>, "
                "or give the folder of images."
            )
        name = candidates[0]
        if name in xml_of_image:
            raise ValueError(
                f"{path}: annotates the image {name}, and so does {xml_of_image[name].name}; "
                "correct <filename>, or remove one of them."
            )
        xml_of_image[name] = path
    return list(xml_of_image)


def _stack_objects(files: _Files, parsed: Sequence[_Annotation], names: Sequence[str]) -> Objects:
    """Return the objects of all files; their ids are numbered from 1."""
    class_of = {name: k for k, name in enumerate(names)}
    objects, annotation_ids = ObjectList(), itertools.count(1)
    for index, annotation in enumerate(parsed):
        for name, (x1, y1, x2, y2), difficult in annotation.objects:
            if name not in class_of:
                raise ValueError(
                    f"{annotation.path}: has an object {name!r}, but the categories are "
                    f"{', '.join(names)}; correct it, or add it to data.categories."
                )
            box = (y1 - files.first_pixel, x1 - files.first_pixel, y2, x2)
            objects.append(next(annotation_ids), index, class_of[name], box, crowd=difficult)
    return objects.to_objects()


def _sizes(
    files: _Files, parsed: Sequence[_Annotation], image_names: Sequence[str]
) -> Int32[np.ndarray, "N 2"]:
    """Return the height and width of every image, from its XML file or its header."""
    sizes = np.array([annotation.size for annotation in parsed], np.int32).reshape(-1, 2)
    missing = np.flatnonzero((sizes == 0).any(axis=1)).tolist()
    sizes[missing] = read_oriented_sizes(
        files.image_folder, [image_names[index] for index in missing]
    )
    return sizes
