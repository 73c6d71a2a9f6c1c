"""Checks of boxes that the formats have in common: corners in text, and clipping to the image."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

# Boxes may extend beyond their image by this many pixels, because of rounding, without a warning.
OUTSIDE_TOLERANCE = 1.0
# The rest of a warning that begins with the number of boxes.
WITHOUT_AREA = "have no area inside their image and are not trained on"
OUTSIDE = f"extend beyond their image by more than {OUTSIDE_TOLERANCE:g} pixel and are clipped"


def parse_corners(where: str, texts: Mapping[str, str]) -> tuple[float, float, float, float]:
    """Parse the corners of a box.

    Args:
        where: The beginning of an error message: the file, and the position in it.
        texts: The texts of x1, y1, x2 and y2, in that order, by their names in the format.

    Returns:
        x1, y1, x2, y2.

    Raises:
        ValueError: If a text is not a finite number, or x1 > x2 or y1 > y2.
    """
    x1, y1, x2, y2 = (_parse_number(where, name, text) for name, text in texts.items())
    names = tuple(texts)
    for low, high, low_name, high_name in ((x1, x2, *names[::2]), (y1, y2, *names[1::2])):
        if low > high:
            raise ValueError(
                f"{where} has {low_name}={low:g} above {high_name}={high:g}; correct or remove it."
            )
    return x1, y1, x2, y2


def _parse_number(where: str, name: str, text: str) -> float:
    """Parse a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} has {name}={text!r}, not a finite number; correct it.")
    return number


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
