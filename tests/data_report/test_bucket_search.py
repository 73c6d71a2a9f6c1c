"""Bucket choice: no set of shapes of that number wastes less."""

import itertools
import time

import numpy as np
import pytest

from retinanet_jax.data.buckets import make_buckets
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import resized_sizes
from retinanet_jax.data_report.bucket_search import (
    bucket_table,
    choose_buckets,
    drawn_sizes,
    largest_size,
    one_shape,
    two_shapes,
)


def coco_sizes(count: int) -> np.ndarray:
    """Like COCO's: a few sizes for most pictures, the rest spread with a long side of 640."""
    rng = np.random.default_rng(0)
    common = np.array([[480, 640], [427, 640], [640, 480], [640, 427], [640, 640]])
    sizes = common[rng.choice(5, count, p=[0.4, 0.3, 0.15, 0.1, 0.05])]
    spread = np.sort(np.stack([rng.integers(320, 641, count), np.full(count, 640)], axis=1), axis=1)
    upright = rng.random(count) < 0.25
    spread[upright] = spread[upright, ::-1]
    return np.where(rng.random(count)[:, None] < 0.2, spread, sizes)


def train_plan(sizes, **changes) -> TrainPlan:
    recipe = {
        "seed": 0,
        "batch_size": 4,
        "buckets": ((256, 256),),
        "resize": "bilinear",
        "short_sides": (96, 128),
        "short_side_sampling": "choice",
        "long_side": 192,
        "flip": True,
        "scale_jitter": None,
        "crop_size": None,
        "rot90": False,
        "color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    }
    return TrainPlan(np.asarray(sizes), **recipe | changes)


def pixels(sizes, buckets) -> int:
    """What is computed in all: each picture's bucket."""
    rows = bucket_table(sizes, buckets).rows
    return sum(row.pictures * row.bucket[0] * row.bucket[1] for row in rows)


def test_buckets_by_hand():
    sizes = np.array([[100, 60]] * 10 + [[60, 100]] * 10)
    # Two kinds of picture and the shape that leftovers of both share.
    assert choose_buckets(sizes, count=3) == ((64, 128), (128, 64), (128, 128))
    assert choose_buckets(sizes, count=1) == ((128, 128),)
    # More shapes than there are kinds of picture save nothing.
    assert choose_buckets(sizes, count=8) == ((64, 128), (128, 64), (128, 128))
    # Where all are alike, one is enough.
    assert choose_buckets(sizes[:10], count=4) == ((128, 64),)


@pytest.mark.parametrize("seed", range(25))
def test_no_choice_of_that_many_shapes_has_less_padding(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(1, 6 * 32, (rng.integers(2, 12), 2))
    sizes = np.repeat(kinds, rng.integers(1, 50, len(kinds)), axis=0)
    count = int(rng.integers(2, 5))
    sides = -(-sizes // 32) * 32
    largest = tuple(sides.max(axis=0).tolist())
    shapes = itertools.product(*(np.unique(sides[:, axis]).tolist() for axis in (0, 1)))
    best = min(
        pixels(sizes, (largest, *others)) for others in itertools.combinations(shapes, count - 1)
    )
    chosen = choose_buckets(sizes, count=count)
    assert len(make_buckets(chosen)) <= count
    assert pixels(sizes, chosen) == best


def test_of_coco_sizes_a_twentieth_is_padding_with_eight_shapes():
    sides = {"short_side": 800, "long_side": 1333, "resize": "bilinear"}
    sizes = resized_sizes(coco_sizes(118_287), **sides)
    began = time.perf_counter()
    chosen = choose_buckets(sizes, count=8)
    assert time.perf_counter() - began < 20
    # Eight are compiled, with the one that the plan adds for leftovers.
    assert len(make_buckets(chosen)) == 8
    shares = [bucket_table(sizes, b).padding_overhead for b in (chosen, two_shapes(sizes))]
    assert shares[0] <= 0.05
    assert shares[1] > 0.15
    assert bucket_table(sizes, one_shape(sizes)).padding_overhead > 0.4
    assert one_shape(sizes) == ((1344, 1344),)


def test_very_large_pictures_get_shapes_in_larger_steps():
    sizes = np.random.default_rng(0).integers(3000, 5000, (200, 2))
    chosen = choose_buckets(sizes, count=4)
    assert len(chosen) == 4
    assert not np.any(np.array(chosen) % 96)  # 5000 is more than 64 times 64
    bucket_table(sizes, chosen)


def test_a_table_by_hand():
    sizes = np.array([[64, 100], [64, 128], [100, 64], [32, 32]])
    table = bucket_table(sizes, ((64, 128), (128, 64)))
    assert [(row.bucket, row.pictures) for row in table.rows] == [
        ((64, 128), 3),
        ((128, 64), 1),
        ((128, 128), 0),
    ]
    assert table.rows[0].padding_overhead == pytest.approx(1 - (6400 + 8192 + 1024) / (3 * 8192))
    assert table.rows[1].padding_overhead == pytest.approx(1 - 100 / 128)
    assert table.rows[2].padding_overhead == 0
    assert table.padding_overhead == pytest.approx(1 - (6400 + 8192 + 1024 + 6400) / (4 * 8192))
    assert one_shape(sizes) == ((128, 128),)
    assert two_shapes(sizes) == ((64, 128), (128, 64))
    assert two_shapes(sizes[:2]) == ((64, 128),)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"count=0 buckets for 1 pictures must both be 1 or more"):
        choose_buckets(np.array([[10, 10]]), count=0)
    with pytest.raises(ValueError, match=r"count=2 buckets for 0 pictures"):
        choose_buckets(np.zeros((0, 2), int), count=2)
    with pytest.raises(
        ValueError, match=r"no bucket of \[\[32, 32\]\] holds a picture of \(10, 40"
    ):
        bucket_table(np.array([[10, 10], [10, 40]]), ((32, 32),))


def test_all_sides_that_a_plan_draws_are_weighed():
    plan = train_plan([[100, 150]] * 50)
    drawn = drawn_sizes(plan, draws=1000)
    assert len(drawn) == 1000
    values, counts = np.unique(drawn, axis=0, return_counts=True)
    assert values.tolist() == [[96, 144], [128, 192]]
    assert counts.min() > 400
    # Where nothing is drawn, each picture counts once.
    assert len(drawn_sizes(train_plan([[100, 150]] * 50, short_sides=(96,)), draws=1000)) == 50


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({}, (128, 192)),
        ({"rot90": True}, (192, 192)),
        (
            {"scale_jitter": (0.1, 2.0), "crop_size": (160, 224), "buckets": ((192, 256),)},
            (160, 224),
        ),
        ({"scale_jitter": (0.5, 1.5)}, (256, 256)),  # that is what limits it
        ({"scale_jitter": (0.5, 1.0)}, (128, 192)),
        ({"short_side_sampling": "range", "short_sides": (32, 120)}, (120, 180)),
    ],
)
def test_chosen_buckets_hold_all_that_a_plan_may_draw(changes, largest):
    sizes = [[100, 150], [150, 150]]
    plan = train_plan(sizes, **changes)
    drawn = drawn_sizes(plan, draws=200)
    assert largest_size(plan) == largest
    assert (drawn <= largest).all()
    chosen = choose_buckets(np.concatenate([drawn, [largest]]), count=3)
    again = train_plan(sizes, **changes | {"buckets": chosen})
    # The buckets change the order alone.
    assert sorted(drawn_sizes(again, draws=200).tolist()) == sorted(drawn.tolist())
