"""Recognition of boxes that a dataset's file has in another convention than its format.

A box of [x1, y1, x2, y2] that is read as [x, y, width, height] is still a box, and training would
learn it. The boxes of a whole dataset show the mistake: many extend beyond their images, and nearly
all would fit if they were read in the other way.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.objects import OUTSIDE_TOLERANCE, clip_to_image

# Another reading is tried if so many boxes, and this fraction of all, do not fit their images.
MIN_MISFITS, MISFIT_FRACTION = 2, 0.1
FIT_FRACTION = 0.99  # of the boxes that fit in the reading that is recognized
MIN_BOXES = 20  # fewer may lie within 100 pixels by chance
MIN_AT_EDGES = 3  # box edges at 1, and as many at the end of the image
MIN_SIDE_OF_FRACTIONS = 8  # pixels; in a smaller image a box may have sides below 1
MIN_SIDE_OF_PERCENT = 200  # pixels; in a smaller image all boxes may lie within 100 pixels
MAX_OF_SMALLER = 0.6  # of the image's sides, within which all boxes drawn on a smaller copy lie


class Convention(NamedTuple):
    """Another convention in which the boxes of a dataset are probably written."""

    message: str  # the numbers that show it
    advice: str
    is_certain: bool  # such boxes are not trained on


def recognize_convention(source: Source) -> Convention | None:
    """Return the convention that the boxes of a dataset seem to have; None if it is their format's.

    Args:
        source: The dataset.
    """
    return convention_of(source.objects.boxes, source.sizes[source.objects.image_index])


def convention_of(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Convention | None:
    """Return the convention that boxes seem to have; None if it is that in which they were read.

    Args:
        boxes: yxyx in pixels of the images.
        sizes: The height and width of each box's image.
    """
    if not len(boxes):
        return None
    return (
        _recognize_fractions(boxes, sizes)
        or _recognize_other_order(boxes, sizes)
        or _recognize_percent(boxes, sizes)
        or _recognize_other_size(boxes, sizes)
        or _recognize_first_pixel(boxes, sizes)
    )


def _recognize_fractions(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Convention | None:
    """Recognize coordinates from 0 to 1, of all boxes or of some."""
    sides = boxes[:, 2:] - boxes[:, :2]
    # In [x, y, width, height], the sum of two fractions is at most 1; in the center form, 1.5.
    is_small = (boxes.min(axis=1) >= 0) & (boxes.max(axis=1) <= 2) & (sides.max(axis=1) <= 1)
    mask = is_small & (sizes.min(axis=1) >= MIN_SIDE_OF_FRACTIONS)
    if not mask.any() or (boxes[mask, 2:] == np.round(boxes[mask, 2:])).all():
        return None
    count = "all" if mask.all() else f"{mask.sum()} of"
    return Convention(
        f"{count} {len(boxes)} boxes lie within the first 2 pixels of their images: they read as "
        "fractions of the image from 0 to 1",
        "multiply them by the width and height of the image",
        is_certain=bool(mask.all()),
    )


def _recognize_other_order(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Convention | None:
    """Recognize corners, exchanged axes or sides, and centers."""
    misfits = int((~_fits(boxes, sizes)).sum())
    if misfits < max(MIN_MISFITS, MISFIT_FRACTION * len(boxes)):
        return None
    for name, other, is_certain in _other_readings(boxes):
        if _fits(other, sizes).mean() >= FIT_FRACTION:
            return Convention(
                f"{misfits} of {len(boxes)} boxes do not fit their image, but nearly all would if "
                f"they were read as {name}",
                "convert them",
                is_certain,
            )
    return None


def _other_readings(
    boxes: Float64[np.ndarray, "n 4"],
) -> Iterator[tuple[str, Float64[np.ndarray, "n 4"], bool]]:
    """Yield the name, the yxyx boxes and the certainty of each other reading of the same numbers.

    Corners are only recognized in formats of a corner or center and the sides, where `boxes` are
    sums. Sides in a format of corners are errors when the file is read, because a side is often
    smaller than the first corner.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    sides, center = high - low, low / 2 + high / 2
    yield "corners [x1, y1, x2, y2]", np.concatenate([low, sides], 1), True
    yield "corners [x1, y1, x2, y2]", np.concatenate([center, sides], 1), True
    yield "[y, x, ...], with exchanged axes", boxes[:, [1, 0, 3, 2]], True
    yield "width and height exchanged", np.concatenate([low, low + sides[:, ::-1]], 1), False
    yield (
        "centers [x, y, width, height]",
        np.concatenate([low - sides / 2, low + sides / 2], 1),
        False,
    )
    if low.min() < -OUTSIDE_TOLERANCE:  # the first corner in a format of centers
        yield (
            "[x, y, width, height] of a corner",
            np.concatenate([center, center + sides], 1),
            False,
        )


def _recognize_percent(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Convention | None:
    """Recognize coordinates from 0 to 100 in larger images."""
    is_larger = sizes.min() >= MIN_SIDE_OF_PERCENT
    if len(boxes) < MIN_BOXES or not is_larger or not 90 < boxes.max() <= 100:
        return None
    return Convention(
        f"all {len(boxes)} boxes lie within the first 100 pixels of larger images: they may be "
        "percent of the image",
        "if so, convert them to pixels",
        is_certain=False,
    )


def _recognize_other_size(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Convention | None:
    """Recognize boxes that were drawn on larger or smaller copies of the images."""
    centers = boxes[:, :2] / 2 + boxes[:, 2:] / 2
    outside = int(((centers < 0) | (centers > sizes)).any(axis=1).sum())
    advice = "scale the boxes, or give the images that they were drawn on"
    if outside >= max(MIN_MISFITS, MISFIT_FRACTION * len(boxes)):
        return Convention(
            f"the centers of {outside} of {len(boxes)} boxes are outside their image: they may "
            "have been drawn on an image of another size",
            advice,
            is_certain=False,
        )
    used = float((boxes[:, 2:] / sizes).max())
    if used > MAX_OF_SMALLER or len(np.unique(boxes, axis=0)) < MIN_BOXES:
        return None
    return Convention(
        f"all {len(boxes)} boxes lie within the first {used:.0%} of the height and width of their "
        "images: they may have been drawn on smaller copies",
        f"if so, {advice}",
        is_certain=False,
    )


def _recognize_first_pixel(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Convention | None:
    """Recognize pixels counted from 1 in a format of edges, or from 0 in a devkit of VOC."""
    low, high = boxes[:, :2], boxes[:, 2:]
    if (boxes != np.round(boxes)).any():
        return None
    at_end = int((high == sizes).sum())
    if low.min() == -1:
        count = int((low == -1).any(axis=1).sum())
        return Convention(
            f"{count} of {len(boxes)} boxes begin at pixel 0, but this layout counts pixels from 1",
            "add 1 to all coordinates, or give the folder of XML files, not the devkit's root",
            is_certain=False,
        )
    at_start = int((low == 1).sum())
    if low.min() == 1 and min(at_start, at_end) >= MIN_AT_EDGES:
        return Convention(
            f"no box begins at 0, but {at_start} edges are at 1 and {at_end} at the end of the "
            "image: pixels seem to be counted from 1",
            "if the tool that wrote the boxes does so, subtract 1 from the first corner of each",
            is_certain=False,
        )
    return None


def _fits(
    boxes: Float64[np.ndarray, "n 4"], sizes: Int32[np.ndarray, "n 2"]
) -> Bool[np.ndarray, " n"]:
    """Return whether each box has an area and lies in its image, up to `OUTSIDE_TOLERANCE`."""
    _, has_area, is_outside = clip_to_image(boxes, sizes)
    is_ordered = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return has_area & is_ordered & ~is_outside
