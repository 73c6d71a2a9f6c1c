"""The windows over a large image, and which of them owns an object: pure functions of sizes."""

from numbers import Integral
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MIN_TILE = 32  # pixels
MAX_OVERLAP = 0.9  # of a window; with more, the windows are nearly the same


class Grid(NamedTuple):
    """Windows of one size that cover an image, row by row, and their cores.

    The core of a window is what is nearer to its middle than to that of a neighbor. The cores
    divide the image: each point belongs to exactly one.

    Attributes:
        windows: x0, y0, x1, y1 of each window in pixels of the image; the maximum is exclusive.
        x_borders: Where the cores of neighboring columns meet, in ascending order.
        y_borders: Where the cores of neighboring rows meet.
    """

    windows: Int[np.ndarray, "W 4"]
    x_borders: Float[np.ndarray, " columns_1"]
    y_borders: Float[np.ndarray, " rows_1"]

    def owners(self, boxes: Float[np.ndarray, "n 4"]) -> Int[np.ndarray, " n"]:
        """Return for each box the index of the window with the core that contains the box's center.

        Args:
            boxes: x0, y0, x1, y1 in pixels of the image.
        """
        x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
        column = np.searchsorted(self.x_borders, x, side="right")
        row = np.searchsorted(self.y_borders, y, side="right")
        return row * (len(self.x_borders) + 1) + column


def make_grid(height: int, width: int, *, tile: int, overlap: float) -> Grid:
    """Return the fewest windows that cover an image, evenly spread.

    All windows have the same size: `tile` in both directions, or the image's side where that is
    less.

    Args:
        height: The height of the image in pixels.
        width: The width of the image in pixels.
        tile: The side of a window in pixels.
        overlap: The fraction of a window that its neighbor contains at least.
    """
    x_starts, x_borders = _spread(width, tile, overlap)
    y_starts, y_borders = _spread(height, tile, overlap)
    y0, x0 = (starts.ravel() for starts in np.meshgrid(y_starts, x_starts, indexing="ij"))
    windows = np.stack([x0, y0, x0 + min(tile, width), y0 + min(tile, height)], axis=1)
    return Grid(windows, x_borders, y_borders)


def check_tiles(tile: int, overlap: float) -> None:
    """Check the side and the overlap of windows.

    Args:
        tile: As in `make_grid`.
        overlap: As in `make_grid`.

    Raises:
        ValueError: If one of them is out of range.
    """
    if not isinstance(tile, Integral) or tile < MIN_TILE:
        raise ValueError(
            f"tile={tile} must be an integer of at least {MIN_TILE}, the side of a window in "
            "pixels; try 1024."
        )
    if not 0 < overlap <= MAX_OVERLAP:
        raise ValueError(
            f"overlap={overlap:g} must be above 0 and at most {MAX_OVERLAP:g}, a fraction of the "
            "window: two windows recognize an object by the part that both see; try 0.2."
        )


def _spread(
    length: int, tile: int, overlap: float
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n_1"]]:
    """Return where the windows start along one axis, and where their cores meet."""
    size = min(tile, length)
    step = tile - max(1, round(overlap * tile))  # the longest from one window to the next
    count = 1 - (size - length) // step
    # Integer division keeps each step at most `step`, so that no overlap is smaller than asked for.
    starts = np.arange(count) * (length - size) // max(1, count - 1)
    return starts, (starts[1:] + starts[:-1] + size) / 2
