"""The coverage is exact without a matrix, and the search returns anchors that cover more."""

import time

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


def test_coverage_by_hand():
    # A 32-pixel square around the first center of the finest level, and one of half its side.
    boxes = np.float32([[12 - 16, 12 - 16, 12 + 16, 12 + 16], [4, 4, 20, 20]])
    square = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    ious = coverage.best_ious(placed(boxes, (64, 64), (64, 64)), **square)
    np.testing.assert_allclose(ious, [1, 0.25], atol=1e-6)
    measured = coverage.measure_coverage(ious, (1.0,), (1.0,), threshold=0.5)
    assert measured == coverage.Coverage((1.0,), (1.0,), 0.5, pytest.approx(0.625))


@pytest.mark.parametrize(
    ("sides", "ratio_spread", "before", "after"),
    [
        ((8, 30), 0.3, 0.4, 0.8),  # smaller than all anchors
        ((60, 200), 1.5, 0.75, 0.85),  # so many aspect ratios that three cannot cover all
    ],
)
def test_the_search_covers_more(sides, ratio_spread, before, after):
    boxes = random_boxes(1000, np.array([600, 800]), sides=sides, ratio_spread=ratio_spread)
    boxes_and_grid = placed(boxes, (608, 800), (600, 800))
    ious = coverage.best_ious(boxes_and_grid, **SHAPES)
    configured = coverage.measure_coverage(ious, SHAPES["scales"], SHAPES["ratios"], threshold=0.5)
    result = coverage.search_anchors(boxes_and_grid, **SHAPES, threshold=0.5)
    assert configured.covered < before
    assert result.covered > after
    assert (len(result.scales), len(result.ratios)) == (3, 3)
    # The coverage that it returns is that of the scales and ratios that it returns.
    ious = coverage.best_ious(
        boxes_and_grid, **SHAPES | {"scales": result.scales, "ratios": result.ratios}
    )
    assert coverage.measure_coverage(ious, result.scales, result.ratios, threshold=0.5) == result


def test_the_search_reaches_a_single_aspect_ratio():
    """Boxes of one aspect ratio, 1 : 6, and one size, and a single anchor."""
    low = np.random.default_rng(0).uniform(0, 300, (200, 2))
    boxes = np.concatenate([low, low + np.array([30, 180])], axis=1).astype(np.float32)
    shapes = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    result = coverage.search_anchors(placed(boxes, (512, 512), (512, 512)), **shapes, threshold=0.5)
    assert result.covered == 1
    assert result.ratios[0] == pytest.approx(1 / 6, rel=0.2)


def test_the_search_takes_seconds():
    boxes = random_boxes(10_000, np.array([800, 1067]), sides=(8, 300))
    began = time.process_time()
    coverage.search_anchors(placed(boxes, (800, 1088), (800, 1067)), **SHAPES, threshold=0.5)
    assert time.process_time() - began < 30
