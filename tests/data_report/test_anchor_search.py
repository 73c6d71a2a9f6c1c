"""The searches return anchors that cover more boxes, the heavy ones first."""

import time

import numpy as np
import pytest

from retinanet_jax.data_report import coverage
from retinanet_jax.data_report.anchor_search import search_base_scale, search_shapes

GRID = {"min_level": 3, "max_level": 7, "offset": 0.5, "stride_rule": "nominal"}
SHAPES = {
    "base_scale": 4.0,
    "scales": (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    "ratios": (0.5, 1.0, 2.0),
    "rounding": "exact",
}


def random_boxes(count, size, *, sides, ratio_spread=0.4):
    """Boxes with log-uniform sizes and log-normal aspect ratios."""
    rng = np.random.default_rng(0)
    side = np.exp(rng.uniform(*np.log(sides), count))
    root = np.exp(rng.normal(0, ratio_spread, count) / 2)
    sides = np.minimum(np.stack([side * root, side / root], axis=1), size)
    low = rng.uniform(0, 1, (count, 2)) * (size - sides)
    return np.concatenate([low, low + sides], axis=1).astype(np.float32)


def place(boxes, bucket, extent):
    """Return the placed boxes, and equal weights of them."""
    count = len(boxes)
    buckets, extents = np.tile(bucket, (count, 1)), np.tile(np.array(extent, float), (count, 1))
    return coverage.place_boxes(boxes, buckets, extents, **GRID), np.full(count, 1 / count)


def covered(placed, **changes):
    """Return whether each box has an anchor at IoU 0.5."""
    return coverage.best_ious(placed, **SHAPES | changes) >= 0.5


@pytest.mark.parametrize(
    ("sides", "ratio_spread", "before", "after"),
    [
        ((8, 30), 0.3, 0.4, 0.8),  # smaller than all anchors
        ((60, 200), 1.5, 0.75, 0.85),  # so many aspect ratios that three cannot cover all
    ],
)
def test_the_search_covers_more(sides, ratio_spread, before, after):
    boxes = random_boxes(1000, np.array([600, 800]), sides=sides, ratio_spread=ratio_spread)
    placed, weights = place(boxes, (608, 800), (600, 800))
    assert covered(placed).mean() < before
    scales, ratios = search_shapes(placed, weights, **SHAPES, threshold=0.5)
    assert (len(scales), len(ratios)) == (3, 3)
    assert covered(placed, scales=scales, ratios=ratios).mean() > after


def test_the_search_reaches_a_single_aspect_ratio():
    """Boxes of one aspect ratio, 1 : 6, and one size, and a single anchor."""
    low = np.random.default_rng(0).uniform(0, 300, (200, 2))
    boxes = np.concatenate([low, low + np.array([30, 180])], axis=1).astype(np.float32)
    shapes = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    placed, weights = place(boxes, (512, 512), (512, 512))
    scales, ratios = search_shapes(placed, weights, **shapes, threshold=0.5)
    assert covered(placed, scales=scales, ratios=ratios).all()
    assert ratios[0] == pytest.approx(1 / 6, rel=0.2)


def test_the_heavier_boxes_decide():
    """One anchor size cannot cover small and large boxes, so it covers those of more weight."""
    small = random_boxes(100, np.array([600, 600]), sides=(24, 28), ratio_spread=0.01)
    large = random_boxes(100, np.array([600, 600]), sides=(150, 170), ratio_spread=0.01)
    placed, _ = place(np.concatenate([small, large]), (608, 608), (600, 600))
    placed = placed._replace(distances=placed.distances[:1])  # of a single level
    square = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    for is_heavy in (np.arange(200) < 100, np.arange(200) >= 100):
        weights = np.where(is_heavy, 0.8, 0.2) / 100
        scale = search_base_scale(placed, weights, **square, threshold=0.5)
        result = covered(placed, **square | {"base_scale": scale})
        assert result[is_heavy].mean() > 0.8
        assert not result[~is_heavy].any()


def test_the_base_scale_follows_the_size_of_the_boxes():
    """Boxes of the anchors' own shapes, four times smaller."""
    centers = np.float32([[100, 60], [36, 164]])
    boxes = np.concatenate([centers - 4, centers + 4], axis=1)
    placed, weights = place(boxes, (256, 256), (256, 256))
    square = {**SHAPES, "scales": (1.0,), "ratios": (1.0,)}
    assert search_base_scale(placed, weights, **square, threshold=0.5) == 1.0


@pytest.mark.parametrize("sides", [(1e-20, 1e-20), (1e-38, 700.0), (700.0, 1e-38)])
def test_boxes_of_hardly_any_area_do_not_stop_the_search(sides):
    boxes = np.float32([[0, 0, *sides]])
    scales, ratios = search_shapes(*place(boxes, (800, 800), (800, 800)), **SHAPES, threshold=0.5)
    assert min(scales) > 0
    assert min(ratios) > 0
    assert np.isfinite([*scales, *ratios]).all()


def test_the_search_takes_seconds():
    boxes = random_boxes(10_000, np.array([800, 1067]), sides=(8, 300))
    placed, weights = place(boxes, (800, 1088), (800, 1067))
    began = time.process_time()
    search_shapes(placed, weights, **SHAPES, threshold=0.5)
    assert time.process_time() - began < 30
