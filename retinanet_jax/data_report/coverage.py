"""The coverage of boxes by anchors: the IoU of each box with the anchor that overlaps it most.

The IoUs are exact on the real grid of anchors, without an anchors x boxes matrix: of all anchors of
one shape and level, the anchor with the nearest center in y and in x overlaps a box most.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from retinanet_jax import core


class PlacedBoxes(NamedTuple):
    """Boxes and their distances to the grid of anchors, in pixels of the network's input."""

    sides: Float32[np.ndarray, "2 n"]  # heights and widths
    distances: Float32[np.ndarray, "L 2 n"]  # in y and x to the nearest anchor center of each level
    min_level: int  # the first of the L levels

    def select(self, indices: Int[np.ndarray, " m"]) -> "PlacedBoxes":
        """Return some of the boxes."""
        sides, distances = self.sides[:, indices], self.distances[:, :, indices]
        return PlacedBoxes(
            np.ascontiguousarray(sides), np.ascontiguousarray(distances), self.min_level
        )


def place_boxes(
    boxes: Float[np.ndarray, "n 4"],
    buckets: Int[np.ndarray, "n 2"],
    extent: Float[np.ndarray, "n 2"],
    *,
    min_level: int,
    max_level: int,
    offset: float,
    stride_rule: str,
) -> PlacedBoxes:
    """Return the distance of each box to the nearest anchor center of each level.

    The distance is infinite for a level without an anchor center inside of `extent`.

    Args:
        boxes: yxyx in pixels of the network's input.
        buckets: (H, W) of the bucket of each box's image.
        extent: For each box, the (height, width) to which anchor centers are restricted.
        min_level: As in `core.pyramid_anchors`.
        max_level: As in `core.pyramid_anchors`.
        offset: As in `core.pyramid_anchors`.
        stride_rule: As in `core.pyramid_anchors`.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = []
    for level in range(min_level, max_level + 1):
        cells = -(-buckets // 2**level)
        stride = np.full_like(buckets, 2**level) if stride_rule == "nominal" else buckets // cells
        last = np.minimum(cells - 1, np.ceil(extent / stride - offset) - 1)
        nearest = np.clip(np.rint(centers / stride - offset), 0, np.maximum(last, 0))
        distance = np.abs((nearest + offset) * stride - centers)
        distances.append(np.where((last >= 0).all(axis=1, keepdims=True), distance, np.inf))
    sides = boxes[:, 2:] - boxes[:, :2]
    return PlacedBoxes(
        np.ascontiguousarray(sides.T, np.float32),
        np.ascontiguousarray(np.swapaxes(distances, 1, 2), np.float32),
        min_level,
    )


def shape_ious(
    placed: PlacedBoxes, *, base_scale: float, scale: float, ratio: float, rounding: str
) -> Float32[np.ndarray, " n"]:
    """Return each box's largest IoU with the anchors of one scale and one ratio.

    Args:
        placed: The boxes.
        base_scale: As in `core.pyramid_anchors`.
        scale: The scale of the anchors.
        ratio: The ratio of the anchors.
        rounding: As in `core.pyramid_anchors`.
    """
    best = np.zeros(placed.sides.shape[1], np.float32)
    for level, distances in enumerate(placed.distances, placed.min_level):
        (anchor,) = core.cell_anchors(base_scale * 2**level, (scale,), (ratio,), rounding)
        sides = anchor[2:] - anchor[:2]
        intersection = np.float32(1)
        for anchor_side, box_side, distance in zip(sides, placed.sides, distances, strict=True):
            # The overlap along one axis is at most the shorter side, if one contains the other.
            overlap = np.minimum(
                (box_side + anchor_side) / 2 - distance, np.minimum(box_side, anchor_side)
            )
            intersection = intersection * np.maximum(overlap, 0)
        union = placed.sides[0] * placed.sides[1] + sides[0] * sides[1] - intersection
        np.maximum(best, intersection / union, out=best)
    return best


def best_ious(
    placed: PlacedBoxes,
    *,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounding: str,
) -> Float32[np.ndarray, " n"]:
    """Return each box's largest IoU with the anchors of all scales and ratios.

    Args:
        placed: The boxes.
        base_scale: As in `core.pyramid_anchors`.
        scales: As in `core.pyramid_anchors`.
        ratios: As in `core.pyramid_anchors`.
        rounding: As in `core.pyramid_anchors`.
    """
    shapes = [
        shape_ious(placed, base_scale=base_scale, scale=scale, ratio=ratio, rounding=rounding)
        for scale, ratio in itertools.product(scales, ratios)
    ]
    return np.max(shapes, axis=0)
