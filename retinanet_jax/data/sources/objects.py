"""The annotated objects of a dataset, in compact arrays."""

import array
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Shaped

# Boxes may extend beyond their image by this many pixels, because of rounding, without a warning.
OUTSIDE_TOLERANCE = 1.0
# The sides of a box are differences of its edges, which are rounded to this many digits so that
# 10.1 + 5.2 - 10.1 is 5.2 again.
DIGITS = 9


class Objects(NamedTuple):
    """The M annotated objects of a dataset, with all boxes as they are annotated.

    Attributes:
        ids: The id of each annotation in its file; integers of any size.
        image_index: The index of each object's image.
        classes: Indices into the source's `categories`.
        boxes: yxyx in pixels of the original image; they may extend beyond it or have no area.
        crowd: Whether a box is a region of many objects, or another region in which detections are
            neither right nor wrong, instead of an object.
        areas: Areas in square pixels, from which AP by size is computed.
    """

    ids: Shaped[np.ndarray, " M"]
    image_index: Int32[np.ndarray, " M"]
    classes: Int32[np.ndarray, " M"]
    boxes: Float64[np.ndarray, "M 4"]
    crowd: Bool[np.ndarray, " M"]
    areas: Float64[np.ndarray, " M"]

    def select(self, indices: Int[np.ndarray, " m"]) -> "Objects":
        """Return the objects at these indices."""
        return Objects(*(field[indices] for field in self))

    def in_pixels(self, sizes: Int32[np.ndarray, "N 2"]) -> "Objects":
        """Return the objects with boxes in pixels, where these are fractions of their images.

        Args:
            sizes: Height and width of every image in pixels.
        """
        boxes = self.boxes * np.tile(sizes, 2)[self.image_index]
        return self._replace(boxes=boxes, areas=box_sides(boxes).prod(axis=1))

    def of_images(self, indices: Sequence[int]) -> "Objects":
        """Return the objects of these images; their new indices are the positions in `indices`."""
        last = max(self.image_index.max(initial=-1), max(indices, default=-1))
        new_index = np.full(last + 1, -1, np.int32)
        new_index[indices] = np.arange(len(indices))
        image_index = new_index[self.image_index]
        return self._replace(image_index=image_index).select(np.flatnonzero(image_index >= 0))


class ObjectList:
    """A list of objects that a parser appends to; in compact arrays, of 57 bytes per object."""

    def __init__(self):
        self._ids: list[int] | array.array[int] = array.array("q")
        self._image_index = array.array("i")
        self._classes = array.array("i")
        self._boxes = array.array("d")
        self._crowd = array.array("b")
        self._areas = array.array("d")

    def append(
        self,
        annotation_id: int,
        image_index: int,
        class_index: int,
        box: Sequence[float],
        *,
        crowd: bool = False,
        area: float = math.nan,
    ) -> None:
        """Add an object; the arguments are as in `Objects`, and the area is by default the box's.

        Args:
            annotation_id: Its id.
            image_index: The index of its image.
            class_index: The index of its category.
            box: yxyx.
            crowd: Whether it is a crowd region.
            area: Its area in square pixels; NaN for that of the box.
        """
        try:
            self._ids.append(annotation_id)
        except OverflowError:  # an id of more than 64 bits
            self._ids = [*self._ids, annotation_id]
        self._image_index.append(image_index)
        self._classes.append(class_index)
        self._boxes.extend(box)
        self._crowd.append(crowd)
        self._areas.append(area)

    def to_objects(self) -> Objects:
        """Return the objects in the order in which they were added."""
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        areas = np.array(self._areas, np.float64)
        return Objects(
            id_array(self._ids),
            np.array(self._image_index, np.int32),
            np.array(self._classes, np.int32),
            boxes,
            np.array(self._crowd, bool),
            np.where(np.isnan(areas), box_sides(boxes).prod(axis=1), areas),
        )


def box_sides(boxes: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 2"]:
    """Return the heights and widths of yxyx boxes, without the error of the subtraction."""
    return np.round(boxes[:, 2:] - boxes[:, :2], DIGITS)


def sort_by_image(objects: Objects) -> Objects:
    """Return the objects in the order of their images, those of an image in their present order."""
    return objects.select(np.argsort(objects.image_index, stable=True))


def id_array(ids: Sequence[int]) -> Shaped[np.ndarray, " n"]:
    """Return ids as an array of int64 or, if one is larger, of Python's integers."""
    try:
        return np.array(ids, np.int64)
    except OverflowError:
        return np.array(ids, object)


def concatenate(parts: Iterable[Objects]) -> Objects:
    """Return the objects of all parts; ids of 64 bits and larger ones may be mixed."""
    return Objects(*map(np.concatenate, zip(*parts, strict=True)))


def clip_to_image(
    boxes: Float[np.ndarray, "*n 4"], sizes: Int[np.ndarray, "*n 2"]
) -> tuple[Float32[np.ndarray, "*n 4"], Bool[np.ndarray, "*n"], Bool[np.ndarray, "*n"]]:
    """Clip boxes to their images.

    Args:
        boxes: yxyx in pixels.
        sizes: Height and width of each box's image.

    Returns:
        The clipped boxes; a mask of those with an area; and a mask of those that extended beyond
        their image by more than `OUTSIDE_TOLERANCE`. Coordinates are rounded to float32, so a box
        that is thinner than their spacing has no area.
    """
    clipped = np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.float32)
    has_area = (clipped[..., 2:] > clipped[..., :2]).all(axis=-1)
    is_outside = (np.abs(clipped - boxes) > OUTSIDE_TOLERANCE).any(axis=-1)
    return clipped, np.asarray(has_area), np.asarray(is_outside)
