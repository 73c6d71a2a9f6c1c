"""A search for anchor scales and ratios, or a base scale, that cover more boxes."""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32

from retinanet_jax.data_report.coverage import PlacedBoxes, best_ious, shape_ious

# The steps of the search, and the shifts of the scales for its starting points, all in octaves.
LARGE_STEPS, SMALL_STEPS = (0.5, 0.25, 0.125), (0.06, 0.03, 0.015)
SHIFTS = (-2, -1, 0, 1)
BASE_SHIFTS = np.arange(-3, 3.25, 0.25)  # of the base scale, in octaves


def search_shapes(
    placed: PlacedBoxes,
    weights: Float[np.ndarray, " n"],
    *,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounding: str,
    threshold: float,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Search for scales and ratios, as many as given, that cover more boxes.

    A coordinate search maximizes the weight of the covered boxes plus the mean IoU. It starts from
    the given numbers, and from quantiles of the boxes' aspect ratios with shifted scales, in large
    steps. Small steps from the best result follow, until no change of 1 % is an improvement. The
    result is rounded to three digits.

    Args:
        placed: The boxes to cover; at least one.
        weights: The weight of each box; their sum is 1.
        base_scale: As in `core.pyramid_anchors`.
        scales: The scales to start from.
        ratios: The ratios to start from.
        rounding: As in `core.pyramid_anchors`.
        threshold: The IoU from which a box counts as covered.

    Returns:
        The scales and the ratios, in ascending order.
    """
    # A step changes a single scale or ratio, and therefore only a few of the shapes.
    ious_of = functools.lru_cache(maxsize=64)(
        lambda scale, ratio: shape_ious(
            placed, base_scale=base_scale, scale=scale, ratio=ratio, rounding=rounding
        )
    )

    def shapes(point: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        rounded = [_round(number) for number in np.exp2(point)]
        return tuple(sorted(rounded[: len(scales)])), tuple(sorted(rounded[len(scales) :]))

    def value(point: np.ndarray) -> float:
        ious = [ious_of(scale, ratio) for scale, ratio in itertools.product(*shapes(point))]
        return _objective(np.max(ious, axis=0), weights, threshold)

    quantiles = (np.arange(len(ratios)) + 0.5) / len(ratios)
    heights, widths = placed.sides.astype(np.float64)
    box_ratios = np.quantile(np.log2(heights / widths), quantiles)
    octaves = np.log2(scales)
    starts = [np.concatenate([octaves, np.log2(ratios)])]
    starts += [np.concatenate([octaves + shift, box_ratios]) for shift in SHIFTS]
    reached = [_climb(start, value, steps=LARGE_STEPS) for start in starts]
    return shapes(_climb(max(reached, key=value), value, steps=SMALL_STEPS))


def search_base_scale(
    placed: PlacedBoxes,
    weights: Float[np.ndarray, " n"],
    *,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounding: str,
    threshold: float,
) -> float:
    """Search for the base scale that covers most boxes, from 1/8 to 8 times the given one.

    Args:
        placed: As in `search_shapes`.
        weights: As in `search_shapes`.
        base_scale: The base scale to start from.
        scales: As in `core.pyramid_anchors`.
        ratios: As in `core.pyramid_anchors`.
        rounding: As in `core.pyramid_anchors`.
        threshold: As in `search_shapes`.
    """

    def value(candidate: float) -> float:
        ious = best_ious(
            placed, base_scale=candidate, scales=scales, ratios=ratios, rounding=rounding
        )
        return _objective(ious, weights, threshold)

    return max([_round(base_scale * 2**shift) for shift in BASE_SHIFTS], key=value)


def _round(number: float) -> float:
    """Return a number with three digits, as it is given on a command line."""
    return float(f"{number:.3g}")


def _objective(
    ious: Float32[np.ndarray, " n"], weights: Float[np.ndarray, " n"], threshold: float
) -> float:
    """Return the number that the searches maximize."""
    return float(weights @ ((ious >= threshold) + ious))


def _climb(
    point: Float[np.ndarray, " p"],
    value_of: Callable[[np.ndarray], float],
    *,
    steps: Sequence[float],
) -> Float[np.ndarray, " p"]:
    """Return a point that no step along one axis improves, for each step length in order."""
    best = value_of(point)
    for step in steps:
        previous = None
        while previous != best:
            previous = best
            for axis, change in itertools.product(range(len(point)), (step, -step)):
                moved = point.copy()
                moved[axis] += change
                value = value_of(moved)
                if value > best:
                    best, point = value, moved
    return point
