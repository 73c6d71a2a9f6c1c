"""The interface of a dataset: its sizes and annotations in memory, its images read on demand.

Plans, pipelines, training, evaluation and the dataset report use only `Source`, which the other
modules of this folder implement for each format. Whatever a file contains is parsed once, into
`Source.objects`; training, report and evaluation all read that. Subsets, such as the training and
held-out images of a split, are sources, too.
"""

import abc
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding, decode_image
from retinanet_jax.data.sources.exif import ExifDecision
from retinanet_jax.data.sources.objects import Objects, box_sides, clip_to_image, sort_by_image


class Category(NamedTuple):
    """A category of objects, with its id and name in the dataset."""

    id: int
    name: str


def number_categories(names: Iterable[str]) -> list[Category]:
    """Return categories of these names, with ids from 1 in their order."""
    return [Category(category_id, name) for category_id, name in enumerate(names, start=1)]


class Annotations(NamedTuple):
    """The n annotated objects of an image that have an area inside it.

    Attributes:
        boxes: yxyx in pixels of the original image, clipped to it.
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
        image_ids: The id of every image in the dataset.
        file_names: The name of every image in the dataset.
        sizes: Height and width of every image in pixels, with its EXIF orientation applied unless
            the image was annotated without it.
        categories: Sorted by id; class k of the network is `categories[k]`.
        objects: All annotated objects, in the order of the images.
        decoding: How the images are decoded.
        exif_decisions: What the images of each file of annotations show about their orientation;
            empty if that was not examined.
        has_images: Whether the images can be read; without them, AP can be computed.
    """

    exif_decisions: tuple[ExifDecision, ...] = ()
    has_images = True

    def __init__(
        self,
        name: str,
        *,
        image_ids: Sequence[int],
        file_names: Sequence[str],
        sizes: Int32[np.ndarray, "N 2"],
        categories: Iterable[Category],
        objects: Objects,
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Store the contents of a dataset.

        Args:
            name: As in `Source`.
            image_ids: As in `Source`.
            file_names: As in `Source`.
            sizes: As in `Source`.
            categories: In any order; the classes of `objects` refer to them sorted by id.
            objects: The objects, in any order.
            decoding: As in `Source`.
        """
        self.name = name
        self.image_ids = image_ids
        self.file_names = file_names
        self.sizes = sizes
        self.categories = tuple(sorted(categories))
        self.objects = sort_by_image(objects)
        self.decoding = decoding
        # The position of the first object of each image, and at the end the number of objects.
        self._bounds = np.searchsorted(self.objects.image_index, np.arange(len(image_ids) + 1))

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def object_mask(self) -> Bool[np.ndarray, " M"]:
        """Whether each annotation is trained on as an object: it has an area and is no crowd."""
        _, has_area, _ = clip_to_image(self.objects.boxes, self.sizes[self.objects.image_index])
        return has_area & ~self.objects.crowd

    def annotations(self, index: int) -> Annotations:
        """Return the objects of the image at `index`, except boxes without an area."""
        start, stop = self._bounds[index : index + 2].tolist()
        sizes = np.broadcast_to(self.sizes[index], (stop - start, 2))
        boxes, has_area, _ = clip_to_image(self.objects.boxes[start:stop], sizes)
        fields = boxes, self.objects.classes[start:stop], self.objects.crowd[start:stop]
        return Annotations(*(field[has_area] for field in fields))

    def file_name(self, index: int) -> str:
        """Return the name of the image at `index` in the dataset."""
        return self.file_names[index]

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
        return self.decode(index, data)

    def decode(self, index: int, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels of the encoded image at `index`, as `image` does.

        Args:
            index: The index of the image.
            data: What `read` has returned.

        Raises:
            ValueError: If the image is corrupt, or its size is not `sizes[index]`.
        """
        height, width = self.sizes[index].tolist()
        return decode_image(
            data, self.file_names[index], size=(height, width), decoding=self.decoding_of(index)
        )

    def decoding_of(self, index: int) -> Decoding:
        """Return how the image at `index` is decoded; parts of a merged dataset may differ."""
        return self.decoding

    def path(self, index: int) -> pathlib.Path | None:
        """Return the file of the image at `index`; None if it is no file of its own."""
        return None

    def ground_truth(self) -> dict[str, Any]:
        """Return images, categories and boxes in COCO's JSON format, from which AP is computed."""
        images = [
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
            for image_id, file_name, (height, width) in zip(
                self.image_ids, self.file_names, self.sizes.tolist(), strict=True
            )
        ]
        categories = [category._asdict() for category in self.categories]
        return {"images": images, "categories": categories, "annotations": self._instances()}

    def _instances(self) -> list[dict[str, Any]]:
        """Return all objects in COCO's JSON format."""
        objects = self.objects
        columns = (
            objects.ids,
            objects.image_index,
            objects.classes,
            objects.boxes[:, 1::-1],
            box_sides(objects.boxes)[:, ::-1],
            objects.areas,
            objects.crowd,
        )
        return [
            {
                "id": annotation_id,
                "image_id": self.image_ids[image_index],
                "category_id": self.categories[k].id,
                "bbox": corner + sides,
                "area": area,
                "iscrowd": int(crowd),
            }
            for annotation_id, image_index, k, corner, sides, area, crowd in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]


class DatasetImage(NamedTuple):
    """An image of a dataset that is read, in the way of its dataset, when it is needed."""

    source: Source
    index: int

    @property
    def filename(self) -> str:
        """The name of the image in the dataset."""
        return self.source.file_name(self.index)

    def read(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels, as `Source.image` does."""
        return self.source.image(self.index)


def subset(source: Source, indices: Iterable[int]) -> Source:
    """Return a dataset of some of the images of another dataset.

    Args:
        source: The other dataset.
        indices: The indices of the images, in the order of the new dataset, without repetitions.
    """
    return _Subset(source, list(indices))


class _Subset(Source):
    """The images of another source at some of its indices."""

    def __init__(self, source: Source, indices: list[int]):
        self._source = source
        self._indices = indices
        super().__init__(
            source.name,
            image_ids=[source.image_ids[index] for index in indices],
            file_names=[source.file_names[index] for index in indices],
            sizes=source.sizes[indices],
            categories=source.categories,
            objects=source.objects.of_images(indices),
            decoding=source.decoding,
        )
        self.exif_decisions = source.exif_decisions

    def read(self, index: int) -> bytes | None:
        return self._source.read(self._indices[index])

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._source.image(self._indices[index])

    def decoding_of(self, index: int) -> Decoding:
        return self._source.decoding_of(self._indices[index])

    def path(self, index: int) -> pathlib.Path | None:
        return self._source.path(self._indices[index])
