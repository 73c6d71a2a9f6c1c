"""Pascal VOC: an XML file for each image, in the folders of the devkit or next to the images.

The devkit is described at http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf.
"""

import collections
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.data.sources.base import number_categories
from retinanet_jax.data.sources.fields import unknown_category
from retinanet_jax.data.sources.image_folder import ImageFolderSource
from retinanet_jax.data.sources.image_lookup import is_hidden, show_path
from retinanet_jax.data.sources.objects import ObjectList, Objects
from retinanet_jax.data.sources.voc_xml import VocAnnotation, parse_xml

# In a split of one class, the second column is 1, 0 for difficult objects only, or -1 for none.
CLASS_FLAGS = ("1", "0", "-1")


class VocSource(ImageFolderSource):
    """The images and boxes of Pascal VOC's XML files, in one of two layouts.

    In the layout of the devkit, coordinates are numbers of pixels, starting from 1, and a box
    includes its last pixel: xmin=1 is the left edge of the image, and xmax=width the right edge. In
    a folder of XML files, which labelImg and other tools write, coordinates are edges, and 0 is the
    left edge of the image.

    "Difficult" objects become crowd regions: they are not trained on as objects, and pycocotools
    ignores detections of them (for a region it computes the fraction of the detection that is
    inside). The parts of an object, such as the head of a person, are not read. Of a rotated box or
    a polygon, the axis-aligned box that encloses it is read.

    The image of an XML file is the one of the same stem or, if there is none, the file in
    <filename>: that is often left unchanged when files are renamed. A missing size is read from the
    header of the image.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        *,
        images: str | os.PathLike | None,
        split: str,
        categories: Sequence[str],
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Read and check all XML files.

        Args:
            annotations: A folder with Annotations, JPEGImages and ImageSets/Main, such as VOC2007
                of the devkit, or a folder of XML files.
            images: The folder of images; None or empty means JPEGImages, or the folder of the XML
                files, or the only one next to it that has their images.
            split: The file in ImageSets/Main that lists the images; empty for a folder of XML
                files, all of which are read.
            categories: The names in the order of their ids, which start from 1. If there are none,
                the sorted names in the files are used, which may differ between training and
                evaluation data.
            decoding: As in `ImageFolderSource`.

        Raises:
            FileNotFoundError: If a folder, a split, an XML file or an image is missing.
            ValueError: If an XML file is invalid; the message contains its path.
        """
        files = _find_files(pathlib.Path(annotations), split)
        parsed = [parse_xml(path) for path in files.xml_paths]
        folder = pathlib.Path(images) if images else _find_image_folder(files, parsed)
        file_names = _find_images(files, folder, parsed)
        names = categories or sorted({entry.name for xml in parsed for entry in xml.objects})
        objects = _stack_objects(files, parsed, names)

        def label(annotation_id: int) -> str:
            index = objects.image_index[annotation_id - 1]
            first = np.searchsorted(objects.image_index, index)  # annotations are in this order
            return f"object {annotation_id - first} of {files.xml_paths[index].name}"

        _log_outlines(files, parsed, label)
        super().__init__(
            files.listing,
            folder,
            image_ids=list(range(1, len(parsed) + 1)),
            file_names=file_names,
            sizes=np.array([xml.size for xml in parsed], np.int32).reshape(-1, 2),
            categories=number_categories(names),
            objects=objects,
            label=label,
            image_label=lambda index: f"{files.xml_paths[index].name} ({file_names[index]})",
            decoding=decoding,
        )


class _Files(NamedTuple):
    """The XML files of a dataset."""

    listing: str  # the file of the split, or the folder, for messages
    xml_paths: list[pathlib.Path]
    image_folder: pathlib.Path | None  # of the layout, if it has one
    first_pixel: int  # the coordinate of the left edge of an image's first pixel


def _find_files(root: pathlib.Path, split: str) -> _Files:
    """Detect the layout and find the XML files."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder of annotations; check the path.")
    if (root / "Annotations").is_dir():
        listing, image_folder = root / "ImageSets" / "Main" / f"{split}.txt", root / "JPEGImages"
        xml_paths = _read_split(root, listing)
        default = image_folder if image_folder.is_dir() else None
        return _Files(str(listing), xml_paths, default, first_pixel=1)
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
    xml_paths = sorted(
        path
        for path in root.iterdir()
        if path.suffix.lower() == ".xml" and not is_hidden(path.name)
    )
    if not xml_paths:
        raise FileNotFoundError(
            f"{root}: contains no XML; give a folder of XML, or a root that contains Annotations."
        )
    return _Files(str(root), xml_paths, None, first_pixel=0)


def _split_names(root: pathlib.Path) -> list[str]:
    """Return the splits; those of a class, such as cat_train, only if there are no others."""
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
    existing = {name for name in os.listdir(root / "Annotations") if not is_hidden(name)}
    lines = listing.read_text("utf-8-sig").splitlines()  # Windows writes a byte order mark
    named = [line.strip() for line in lines if line.strip()]
    stems = [
        next((stem for stem in _possible_stems(name) if f"{stem}.xml" in existing), "")
        for name in named
    ]
    missing = [name for name, stem in zip(named, stems, strict=True) if not stem]
    if missing:
        raise FileNotFoundError(
            f"{listing}: {len(missing)} of {len(stems)} images have no XML in "
            f"{root / 'Annotations'} (first: {missing[0]}.xml); restore it, or list only names."
        )
    repeated = [stem for stem, count in collections.Counter(stems).items() if count > 1]
    if repeated:
        raise ValueError(f"{listing}: lists {repeated[0]!r} twice; list each image once.")
    return [root / "Annotations" / f"{stem}.xml" for stem in stems]


def _possible_stems(line: str) -> Iterator[str]:
    """Yield the stems that a line may name: it may have a class's flag, a folder, or a suffix."""
    yield line
    name, _, flag = line.rpartition(" ")
    if flag in CLASS_FLAGS:
        line = name.strip()
        yield line
    base = line.replace("\\", "/").rpartition("/")[2]
    yield base
    yield os.path.splitext(base)[0]


def _find_image_folder(files: _Files, parsed: Sequence[VocAnnotation]) -> pathlib.Path:
    """Return the folder of images, if none is given."""
    if files.image_folder or not parsed:
        return files.image_folder or pathlib.Path(files.listing).parent
    folder = files.xml_paths[0].parent
    if any(map(has_image_suffix, _visible_files(folder))):
        return folder
    matching = [
        sibling
        for sibling in sorted(folder.absolute().parent.iterdir())
        if sibling.is_dir() and _has_all_images(parsed, _visible_files(sibling))
    ]
    if len(matching) > 1:
        raise ValueError(
            f"{folder}: has no images, and both {matching[0]} and {matching[1]} have images of "
            "these names; give the folder of images."
        )
    if not matching:
        return folder
    logging.warning("%s: has no images; those in %s are read.", folder, matching[0])
    return matching[0]


def _has_all_images(parsed: Sequence[VocAnnotation], file_names: set[str]) -> bool:
    """Return whether files are the images of all XML files, and not of XML files among them."""
    images = set(filter(has_image_suffix, file_names))
    if any(name.lower().endswith(".xml") for name in file_names):
        return False
    stems = {os.path.splitext(name)[0] for name in images}

    def is_described(xml: VocAnnotation) -> bool:
        if not has_image_suffix(xml.file_name):
            return xml.path.stem in stems
        # Masks of segmentation may have the same stem, and another suffix.
        own_name = xml.path.stem + os.path.splitext(xml.file_name)[1]
        return own_name in images or xml.file_name in images

    return all(map(is_described, parsed))


def _visible_files(folder: pathlib.Path) -> set[str]:
    """Return the names of the files and folders in a folder, without hidden ones."""
    return {name for name in os.listdir(folder) if not is_hidden(name)}


def _find_images(files: _Files, folder: pathlib.Path, parsed: Sequence[VocAnnotation]) -> list[str]:
    """Return the name of the image of every XML file, possibly in another spelling than it has."""
    existing = _visible_files(folder) if folder.is_dir() else set()
    names_of_stem = collections.defaultdict(list)
    for name in sorted(filter(has_image_suffix, existing)):
        names_of_stem[os.path.splitext(name)[0]].append(name)
    chosen, renamed = [], []
    for path, file_name, _, _ in parsed:
        own = names_of_stem[path.stem]
        if len(own) > 1:
            own = [name for name in own if name == file_name] or own
        if len(own) > 1:
            raise ValueError(
                f"{path}: may describe {own[0]} or {own[1]}, and has <filename> {file_name!r}; "
                "correct <filename>, or remove one of the images."
            )
        chosen += own or [file_name or path.stem]
        if own and file_name != own[0] and file_name in existing:
            renamed.append(f"{path.name}: {own[0]}, not {file_name}")
    if folder == pathlib.Path(files.listing):  # another one may be that of several splits
        _log_images_without_xml(folder, set(filter(has_image_suffix, existing)) - set(chosen))
    if renamed:
        logging.warning(
            "%s: %d XML files name another existing image in <filename> than the one of their own "
            "name, which is read (first: %s).",
            files.listing,
            len(renamed),
            renamed[0],
        )
    return chosen


def _log_images_without_xml(folder: pathlib.Path, names: set[str]) -> None:
    """Log how many images of a folder no XML file describes, if there are any."""
    if names:
        logging.warning(
            "%s: %d images have no XML file and are not read (first: %s).",
            folder,
            len(names),
            show_path(min(names)),
        )


def _log_outlines(
    files: _Files, parsed: Sequence[VocAnnotation], label: Callable[[int], str]
) -> None:
    """Log how many objects have another outline than a box."""
    outlines = [entry.outline for xml in parsed for entry in xml.objects]
    for outline in sorted(set(outlines) - {""}):
        logging.warning(
            "%s: %d objects have a <%s> and no <bndbox>; the axis-aligned box that encloses it is "
            "read (first: %s).",
            files.listing,
            outlines.count(outline),
            outline,
            label(outlines.index(outline) + 1),
        )


def _stack_objects(files: _Files, parsed: Sequence[VocAnnotation], names: Sequence[str]) -> Objects:
    """Return the objects of all files; their ids are numbered from 1."""
    class_of = {name: k for k, name in enumerate(names)}
    objects, annotation_ids = ObjectList(), itertools.count(1)
    for index, annotation in enumerate(parsed):
        for name, (x1, y1, x2, y2), difficult, _ in annotation.objects:
            if name not in class_of:
                raise ValueError(
                    f"{annotation.path}: has an object {unknown_category(name, names)}."
                )
            box = (y1 - files.first_pixel, x1 - files.first_pixel, y2, x2)
            objects.append(next(annotation_ids), index, class_of[name], box, crowd=difficult)
    return objects.to_objects()
