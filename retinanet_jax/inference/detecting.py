"""What the writers of results expect of a detector: the plain one, or one that wraps it."""

import abc
from collections.abc import Iterable, Iterator
from typing import Protocol

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.image_files import ImageLike
from retinanet_jax.data.sources.base import DatasetImage
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.network_inputs import raise_error


class ImageDetector(Protocol):
    """Any detector of the objects in images: the plain one, one in tiles, or one that averages.

    `retinanet_jax.detector.Detector` is one, and so are the detectors that wrap it.
    """

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, with the limits of this detector in its config."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all categories that the detector was trained on, by class index."""
        ...

    def batch_with_errors(
        self, images: Iterable[ImageLike | DatasetImage], batch_size: int = 8
    ) -> Iterator[Detections | ValueError]:
        """Return the detections of each image, or its error, in order.

        Args:
            images: Image files, as paths, URLs or open files; Pillow images; uint8 arrays of shape
                (H, W, 3) in RGB or (H, W) in gray; or images of a dataset.
            batch_size: The number of images that the network processes at once.

        Raises:
            ValueError: If `batch_size` is less than 1 or `images` is a single image.
        """
        ...


class WrappingDetector(abc.ABC):
    """A detector that wraps another one, and detects in images as `Detector` does."""

    @abc.abstractmethod
    def batch_with_errors(
        self, images: Iterable[ImageLike | DatasetImage], batch_size: int = 8
    ) -> Iterator[Detections | ValueError]:
        """Do the same as `batch`, but return the error of an image that cannot be read or used."""

    def __call__(self, image: ImageLike, batch_size: int = 1) -> Detections:
        """Detect the objects in one image, as `Detector.__call__` does.

        Args:
            image: The image.
            batch_size: The number of parts or views that the network processes at once.
        """
        (detections,) = self.batch([image], batch_size)
        return detections

    def batch(self, images: Iterable[ImageLike], batch_size: int = 8) -> Iterator[Detections]:
        """Detect the objects in many images, as `Detector.batch` does.

        Args:
            images: The images.
            batch_size: The number of parts or views that the network processes at once.
        """
        return map(raise_error, self.batch_with_errors(images, batch_size))
