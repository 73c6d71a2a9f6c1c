"""Pre-labeling: confident detections are written as the labels of a dataset of the same images."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.formats import FORMATS, ImageLabels, LabelFile
from retinanet_jax.inference.names import safe_name, unique_names
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import format_count, one_line

if TYPE_CHECKING:
    from retinanet_jax.inference.predictions import InputImage


class LabelWriter:
    """Collects the labels of images, and writes them in one or more formats.

    Args:
        formats: Names of `FORMATS`; each is written to a subfolder of this name.
        images: All images.
        categories: The categories of the dataset.
        folder: The folder to write to.
        threshold: The lowest score of a detection that becomes a label.

    Raises:
        ValueError: If an image is no file, or its name cannot be written in the formats.
        FileExistsError: If a file of the labels exists and was not written by an earlier run, or
            was changed since, as labels are that were corrected.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        formats: Sequence[str],
        images: Sequence["InputImage"],
        categories: Sequence[Category],
        folder: OutputFolder,
        threshold: float,
    ) -> None:
        self._formats, self._categories = formats, categories
        self._folder, self._threshold = folder, threshold
        names = unique_names([safe_name(image.path.stem) for image in images])
        self._names = dict(zip((image.image_id for image in images), names, strict=True))
        self._labels: list[ImageLabels] = []
        check_files(images)
        # The names of the files do not depend on the labels.
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
        unlabeled = [
            ImageLabels(image.path, image.image_id, name, (1, 1), *nothing)
            for image, name in zip(images, names, strict=True)
        ]
        folder.prepare(*(name for name, _ in self._files(unlabeled)))

    def add(self, image: "InputImage", detections: Detections, size: tuple[int, int]) -> None:
        """Add the labels of an image.

        Args:
            image: The image.
            detections: Its detections; boxes without an area inside the image are left out.
            size: The height and width in pixels to which the boxes refer.
        """
        boxes = np.clip(detections.boxes, 0, (*size[::-1], *size[::-1])).astype(np.float32)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        keep = has_area & (detections.scores >= self._threshold)
        columns = boxes[keep], detections.scores[keep], detections.classes[keep]
        name = self._names[image.image_id]
        self._labels.append(ImageLabels(image.path, image.image_id, name, size, *columns))

    def write(self) -> str:
        """Write all files, and return a line about them."""
        for name, content in self._files(self._labels):
            if isinstance(content, pathlib.Path):
                self._folder.link(name, content)
            else:
                self._folder.write(name, content)
        num_labels = sum(len(image.scores) for image in self._labels)
        return (
            f"{format_count(num_labels, 'label')} with a score of {self._threshold:g} or more in "
            f"{format_count(len(self._labels), 'image')}: "
            f"{', '.join(str(self._folder.path / name) for name in self._formats)}"
        )

    def _files(self, labels: Sequence[ImageLabels]) -> list[LabelFile]:
        """Return the files of all formats."""
        return [
            (f"{name}/{file}", content)
            for name in self._formats
            for file, content in FORMATS[name](labels, self._categories, self._folder.path / name)
        ]


def check_files(images: Iterable["InputImage"]) -> None:
    """Check that labels can refer to images by the paths of their files.

    Args:
        images: The images.

    Raises:
        ValueError: If one is no file, or its path cannot be written in the formats.
    """
    for image in images:
        if not image.path.is_file():
            raise ValueError(
                f"{one_line(image.name)}: is no image file, to which the labels of --format could "
                "refer; save the image, and pass the file."
            )
        path = str(image.path)
        is_utf8 = path.encode(errors="replace").decode() == path
        if not is_utf8 or path.splitlines() != [path.strip()]:
            raise ValueError(
                f"{path!r}: the files of --format cannot contain this path, because of a line "
                "break, a space at its end, or bytes that are not UTF-8; rename it."
            )
