"""What a data set is to this package: sizes and annotations up front, picture bytes on demand."""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from retinanet_jax.data.transforms import decode_image


class Category(NamedTuple):
    """A kind of object, as the data set numbers and names it."""

    id: int
    name: str


class Annotations(NamedTuple):
    """The objects of one picture; `boxes` are yxyx in pixels of the original picture."""

    boxes: Float32[np.ndarray, "n 4"]
    classes: Int32[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]  # the box is a region of many, not of one


class Source(abc.ABC):
    """An indexed data set.

    Attributes:
        name: For messages.
        categories: Sorted by id; class k of the network is `categories[k]`.
        sizes: Height and width of every picture as it is shown (after its EXIF orientation),
            except where it was annotated unrotated.
        image_ids: The data set's own number of every picture.
    """

    name: str
    categories: tuple[Category, ...]
    sizes: Int32[np.ndarray, "N 2"]
    image_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.image_ids)

    @abc.abstractmethod
    def annotations(self, index: int) -> Annotations:
        """The objects of one picture; none is ordinary."""

    @abc.abstractmethod
    def file_name(self, index: int) -> str:
        """The picture's name, as the data set has it."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes | None:
        """The encoded picture, or None where the source holds pixels.

        Raises FileNotFoundError naming file and image id where it is missing.
        """

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB pixels, upright; a source of pixels may hold them in another size than `sizes`."""
        data = self.read(index)
        assert data is not None, f"{type(self).__name__} reads no files and gives no pixels"
        height, width = self.sizes[index].tolist()
        return decode_image(data, self.file_name(index), size=(height, width))

    @abc.abstractmethod
    def ground_truth(self) -> dict[str, Any]:
        """Pictures, categories and annotations as COCO JSON, as pycocotools takes them."""


def subset(source: Source, indices: Iterable[int]) -> Source:
    """The pictures of `source` at `indices`, in that order."""
    return _Subset(source, indices)


def split_by_hash(source: Source, fraction: float) -> tuple[Source, Source]:
    """Training pictures, and about `fraction` of all held out for validation.

    A picture's side depends on its file name alone, so that it stays there when others come or go;
    only where a side would be empty does the picture nearest to it change over.
    Raises ValueError where there are not two different file names to part.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1; try 0.1.")
    positions = np.array([_position(source.file_name(index)) for index in range(len(source))])
    if len(np.unique(positions)) < 2:
        raise ValueError(
            f"{source.name}: {len(source)} pictures cannot be parted into training and "
            "validation; add pictures or give validation annotations of their own."
        )
    held_out = positions < fraction
    if not held_out.any():
        held_out = positions == positions.min()
    if held_out.all():
        held_out = positions != positions.max()
    train, validation = (np.flatnonzero(side).tolist() for side in (~held_out, held_out))
    return subset(source, train), subset(source, validation)


def _position(file_name: str) -> float:
    """A number in [0, 1) that every machine and version computes alike (unlike `hash`)."""
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class _Subset(Source):
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
        kept = set(self.image_ids)
        truth = self._source.ground_truth()
        images = [image for image in truth["images"] if image["id"] in kept]
        annotations = [one for one in truth["annotations"] if one["image_id"] in kept]
        return {**truth, "images": images, "annotations": annotations}
