"""Datasets of image files in a folder: a check that all of them exist, and their sizes."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from PIL import Image

from retinanet_jax.data.decoding import ORIENTATIONS, valid_orientation
from retinanet_jax.data.image_formats import pillow_reason
from retinanet_jax.data.sources.instances import InstancesSource
from retinanet_jax.utils.threads import map_ahead

NUM_READERS = 16  # threads
# A PNG with an EXIF orientation contains at least one of these chunk names and keywords.
PNG_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


class ImageFolderSource(InstancesSource):
    """A dataset of image files in a folder; subclasses read the annotations of a format.

    Everything is checked when the source is opened, before a run begins.
    """

    def __init__(self, name: str, folder: pathlib.Path, **contents: Any):
        """Check and store the contents of the dataset.

        Args:
            name: The file that lists the images, for messages.
            folder: The folder that the file names are relative to.
            **contents: The further arguments of `InstancesSource`.

        Raises:
            FileNotFoundError: If the folder or an image is missing.
            ValueError: As in `InstancesSource`.
        """
        super().__init__(name, **contents)
        self._folder = folder
        check_files_exist(name, folder, self.file_names)

    def read(self, index: int) -> bytes:
        """Return the content of the image file at `index`.

        Raises:
            FileNotFoundError: If the file is missing.
        """
        path = self._folder / self.file_names[index]
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: the image of id {self.image_ids[index]} is missing; restore it, or "
                f"remove it from {self.name}."
            ) from None


def check_files_exist(name: str, folder: pathlib.Path, file_names: Sequence[str]) -> None:
    """Check that the image files of a dataset exist.

    Every subfolder is listed once, because asking for each file is slow on network disks.

    Args:
        name: The dataset's name in messages: the file that lists the images.
        folder: The folder that the file names are relative to.
        file_names: The file names.

    Raises:
        FileNotFoundError: If the folder or an image is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder of images; give the folder that "
            f"the file names of {name} are relative to."
        )
    listed = [os.path.normpath(file_name) for file_name in file_names]
    parents = {os.path.dirname(file_name) for file_name in listed}
    existing = {
        os.path.join(parent, file_name)
        for parent in parents
        if (folder / parent).is_dir()
        for file_name in os.listdir(folder / parent)
    }
    missing = [file_name for file_name in listed if file_name not in existing]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(listed)} images of {name} are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); give the folder "
            "that their names are relative to, or remove them from it."
        )


def read_oriented_sizes(
    folder: pathlib.Path, file_names: Sequence[str]
) -> Int32[np.ndarray, "N 2"]:
    """Read the heights and widths of images, with EXIF orientation applied, from their headers.

    5,000 images on a local disk take a few seconds; threads help on disks with a high latency.

    Args:
        folder: The folder that the file names are relative to.
        file_names: The image files.

    Raises:
        ValueError: If a file is not an image; the message contains its path.
    """
    sizes = map_ahead(
        lambda file_name: _read_oriented_size(folder / file_name),
        file_names,
        num_ahead=2 * NUM_READERS,
        num_threads=NUM_READERS,
    )
    return np.fromiter(sizes, np.dtype((np.int32, 2)), len(file_names))


def _read_oriented_size(path: pathlib.Path) -> tuple[int, int]:
    """Read the height and width of one image."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # To find an EXIF tag, which few PNGs have, Pillow would decode the whole image.
            if image.format == "PNG" and not _has_exif(path.read_bytes()):
                return height, width
            orientation = valid_orientation(image, str(path), None)
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise ValueError(
            f"{path}: the image's size cannot be read ({pillow_reason(error)}); replace it, "
            "or remove it from the dataset."
        ) from None
    return (width, height) if ORIENTATIONS[orientation][0] else (height, width)


def _has_exif(png: bytes) -> bool:
    """Return whether a PNG may contain an EXIF orientation."""
    return any(mark in png for mark in PNG_EXIF_MARKS)
