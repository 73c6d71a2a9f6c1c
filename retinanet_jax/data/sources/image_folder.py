"""Datasets of image files in a folder: which file each name means, and the sizes of the images."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int32

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.exif import MAX_EXAMINED, ExifDecision, decide_exif
from retinanet_jax.data.sources.image_headers import ImageHeader, read_headers
from retinanet_jax.data.sources.image_lookup import (
    check_used_once,
    find_image_files,
    show_path,
)
from retinanet_jax.data.sources.instances import InstancesSource
from retinanet_jax.data.sources.objects import Objects


class ImageFolderSource(InstancesSource):
    """A dataset of image files in a folder; subclasses read the annotations of a format.

    Everything is checked when the source is opened, before a run begins.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        *,
        file_names: Sequence[str],
        sizes: Int32[np.ndarray, "N 2"],
        objects: Objects,
        are_fractions: bool = False,
        decoding: Decoding = DEFAULT_DECODING,
        image_label: Callable[[int], str] | None = None,
        **contents: Any,
    ):
        """Find the image files, and check and store the contents of the dataset.

        Args:
            name: The file that lists the images, for messages.
            folder: The folder that the file names are relative to.
            file_names: The images in the annotations, which `find_image_files` finds.
            sizes: Height and width of every image in pixels; an image with a 0 has the size in its
                header.
            objects: The objects.
            are_fractions: Whether the boxes are fractions of the image's height and width instead
                of pixels.
            decoding: How the images are decoded. If its `exif` is "auto", the images decide it.
            image_label: Returns the name, for messages, of the entry of the image at an index; by
                default its id and file name.
            **contents: The further arguments of `InstancesSource`.

        Raises:
            FileNotFoundError: If the folder or an image is missing.
            ValueError: If a file is the image of two entries or its header cannot be read, or as in
                `InstancesSource`.
        """
        if image_label is None:
            image_label = functools.partial(_label_image, contents["image_ids"], file_names)
        files = find_image_files(name, folder, file_names, image_label)
        check_used_once(name, folder, files, image_label)
        sizes, decisions = _sizes_and_decision(folder, files, sizes, objects, decoding.exif)
        if decisions:
            decoding = decoding._replace(exif=decisions[0].exif)
            _log_decision(name, decisions[0])
        super().__init__(
            name,
            file_names=files,
            sizes=sizes,
            objects=objects.in_pixels(sizes) if are_fractions else objects,
            decoding=decoding,
            **contents,
        )
        self._folder = folder
        self.exif_decisions = decisions

    def path(self, index: int) -> pathlib.Path:
        """Return the file of the image at `index`."""
        return self._folder / self.file_names[index]

    def read(self, index: int) -> bytes:
        """Return the content of the image file at `index`.

        Raises:
            FileNotFoundError: If the file is missing.
        """
        path = self.path(index)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: the image of id {self.image_ids[index]} is missing; restore it, or "
                f"remove it from {self.name}."
            ) from None


def _label_image(image_ids: Sequence[int], file_names: Sequence[str], index: int) -> str:
    """Return the name of an image in messages: its id, and its file name in the annotations."""
    return f"image id {image_ids[index]} ({show_path(file_names[index])})"


def _sizes_and_decision(
    folder: pathlib.Path,
    file_names: Sequence[str],
    sizes: Int32[np.ndarray, "N 2"],
    objects: Objects,
    exif: str,
) -> tuple[Int32[np.ndarray, "N 2"], tuple[ExifDecision, ...]]:
    """Return all sizes, those that are 0 from the headers, and the decision if `exif` is "auto".

    Raises:
        ValueError: If the size of an image is not declared and cannot be read.
    """
    undeclared = (sizes == 0).any(axis=1)
    examined = undeclared.copy()
    if exif == "auto" and len(file_names):
        sample = np.linspace(0, len(file_names) - 1, min(len(file_names), MAX_EXAMINED))
        examined[sample.astype(int)] = True
    headers: dict[int, ImageHeader] = {}
    indices = np.flatnonzero(examined).tolist()
    results = read_headers(folder, [file_names[index] for index in indices])
    for index, header in zip(indices, results, strict=True):
        if isinstance(header, ImageHeader):
            headers[index] = header
        elif undeclared[index]:
            raise header
    sizes = np.where(undeclared[:, np.newaxis], np.int32(0), sizes)
    decisions = (decide_exif(headers, sizes, objects),) if exif == "auto" else ()
    decided = decisions[0].exif if decisions else exif
    for index in np.flatnonzero(undeclared).tolist():
        sizes[index] = headers[index].size(decided)
    return sizes, decisions


def _log_decision(name: str, decision: ExifDecision) -> None:
    """Log a decision that is not the usual one, or that no image or not every image shows."""
    is_unshown = decision.num_unknown and not decision.num_applied
    if decision.exif != "applied" or decision.num_ignored or is_unshown:
        logging.warning("%s: %s.", name, decision)
