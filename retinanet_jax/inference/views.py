"""The views of an image in test-time augmentation: it is flipped, rotated and scaled.

A view is named after what is done with the image: "flip" (left to right), "vflip" (upside down),
"rot90", "rot180", "rot270" (counterclockwise), a scale such as "0.75", or both, as in "flip@0.75".
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from retinanet_jax.data.transforms import flip, flip_boxes, rot90_boxes

# Whether to flip left to right, and the number of rotations by 90 degrees after that.
ORIENTATIONS = {
    "plain": (False, 0),
    "flip": (True, 0),
    "vflip": (True, 2),
    "rot90": (False, 1),
    "rot180": (False, 2),
    "rot270": (False, 3),
}
# In addition to the plain one. Other scales help some detectors and harm others (docs/predict.md).
DEFAULT_VIEWS = ("flip",)
MIN_SCALE, MAX_SCALE = 0.1, 4.0


class View(NamedTuple):
    """A view of an image.

    Attributes:
        orientation: A key of ORIENTATIONS.
        scale: By how much larger the network sees it than the plain image.
    """

    orientation: str = "plain"
    scale: float = 1.0

    @property
    def name(self) -> str:
        """The name, as `parse_view` reads it."""
        if self.scale == 1:
            return self.orientation
        return str(self.scale) if self.orientation == "plain" else "@".join(map(str, self))

    def pixels(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return the pixels of the image, flipped and rotated but not scaled."""
        is_flipped, rot90_k = ORIENTATIONS[self.orientation]
        return np.rot90(flip(image) if is_flipped else image, rot90_k)

    def boxes_in_image(
        self, boxes: Float32[np.ndarray, "n 4"], height: int, width: int
    ) -> Float32[np.ndarray, "n 4"]:
        """Return boxes of the view as boxes of the image.

        Args:
            boxes: yxyx in pixels of `pixels(image)`.
            height: The height of the image in pixels.
            width: The width of the image in pixels.
        """
        is_flipped, rot90_k = ORIENTATIONS[self.orientation]
        size = (width, height) if rot90_k % 2 else (height, width)
        boxes = rot90_boxes(boxes, -rot90_k, *size)
        return flip_boxes(boxes, width) if is_flipped else boxes


def parse_view(name: str) -> View:
    """Return the view of a name.

    Examples:
        >>> parse_view("flip@0.75")
        View(orientation='flip', scale=0.75)
        >>> parse_view("1.25")
        View(orientation='plain', scale=1.25)

    Raises:
        ValueError: If it is no name of a view, or the scale is out of range.
    """
    orientation, at, scale = name.partition("@")
    if not at:
        orientation, scale = (name, "1") if name in ORIENTATIONS else ("plain", name)
    try:
        factor = float(scale)
    except ValueError:
        factor = 0.0  # out of range
    if orientation not in ORIENTATIONS or not MIN_SCALE <= factor <= MAX_SCALE:
        raise ValueError(
            f"the view {name!r} must be one of {', '.join(ORIENTATIONS)}, a scale from {MIN_SCALE} "
            f"to {MAX_SCALE:g}, or both; try flip,0.75,flip@1.25."
        )
    return View(orientation, factor)


def make_views(names: str | Iterable[str | float]) -> tuple[View, ...]:
    """Return the views of these names, after the plain one, which is always among them.

    Args:
        names: The names, or a text of names with commas between them.

    Raises:
        ValueError: If a name is invalid, or a view is given twice.
    """
    names = names.split(",") if isinstance(names, str) else names
    views = [parse_view(str(name).strip()) for name in names]
    for index, view in enumerate(views):
        if view in views[:index]:
            raise ValueError(f"the view {view.name!r} is given twice; give each view once.")
    return tuple(dict.fromkeys([View(), *views]))
