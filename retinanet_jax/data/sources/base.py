"""The interface of a dataset: sizes and annotations up front, encoded images on demand.

`Source` is what plans, pipelines, training and evaluation know of a dataset; the other modules of
this folder implement it for the formats. Subsets and the split into training and validation
images are sources too.
"""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from retinanet_jax.data.decoding import decode_image


class Category(NamedTuple):
    """A category of objects with the id and the name that the dataset gives it."""

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
        sizes: Height and width of every image in pixels, after its EXIF orientation has been
            applied, except where the image was annotated unrotated.
        image_ids: The dataset's own id of every image.
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
        """Return the name that the dataset gives the image at `index`."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes | None:
        """Return the encoded image at `index`, or None if the source stores pixels, not files.

        Raises:
            FileNotFoundError: If the image is missing; the message names its file and id.
        """

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the image at `index` as RGB pixels, with its EXIF orientation applied.

        A source that stores pixels may return them in another size than `sizes`.

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
        """Return images, categories and annotations as COCO JSON for pycocotools."""


def subset(source: Source, indices: Iterable[int]) -> Source:
    """Return a source of the images of `source` at `indices`, in that order."""
    return _Subset(source, indices)


def split_by_hash(source: Source, fraction: float) -> tuple[Source, Source]:
    """Split a dataset into training images and about `fraction` of it for validation.

    The part to which an image belongs depends only on its file name, so it stays in that part when
    other images are added or removed. If a part would be empty, it gets the image that is nearest
    to it.

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
    """Return a number in [0, 1) that is equal on every machine and Python (unlike `hash`)."""
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
