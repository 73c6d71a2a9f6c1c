"""How well anchors cover the boxes of a data set, and scales and ratios that would do it better.

Exact on the real grid, and without an anchors x boxes matrix: of the anchors of one shape and
level, the one whose centre is nearest a box's in y and in x overlaps it most.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from retinanet_jax import core

# Of the search, in octaves: its steps, and by how much the scales are moved for its starts.
LARGE_STEPS, SMALL_STEPS = (0.5, 0.25, 0.125), (0.06, 0.03, 0.015)
SHIFTS = (-2, -1, 0, 1)


class Placed(NamedTuple):
    """Boxes beside the grid of anchor centres; all in pixels of the network's input."""

    sides: Float32[np.ndarray, "2 n"]  # heights and widths
    distances: Float32[np.ndarray, "L 2 n"]  # of the centre to the nearest of each level, y and x
    min_level: int  # the first of L


class Coverage(NamedTuple):
    """Anchors, and what they cover."""

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    covered: float  # share of boxes that an anchor overlaps by the IoU that makes it foreground
    mean_iou: float  # of each box with the anchor that overlaps it most


def place(
    boxes: Float[np.ndarray, "n 4"],
    buckets: Int[np.ndarray, "n 2"],
    reach: Float[np.ndarray, "n 2"],
    *,
    min_level: int,
    max_level: int,
    offset: float,
    stride_rule: str,
) -> Placed:
    """Boxes beside the grids of their buckets; keywords are those of `core.pyramid_anchors`.

    `buckets`: (H, W) of each box's picture. `reach`: the height and width that anchors must be
    centred in to count. A level without such an anchor is infinitely far.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = []
    for level in range(min_level, max_level + 1):
        cells = -(-buckets // 2**level)
        stride = np.full_like(buckets, 2**level) if stride_rule == "nominal" else buckets // cells
        last = np.minimum(cells - 1, np.ceil(reach / stride - offset) - 1)
        nearest = np.clip(np.rint(centres / stride - offset), 0, np.maximum(last, 0))
        distance = np.abs((nearest + offset) * stride - centres)
        distances.append(np.where((last >= 0).all(axis=1, keepdims=True), distance, np.inf))
    sides = boxes[:, 2:] - boxes[:, :2]
    return Placed(
        np.ascontiguousarray(sides.T, np.float32),
        np.ascontiguousarray(np.swapaxes(distances, 1, 2), np.float32),
        min_level,
    )


def shape_ious(
    placed: Placed, *, base_scale: float, scale: float, ratio: float, rounding: str
) -> Float32[np.ndarray, " n"]:
    """The IoU of each box with the anchor of one scale and ratio that overlaps it most."""
    best = np.zeros(placed.sides.shape[1], np.float32)
    for level, distances in enumerate(placed.distances, placed.min_level):
        (anchor,) = core.cell_anchors(base_scale * 2**level, (scale,), (ratio,), rounding)
        sides = anchor[2:] - anchor[:2]
        shared = np.float32(1)
        for side, own, distance in zip(sides, placed.sides, distances, strict=True):
            # Up to the shorter of the two sides, where one holds the other.
            along = np.minimum((own + side) / 2 - distance, np.minimum(own, side))
            shared = shared * np.maximum(along, 0)
        union = placed.sides[0] * placed.sides[1] + sides[0] * sides[1] - shared
        np.maximum(best, shared / union, out=best)
    return best


def best_ious(
    placed: Placed,
    *,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounding: str,
) -> Float32[np.ndarray, " n"]:
    """The IoU of each box with the anchor that overlaps it most."""
    shapes = [
        shape_ious(placed, base_scale=base_scale, scale=scale, ratio=ratio, rounding=rounding)
        for scale, ratio in itertools.product(scales, ratios)
    ]
    return np.max(shapes, axis=0)


def measure(
    ious: Float32[np.ndarray, " n"],
    scales: Sequence[float],
    ratios: Sequence[float],
    *,
    threshold: float,
) -> Coverage:
    """What anchors cover whose best IoUs are given; `threshold` makes an anchor foreground."""
    return Coverage(
        tuple(scales), tuple(ratios), float((ious >= threshold).mean()), float(ious.mean())
    )


def search(
    placed: Placed,
    *,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounding: str,
    threshold: float,
) -> Coverage:
    """As many scales and ratios as are given, changed until no change of 1 % covers more.

    What is raised is the share of covered boxes plus the mean IoU, by coordinate search: in large
    steps from the given numbers, and from ratios at quantiles of the boxes' own with the scales
    of four sizes; in small ones from the best of these. The numbers are rounded to three digits,
    and their coverage is that of the rounded ones.
    """
    # One step changes one number, and so a few of the shapes.
    ious_of = functools.lru_cache(maxsize=64)(
        lambda scale, ratio: shape_ious(
            placed, base_scale=base_scale, scale=scale, ratio=ratio, rounding=rounding
        )
    )

    def rounded(point: np.ndarray) -> Coverage:
        numbers = [float(f"{number:.3g}") for number in np.exp2(point)]
        own = sorted(numbers[: len(scales)]), sorted(numbers[len(scales) :])
        ious = [ious_of(scale, ratio) for scale, ratio in itertools.product(*own)]
        return measure(np.max(ious, axis=0), *own, threshold=threshold)

    quantiles = (np.arange(len(ratios)) + 0.5) / len(ratios)
    forms = np.quantile(np.log2(placed.sides[0] / placed.sides[1]), quantiles)
    octaves = np.log2(scales)
    starts = [np.concatenate([octaves, np.log2(ratios)])]
    starts += [np.concatenate([octaves + shift, forms]) for shift in SHIFTS]
    reached = [_climb(start, rounded, steps=LARGE_STEPS) for start in starts]
    best = max(reached, key=lambda point: _worth(rounded(point)))
    return rounded(_climb(best, rounded, steps=SMALL_STEPS))


def _worth(coverage: Coverage) -> float:
    return coverage.covered + coverage.mean_iou


def _climb(
    point: Float[np.ndarray, " p"],
    coverage_of: Callable[[np.ndarray], Coverage],
    *,
    steps: Sequence[float],
) -> Float[np.ndarray, " p"]:
    """Where no step of any length along one axis leads further up."""
    best = _worth(coverage_of(point))
    for step in steps:
        before = None
        while before != best:
            before = best
            for axis, change in itertools.product(range(len(point)), (step, -step)):
                moved = point.copy()
                moved[axis] += change
                worth = _worth(coverage_of(moved))
                if worth > best:
                    best, point = worth, moved
    return point
