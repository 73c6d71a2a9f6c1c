"""The coverage of a dataset's boxes by anchors, and a search for scales and ratios that cover more.

The IoUs are exact on the real grid of anchors, without an anchors x boxes matrix: of all anchors of
one shape and level, the anchor with the nearest center in y and in x overlaps a box most.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from retinanet_jax import core

# The steps of the search, and the shifts of the scales for its starting points, all in octaves.
LARGE_STEPS, SMALL_STEPS = (0.5, 0.25, 0.125), (0.06, 0.03, 0.015)
SHIFTS = (-2, -1, 0, 1)


class PlacedBoxes(NamedTuple):
    """Boxes and their distances to the grid of anchors, in pixels of the network's input."""

    sides: Float32[np.ndarray, "2 n"]  # heights and widths
    distances: Float32[np.ndarray, "L 2 n"]  # in y and x to the nearest anchor center of each level
    min_level: int  # the first of the L levels


class Coverage(NamedTuple):
    """Anchor scales and ratios, and how well they cover the boxes."""

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    covered: float  # fraction of the boxes that an anchor overlaps by the foreground IoU or more
    mean_iou: float  # mean over the boxes of the IoU with the anchor that overlaps them most


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


def measure_coverage(
    ious: Float32[np.ndarray, " n"],
    scales: Sequence[float],
    ratios: Sequence[float],
    *,
    threshold: float,
) -> Coverage:
    """Summarize the best IoUs of all boxes.

    Args:
        ious: Each box's largest IoU with the anchors.
        scales: The scales of these anchors.
        ratios: The ratios of these anchors.
        threshold: The IoU from which a box counts as covered.
    """
    return Coverage(
        tuple(scales), tuple(ratios), float((ious >= threshold).mean()), float(ious.mean())
    )


def search_anchors(
    placed: PlacedBoxes,
    *,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounding: str,
    threshold: float,
) -> Coverage:
    """Search for scales and ratios, as many as given, that cover more boxes.

    A coordinate search maximizes the fraction of covered boxes plus the mean IoU. It starts from
    the given numbers, and from quantiles of the boxes' aspect ratios with shifted scales, in large
    steps. Small steps from the best result follow, until no change of 1 % is an improvement. The
    result is rounded to three digits; the returned coverage is that of the rounded numbers.

    Args:
        placed: The boxes to cover.
        base_scale: As in `core.pyramid_anchors`.
        scales: The scales to start from.
        ratios: The ratios to start from.
        rounding: As in `core.pyramid_anchors`.
        threshold: The IoU from which a box counts as covered.
    """
    # A step changes a single scale or ratio, and therefore only a few of the shapes.
    ious_of = functools.lru_cache(maxsize=64)(
        lambda scale, ratio: shape_ious(
            placed, base_scale=base_scale, scale=scale, ratio=ratio, rounding=rounding
        )
    )

    def coverage_of(point: np.ndarray) -> Coverage:
        rounded = [float(f"{number:.3g}") for number in np.exp2(point)]
        shapes = sorted(rounded[: len(scales)]), sorted(rounded[len(scales) :])
        ious = [ious_of(scale, ratio) for scale, ratio in itertools.product(*shapes)]
        return measure_coverage(np.max(ious, axis=0), *shapes, threshold=threshold)

    quantiles = (np.arange(len(ratios)) + 0.5) / len(ratios)
    box_ratios = np.quantile(np.log2(placed.sides[0] / placed.sides[1]), quantiles)
    octaves = np.log2(scales)
    starts = [np.concatenate([octaves, np.log2(ratios)])]
    starts += [np.concatenate([octaves + shift, box_ratios]) for shift in SHIFTS]
    reached = [_climb(start, coverage_of, steps=LARGE_STEPS) for start in starts]
    best = max(reached, key=lambda point: _objective(coverage_of(point)))
    return coverage_of(_climb(best, coverage_of, steps=SMALL_STEPS))


def _objective(coverage: Coverage) -> float:
    """Return the number that the search maximizes."""
    return coverage.covered + coverage.mean_iou


def _climb(
    point: Float[np.ndarray, " p"],
    coverage_of: Callable[[np.ndarray], Coverage],
    *,
    steps: Sequence[float],
) -> Float[np.ndarray, " p"]:
    """Return a point that no step along one axis improves, for each step length in order."""
    best = _objective(coverage_of(point))
    for step in steps:
        previous = None
        while previous != best:
            previous = best
            for axis, change in itertools.product(range(len(point)), (step, -step)):
                moved = point.copy()
                moved[axis] += change
                value = _objective(coverage_of(moved))
                if value > best:
                    best, point = value, moved
    return point
