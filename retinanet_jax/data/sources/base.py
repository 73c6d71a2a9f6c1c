"""The interface of a dataset: its sizes and annotations in memory, its images read on demand.

Plans, pipelines, training and evaluation use only `Source`, which the other modules of this folder
implement for each format. Subsets, such as the training and validation images of a split, are
sources, too.
"""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from retinanet_jax.data.decoding import decode_image


class Category(NamedTuple):
    """A category of objects, with its id and name in the dataset."""

    id: int
    name: str


class Annotations(NamedTuple):
    """The n annotated objects of an image.

    Attributes:
        boxes: yxyx in pixels of the original image.
        classes: Indices into the source's `categories`.
        crowd: Whether a box is a region of many objects (COCO's `iscrowd`) instead of an object.
    """

    boxes: Float32[np.ndarray, "n 4"]
    classes: Int32[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]


class Source(abc.ABC):
    """A dataset of images that are addressed by an index from 0.

    Attributes:
        name: The dataset's name in messages.
        categories: Sorted by id; class k of the network is `categories[k]`.
        sizes: Height and width of every image in pixels, with its EXIF orientation applied unless
            the image was annotated without it.
        image_ids: The id of every image in the dataset.
    """

    name: str
    categories: tuple[Category, ...]
    sizes: Int32[np.ndarray, "N 2"]
    image_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.image_ids)

    @abc.abstractmethod
    def annotations(self, index: int) -> Annotations:
        """Return the objects of the image at `index`; there may be none."""

    @abc.abstractmethod
    def file_name(self, index: int) -> str:
        """Return the name of the image at `index` in the dataset."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes | None:
        """Return the encoded image at `index`, or None if the source stores pixels instead.

        Raises:
            FileNotFoundError: If the image is missing; the message contains its file and id.
        """

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the image at `index` as RGB pixels, with its EXIF orientation applied.

        A source that stores pixels may return an image of another size than `sizes[index]`.

        Raises:
            FileNotFoundError: If the image is missing.
            ValueError: If the image is corrupt, or its size is not `sizes[index]`.
        """
        data = self.read(index)
        assert data is not None, f"{type(self).__name__} must implement `read` or `image`"
        height, width = self.sizes[index].tolist()
        return decode_image(data, self.file_name(index), size=(height, width))

    @abc.abstractmethod
    def ground_truth(self) -> dict[str, Any]:
        """Return images, categories and annotations in COCO's JSON format, for pycocotools."""


def subset(source: Source, indices: Iterable[int]) -> Source:
    """Return a dataset of some of the images of another dataset.

    Args:
        source: The other dataset.
        indices: The indices of the images, in the order of the new dataset.
    """
    return _Subset(source, indices)


def split_by_hash(source: Source, fraction: float) -> tuple[Source, Source]:
    """Split a dataset into training images and a fraction of images for validation.

    An image is assigned to a part by the hash of its file name only, so that adding or removing
    other images does not move it. If one part would be empty, it receives the image with the
    nearest hash.

    Args:
        source: The dataset to split.
        fraction: The expected fraction of validation images, between 0 and 1.

    Returns:
        The training part and the validation part.

    Raises:
        ValueError: If `fraction` is not between 0 and 1, or if the dataset does not have two
            different file names.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1; try 0.1.")
    positions = np.array([_position(source.file_name(index)) for index in range(len(source))])
    if len(np.unique(positions)) < 2:
        raise ValueError(
            f"{source.name}: {len(source)} images cannot be split into training and validation; "
            "add images, or give separate validation annotations."
        )
    is_validation = positions < fraction
    if not is_validation.any():
        is_validation = positions == positions.min()
    if is_validation.all():
        is_validation = positions != positions.max()
    training, validation = (
        np.flatnonzero(part).tolist() for part in (~is_validation, is_validation)
    )
    return subset(source, training), subset(source, validation)


def _position(file_name: str) -> float:
    """Return a number in [0, 1) that, unlike `hash`, is the same on all machines and versions."""
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class _Subset(Source):
    """The images of another source at some of its indices."""

    def __init__(self, source: Source, indices: Iterable[int]):
        self._source = source
        self._indices = list(indices)
        self.name = source.name
        self.categories = source.categories
        self.sizes = source.sizes[self._indices]
        self.image_ids = [source.image_ids[index] for index in self._indices]

    def annotations(self, index: int) -> Annotations:
        return self._source.annotations(self._indices[index])

    def file_name(self, index: int) -> str:
        return self._source.file_name(self._indices[index])

    def read(self, index: int) -> bytes | None:
        return self._source.read(self._indices[index])

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._source.image(self._indices[index])

    def ground_truth(self) -> dict[str, Any]:
        ids = set(self.image_ids)
        truth = self._source.ground_truth()
        images = [image for image in truth["images"] if image["id"] in ids]
        annotations = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
        return {**truth, "images": images, "annotations": annotations}
