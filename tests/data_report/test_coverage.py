"""Anchor coverage: exact without a matrix, and a search that finds what covers more."""

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


def random_boxes(count, size, *, sides, forms=0.4, seed=0):
    """Boxes with log-uniform sizes and log-normal height / width."""
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(*np.log(sides), count))
    root = np.exp(rng.normal(0, forms, count) / 2)
    sides = np.minimum(np.stack([side * root, side / root], axis=1), size)
    low = rng.uniform(0, 1, (count, 2)) * (size - sides)
    return np.concatenate([low, low + sides], axis=1).astype(np.float32)


def placed(boxes, bucket, reach, **changes):
    count = len(boxes)
    buckets, reach = np.tile(bucket, (count, 1)), np.tile(np.array(reach, float), (count, 1))
    return coverage.place(boxes, buckets, reach, **GRID | changes)


@pytest.mark.parametrize(
    ("bucket", "size", "grid", "rounding"),
    [
        ((192, 256), (180, 250), {}, "exact"),
        ((192, 256), (192, 256), {"offset": 0.0, "stride_rule": "grid"}, "torchvision"),
        ((160, 96), (150, 20), {}, "exact"),  # the coarser levels have no anchor in the picture
        ((64, 64), (5, 5), {"min_level": 4}, "exact"),  # no level has
    ],
)
def test_the_best_iou_is_that_of_all_anchors(bucket, size, grid, rounding):
    boxes = random_boxes(80, np.array(size), sides=(3, 200))
    shapes = {**SHAPES, "rounding": rounding}
    anchors = np.concatenate(core.pyramid_anchors(bucket, **GRID | grid, **shapes))
    inside = ((anchors[:, :2] + anchors[:, 2:]) / 2 < size).all(axis=1)
    expected = np.asarray(core.pairwise_iou(boxes, anchors[inside])).max(axis=1, initial=0)
    found = coverage.best_ious(placed(boxes, bucket, size, **grid), **shapes)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_coverage_by_hand():
    # A 32-pixel square about the first centre of the finest level, and one of half its side.
    boxes = np.float32([[12 - 16, 12 - 16, 12 + 16, 12 + 16], [4, 4, 20, 20]])
    square = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    ious = coverage.best_ious(placed(boxes, (64, 64), (64, 64)), **square)
    np.testing.assert_allclose(ious, [1, 0.25], atol=1e-6)
    found = coverage.measure(ious, (1.0,), (1.0,), threshold=0.5)
    assert found == coverage.Coverage((1.0,), (1.0,), 0.5, pytest.approx(0.625))


@pytest.mark.parametrize(
    ("sides", "forms", "before", "after"),
    [
        ((8, 30), 0.3, 0.4, 0.8),  # smaller than all anchors
        ((60, 200), 1.5, 0.75, 0.85),  # slender: as many ratios cannot cover every form
    ],
)
def test_the_search_covers_more(sides, forms, before, after):
    boxes = random_boxes(1000, np.array([600, 800]), sides=sides, forms=forms)
    own = placed(boxes, (608, 800), (600, 800))
    ious = coverage.best_ious(own, **SHAPES)
    configured = coverage.measure(ious, SHAPES["scales"], SHAPES["ratios"], threshold=0.5)
    found = coverage.search(own, **SHAPES, threshold=0.5)
    assert configured.covered < before
    assert found.covered > after
    assert (len(found.scales), len(found.ratios)) == (3, 3)
    # What it says of the numbers it names is so.
    ious = coverage.best_ious(own, **SHAPES | {"scales": found.scales, "ratios": found.ratios})
    assert coverage.measure(ious, found.scales, found.ratios, threshold=0.5) == found


def test_one_form_is_found():
    """Lying boxes of one form, 1 : 6, and one size: a single anchor that is nearly it."""
    low = np.random.default_rng(0).uniform(0, 300, (200, 2))
    boxes = np.concatenate([low, low + (30, 180)], axis=1).astype(np.float32)
    one = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    found = coverage.search(placed(boxes, (512, 512), (512, 512)), **one, threshold=0.5)
    assert found.covered == 1
    assert found.ratios[0] == pytest.approx(1 / 6, rel=0.2)


def test_the_search_takes_seconds():
    boxes = random_boxes(10_000, np.array([800, 1067]), sides=(8, 300))
    began = time.process_time()
    coverage.search(placed(boxes, (800, 1088), (800, 1067)), **SHAPES, threshold=0.5)
    assert time.process_time() - began < 30
