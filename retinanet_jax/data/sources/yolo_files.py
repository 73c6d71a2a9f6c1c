"""The image files of a split of a YOLO dataset, and the file of labels of each image."""

import collections
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import logging

from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.data.sources.image_lookup import find_image_files, show_path, walk_files
from retinanet_jax.data.sources.yolo_layout import (
    NAMES_FILES,
    SPLIT_OF,
    Layout,
    find_start,
    locate,
    read_lines,
    split_path,
)

IMAGE_FOLDERS = ("images", "jpegimages")  # next to which there is a folder "labels"
LABELS = "labels"
MAX_TRIED = 10  # lines of a list that are searched for an existing image
# Files of text in a folder of labels that are not labels, unless an image has the same name.
OTHER_FILES = {*NAMES_FILES, *(f"{name}.txt" for name in SPLIT_OF)}


class YoloFiles(NamedTuple):
    """The files of a split.

    Attributes:
        images: The images, relative to the dataset's folder.
        labels: The file of labels of each image; None if it has none.
    """

    images: list[str]
    labels: list[pathlib.Path | None]


def find_files(
    layout: Layout, name: str, locations: Sequence[str], labels: pathlib.Path | None
) -> YoloFiles:
    """Return the files of a split.

    The labels of images/a.jpg are in labels/a.txt, where "images" may be any folder of the path;
    next to the image; in a subfolder "labels"; or in a folder of the same name in "labels" next to
    the folder of the image. Warnings report images without labels, and labels without an image.

    Args:
        layout: The dataset.
        name: The split's name in messages.
        locations: Its folders of images, of which subfolders belong to it, and its lists of images.
        labels: The folder of labels, with the same subfolders as the single location; None if it
            is not given.

    Raises:
        FileNotFoundError: If a location or a listed image is missing, there are no images, or none
            of them has labels.
    """
    root = layout.folders[0]
    images: list[str] = []
    has_lists = False
    for location in locations:
        path = locate(layout.folders, location)
        if path is None:
            raise FileNotFoundError(
                f"{name}: {show_path(location)} is neither a folder nor a file in {root}; correct "
                "the path of the images."
            )
        has_lists |= path.is_file()
        images += _images_of_list(layout, path) if path.is_file() else _images_in(root, path)
    if not images:
        raise FileNotFoundError(
            f"{name}: there is no image in {show_path(', '.join(locations))}; give the folder of "
            "the images."
        )
    images = find_image_files(name, root, list(dict.fromkeys(images)))
    given = None if labels is None or has_lists else (pathlib.Path(locations[0]), labels)
    return YoloFiles(images, _find_labels(name, root, images, given, warn_of_rest=not has_lists))


def _images_in(root: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Return the images in a folder and its subfolders, relative to the root."""
    start = os.path.relpath(folder, root)
    names = filter(has_image_suffix, sorted(walk_files(folder)))
    return [os.path.normpath(os.path.join(start, name)) for name in names]


def _images_of_list(layout: Layout, path: pathlib.Path) -> list[str]:
    """Return the images that a file lists, one a line, relative to the dataset's folder.

    All of them are relative to the same folder as the first one.
    """
    paths = list(filter(None, read_lines(path)))
    starts = (find_start((path.parent, *layout.folders), text) for text in paths[:MAX_TRIED])
    folder, num_skipped = next(filter(None, starts), (path.parent, 0))
    start = os.path.relpath(folder, layout.folders[0])
    return [
        os.path.normpath(os.path.join(start, *split_path(text)[num_skipped:])) for text in paths
    ]


def _find_labels(
    name: str,
    root: pathlib.Path,
    images: Sequence[str],
    given: tuple[pathlib.Path, pathlib.Path] | None,
    *,
    warn_of_rest: bool,
) -> list[pathlib.Path | None]:
    """Return the file of labels of each image, and log which images or labels have no partner."""
    by_folder: dict[str, list[int]] = collections.defaultdict(list)
    for index, image in enumerate(images):
        by_folder[os.path.dirname(image)].append(index)
    matched: list[pathlib.Path | None] = [None] * len(images)
    rest: list[pathlib.Path] = []
    for folder, indices in by_folder.items():
        stems = [os.path.splitext(os.path.basename(images[index]))[0] for index in indices]
        for candidate in _label_folders(root / folder, given):
            files = _LabelFolder(candidate)
            matches = [files.match(stem) for stem in stems]
            if any(matches):
                for index, match in zip(indices, matches, strict=True):
                    matched[index] = candidate / match if match else None
                rest += [candidate / file for file in sorted(files.names - set(matches))]
                break
    _report_missing(name, images, matched)
    if rest and warn_of_rest:
        logging.warning(
            "%s: %d files of labels have no image and are not read (first: %s).",
            name,
            len(rest),
            show_path(str(rest[0])),
        )
    return matched


def _label_folders(
    folder: pathlib.Path, given: tuple[pathlib.Path, pathlib.Path] | None
) -> Iterator[pathlib.Path]:
    """Yield the existing folders that may contain the labels of the images in a folder.

    Args:
        folder: The folder of images.
        given: A folder of images and its folder of labels, if they are given.
    """
    parts = folder.parts
    candidates = [given[1] / os.path.relpath(folder, given[0])] if given else []
    for k in reversed(range(len(parts))):
        if parts[k].lower() in IMAGE_FOLDERS:
            candidates.append(pathlib.Path(*parts[:k], LABELS, *parts[k + 1 :]))
            break
    candidates += [folder, folder / LABELS, folder.parent / LABELS / folder.name]
    return (candidate for candidate in candidates if candidate.is_dir())


class _LabelFolder:
    """The names of the files of labels in a folder.

    Attributes:
        names: The files, without those in OTHER_FILES.
    """

    def __init__(self, folder: pathlib.Path):
        self._texts = {
            name
            for name in os.listdir(folder)
            if name.lower().endswith(".txt") and not name.startswith(".")
        }
        self.names = {name for name in self._texts if name.lower() not in OTHER_FILES}
        self._by_stem = collections.defaultdict(list)
        for name in self.names:
            self._by_stem[_normalize(os.path.splitext(name)[0])].append(name)

    def match(self, stem: str) -> str | None:
        """Return the file of an image's labels, possibly in another letter case or Unicode form."""
        if f"{stem}.txt" in self._texts:
            return f"{stem}.txt"
        matches = self._by_stem.get(_normalize(stem), [])
        return matches[0] if len(matches) == 1 else None


def _normalize(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def _report_missing(
    name: str, images: Sequence[str], labels: Sequence[pathlib.Path | None]
) -> None:
    """Log how many images have no file of labels.

    Raises:
        FileNotFoundError: If none has one.
    """
    missing = [image for image, path in zip(images, labels, strict=True) if path is None]
    if len(missing) == len(images):
        raise FileNotFoundError(
            f"{name}: none of its {len(images)} images has a file of labels (first: "
            f"{show_path(images[0])}); put the files, of the same names with .txt, into a folder "
            "labels next to the folder images, or next to the images."
        )
    if missing:
        logging.warning(
            "%s: %d of %d images have no file of labels and count as images without objects "
            "(first: %s).",
            name,
            len(missing),
            len(images),
            show_path(missing[0]),
        )
