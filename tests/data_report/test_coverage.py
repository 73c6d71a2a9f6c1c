"""The IoUs of boxes with the anchors that overlap them most are exact, without a matrix."""

import numpy as np
import pytest

from retinanet_jax import core
from retinanet_jax.data_report import coverage

GRID = {"min_level": 3, "max_level": 7, "offset": 0.5, "stride_rule": "nominal"}
SHAPES = {
    "base_scale": 4.0,
    "scales": (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    "ratios": (0.5, 1.0, 2.0),
    "rounding": "exact",
}


def random_boxes(count, size, *, sides, ratio_spread=0.4, seed=0):
    """Boxes with log-uniform sizes and log-normal aspect ratios."""
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(*np.log(sides), count))
    root = np.exp(rng.normal(0, ratio_spread, count) / 2)
    sides = np.minimum(np.stack([side * root, side / root], axis=1), size)
    low = rng.uniform(0, 1, (count, 2)) * (size - sides)
    return np.concatenate([low, low + sides], axis=1).astype(np.float32)


def placed(boxes, bucket, extent, **changes):
    count = len(boxes)
    buckets, extents = np.tile(bucket, (count, 1)), np.tile(np.array(extent, float), (count, 1))
    return coverage.place_boxes(boxes, buckets, extents, **GRID | changes)


@pytest.mark.parametrize(
    ("bucket", "size", "grid", "rounding"),
    [
        ((192, 256), (180, 250), {}, "exact"),
        ((192, 256), (192, 256), {"offset": 0.0, "stride_rule": "grid"}, "torchvision"),
        ((160, 96), (150, 20), {}, "exact"),  # the coarser levels have no anchor in the image
        ((64, 64), (5, 5), {"min_level": 4}, "exact"),  # no level has one
    ],
)
def test_the_best_iou_is_that_of_all_anchors(bucket, size, grid, rounding):
    boxes = random_boxes(80, np.array(size), sides=(3, 200))
    shapes = {**SHAPES, "rounding": rounding}
    anchors = np.concatenate(core.pyramid_anchors(bucket, **GRID | grid, **shapes))
    inside = ((anchors[:, :2] + anchors[:, 2:]) / 2 < size).all(axis=1)
    expected = np.asarray(core.pairwise_iou(boxes, anchors[inside])).max(axis=1, initial=0)
    ious = coverage.best_ious(placed(boxes, bucket, size, **grid), **shapes)
    np.testing.assert_allclose(ious, expected, atol=1e-6)


def test_ious_by_hand():
    # A 32-pixel square around the first center of the finest level, and one of half its side.
    boxes = np.float32([[12 - 16, 12 - 16, 12 + 16, 12 + 16], [4, 4, 20, 20]])
    square = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    ious = coverage.best_ious(placed(boxes, (64, 64), (64, 64)), **square)
    np.testing.assert_allclose(ious, [1, 0.25], atol=1e-6)


def test_a_selection_has_the_ious_of_its_boxes():
    boxes = placed(random_boxes(9, np.array([90, 90]), sides=(3, 80)), (96, 96), (90, 90))
    ious = coverage.best_ious(boxes, **SHAPES)
    np.testing.assert_array_equal(
        coverage.best_ious(boxes.select(np.array([7, 2])), **SHAPES), ious[[7, 2]]
    )
