"""The base class of datasets that keep the names, sizes and objects of all images in memory."""

import array
import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float64, Int, Int32, Int64

from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.data.sources.boxes import OUTSIDE, WITHOUT_AREA, clip_to_image


class Objects(NamedTuple):
    """The M annotated objects of a dataset, with all boxes as they are annotated.

    Attributes:
        ids: The id of each annotation.
        image_index: The index of each object's image.
        classes: Indices into the source's `categories`.
        boxes: yxyx in pixels of the original image.
        crowd: As in `Annotations`.
        areas: Areas in square pixels; None means those of the boxes.
    """

    ids: Int64[np.ndarray, " M"]
    image_index: Int32[np.ndarray, " M"]
    classes: Int32[np.ndarray, " M"]
    boxes: Float64[np.ndarray, "M 4"]
    crowd: Bool[np.ndarray, " M"]
    areas: Float64[np.ndarray, " M"] | None = None

    def select(self, indices: Int[np.ndarray, " m"]) -> "Objects":
        """Return the objects at these indices."""
        fields = self._asdict().items()
        return Objects(**{name: field[indices] for name, field in fields if field is not None})


class ObjectList:
    """A list of objects that a parser appends to; in compact arrays, of 49 bytes per object."""

    def __init__(self):
        self._ids = array.array("q")
        self._image_index = array.array("i")
        self._classes = array.array("i")
        self._boxes = array.array("d")
        self._crowd = array.array("b")

    def append(
        self,
        annotation_id: int,
        image_index: int,
        class_index: int,
        box: Sequence[float],
        *,
        crowd: bool = False,
    ) -> None:
        """Add an object; the arguments are as in `Objects`."""
        self._ids.append(annotation_id)
        self._image_index.append(image_index)
        self._classes.append(class_index)
        self._boxes.extend(box)
        self._crowd.append(crowd)

    def to_objects(self) -> Objects:
        """Return the objects in the order in which they were added."""
        return Objects(
            np.array(self._ids, np.int64),
            np.array(self._image_index, np.int32),
            np.array(self._classes, np.int32),
            np.array(self._boxes, np.float64).reshape(-1, 4),
            np.array(self._crowd, bool),
        )


class InstancesSource(Source):
    """A dataset with the names, sizes and objects of all images in memory.

    Every object is in memory once. Boxes without an area inside their image are left out of
    training, and boxes that extend beyond their image are clipped; warnings report how many.
    `ground_truth` contains all boxes unchanged.
    """

    def __init__(
        self,
        name: str,
        *,
        image_ids: Sequence[int],
        file_names: Sequence[str],
        sizes: Int32[np.ndarray, "N 2"],
        categories: Iterable[Category],
    ):
        """Check and store everything but the objects, which `_set_objects` stores.

        Args:
            name: The dataset's name in messages.
            image_ids: The id of every image.
            file_names: The name of every image.
            sizes: Height and width of every image in pixels.
            categories: The categories; their ids differ.

        Raises:
            ValueError: If there are no images or no categories, or names are repeated.
        """
        if not image_ids:
            raise ValueError(f"{name}: has no images; give a file that lists some.")
        self.name = name
        self.image_ids = image_ids
        self.sizes = sizes
        self.categories = tuple(sorted(categories))
        self._file_names = file_names
        if not self.categories:
            raise ValueError(f"{name}: has no categories; give it at least one.")
        counts = collections.Counter(category.name for category in categories)
        repeated = [category_name for category_name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(
                f"{name}: {len(repeated)} names belong to several categories, first "
                f"{repeated[0]!r}; give each category a different name."
            )

    def annotations(self, index: int) -> Annotations:
        """Return the objects of the image at `index`, except boxes without an area."""
        start, stop = self._bounds[index : index + 2].tolist()
        sizes = np.broadcast_to(self.sizes[index], (stop - start, 2))
        boxes, has_area, _ = clip_to_image(self._objects.boxes[start:stop], sizes)
        fields = boxes, self._objects.classes[start:stop], self._objects.crowd[start:stop]
        return Annotations(*(field[has_area] for field in fields))

    def file_name(self, index: int) -> str:
        """Return the name of the image at `index` in the dataset."""
        return self._file_names[index]

    def ground_truth(self) -> dict[str, Any]:
        """Return the content in COCO's JSON format, with the annotations in the images' order."""
        images = [
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
            for image_id, file_name, (height, width) in zip(
                self.image_ids, self._file_names, self.sizes.tolist(), strict=True
            )
        ]
        categories = [category._asdict() for category in self.categories]
        return {"images": images, "categories": categories, "annotations": self._instances()}

    def _set_objects(self, objects: Objects, label: Callable[[int], str]) -> None:
        """Store the objects of all images, and log warnings about invalid boxes.

        Args:
            objects: The objects, in any order.
            label: Returns the name, for messages, of the annotation with a given id.
        """
        _, has_area, is_outside = clip_to_image(objects.boxes, self.sizes[objects.image_index])
        for mask, problem in ((~has_area, WITHOUT_AREA), (has_area & is_outside, OUTSIDE)):
            if mask.any():
                first = int(mask.argmax())
                file_name = self._file_names[objects.image_index[first]]
                message = f"{self.name}: {mask.sum()} boxes {problem}"
                logging.warning(
                    "%s (first: %s (%s)).", message, label(int(objects.ids[first])), file_name
                )
        self._objects = objects.select(np.argsort(objects.image_index, stable=True))
        # The position of the first object of each image, and at the end the number of objects.
        self._bounds = np.searchsorted(self._objects.image_index, np.arange(len(self) + 1))

    def _extents(self) -> Float64[np.ndarray, "M 2"]:
        """Return the height and width of every box in pixels."""
        return self._objects.boxes[:, 2:] - self._objects.boxes[:, :2]

    def _instances(self) -> list[dict[str, Any]]:
        """Return all objects in COCO's JSON format."""
        objects, extents = self._objects, self._extents()
        areas = extents.prod(axis=1) if objects.areas is None else objects.areas
        columns = (
            objects.ids,
            objects.image_index,
            objects.classes,
            objects.boxes[:, 1::-1],
            extents[:, ::-1],
            areas,
            objects.crowd,
        )
        return [
            {
                "id": object_id,
                "image_id": self.image_ids[image_index],
                "category_id": self.categories[k].id,
                "bbox": corner + extent,
                "area": area,
                "iscrowd": int(crowd),
            }
            for object_id, image_index, k, corner, extent, area, crowd in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
