"""The search for buckets: no other choice of as many shapes has less padding."""

import itertools
import time

import numpy as np
import pytest

from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.buckets import make_buckets
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import resized_sizes
from retinanet_jax.data_report.bucket_search import (
    bucket_table,
    choose_buckets,
    one_shape,
    sample_sizes,
    two_shapes,
)


def coco_sizes(count: int) -> np.ndarray:
    """Return sizes like COCO's: a few for most images, the rest spread with a long side of 640."""
    rng = np.random.default_rng(0)
    common = np.array([[480, 640], [427, 640], [640, 480], [640, 427], [640, 640]])
    sizes = common[rng.choice(5, count, p=[0.4, 0.3, 0.15, 0.1, 0.05])]
    spread = np.sort(np.stack([rng.integers(320, 641, count), np.full(count, 640)], axis=1), axis=1)
    portrait = rng.random(count) < 0.25
    spread[portrait] = spread[portrait, ::-1]
    return np.where(rng.random(count)[:, None] < 0.2, spread, sizes)


def train_plan(sizes, *, buckets=((256, 256),), **changes) -> TrainPlan:
    augmentation = {
        "short_sides": (96, 128),
        "short_side_sampling": "choice",
        "long_side": 192,
        "flip": True,
        "scale_jitter": None,
        "crop_size": None,
        "rot90": False,
        "color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    }
    return TrainPlan(
        np.asarray(sizes),
        Augmentation(**augmentation | changes),
        seed=0,
        batch_size=4,
        buckets=buckets,
        resize="bilinear",
    )


def pixels(sizes, buckets) -> int:
    """Return the number of computed pixels: those of each image's bucket."""
    rows = bucket_table(sizes, buckets).rows
    return sum(row.images * row.bucket[0] * row.bucket[1] for row in rows)


def test_buckets_by_hand():
    sizes = np.array([[100, 60]] * 10 + [[60, 100]] * 10)
    assert choose_buckets(sizes, count=2) == ((64, 128), (128, 64))
    assert choose_buckets(sizes, count=1) == ((128, 128),)
    # More shapes than there are different sizes save nothing.
    assert choose_buckets(sizes, count=8) == ((64, 128), (128, 64))
    # If all sizes are equal, one shape is enough.
    assert choose_buckets(sizes[:10], count=4) == ((128, 64),)


@pytest.mark.parametrize("seed", range(25))
def test_no_other_choice_of_as_many_shapes_has_less_padding(seed):
    rng = np.random.default_rng(seed)
    distinct = rng.integers(1, 6 * 32, (rng.integers(2, 12), 2))
    sizes = np.repeat(distinct, rng.integers(1, 9, len(distinct)), axis=0)
    count = int(rng.integers(2, 5))
    sides = -(-sizes // 32) * 32
    shapes = np.array(list(itertools.product(*(np.unique(sides[:, axis]) for axis in (0, 1)))))
    areas = np.where(
        np.all(sizes <= shapes[:, None], axis=-1), shapes.prod(axis=1)[:, None], np.inf
    )
    choices = np.array(list(itertools.combinations(range(len(shapes)), min(count, len(shapes)))))
    best = areas[choices].min(axis=1).sum(axis=1).min()
    chosen = choose_buckets(sizes, count=count)
    assert len(make_buckets(chosen)) <= count
    assert pixels(sizes, chosen) == best


def test_eight_shapes_pad_coco_sizes_by_a_twentieth():
    sides = {"short_side": 800, "long_side": 1333, "resize": "bilinear"}
    sizes = resized_sizes(coco_sizes(118_287), **sides)
    start = time.perf_counter()
    chosen = choose_buckets(sizes, count=8)
    assert time.perf_counter() - start < 20
    assert len(chosen) == 8
    assert (1344, 1344) not in chosen
    assert bucket_table(sizes, chosen).padding_overhead <= 0.05
    assert bucket_table(sizes, two_shapes(sizes)).padding_overhead > 0.15
    assert bucket_table(sizes, one_shape(sizes)).padding_overhead > 0.4
    assert one_shape(sizes) == ((1344, 1344),)


def test_very_large_images_have_shapes_in_larger_steps():
    sizes = np.random.default_rng(0).integers(3000, 5000, (200, 2))
    chosen = choose_buckets(sizes, count=4)
    assert len(chosen) == 4
    assert not np.any(np.array(chosen) % 96)  # 5000 is more than 64 times 64
    bucket_table(sizes, chosen)


def test_bucket_table_by_hand():
    sizes = np.array([[64, 100], [64, 128], [100, 64], [32, 32]])
    table = bucket_table(sizes, ((64, 128), (128, 64)))
    assert [(row.bucket, row.images) for row in table.rows] == [
        ((64, 128), 3),
        ((128, 64), 1),
    ]
    assert table.rows[0].padding_overhead == pytest.approx(1 - (6400 + 8192 + 1024) / (3 * 8192))
    assert table.rows[1].padding_overhead == pytest.approx(1 - 100 / 128)
    with_empty = bucket_table(sizes, ((64, 128), (128, 64), (128, 128)))
    assert with_empty.rows[2] == ((128, 128), 0, 0.0)
    assert with_empty.padding_overhead == table.padding_overhead
    assert table.padding_overhead == pytest.approx(1 - (6400 + 8192 + 1024 + 6400) / (4 * 8192))
    assert one_shape(sizes) == ((128, 128),)
    assert two_shapes(sizes) == ((64, 128), (128, 64))
    assert two_shapes(sizes[:2]) == ((64, 128),)


def test_invalid_arguments_are_reported():
    with pytest.raises(ValueError, match=r"count=0 buckets for 1 images: both must be 1 or more"):
        choose_buckets(np.array([[10, 10]]), count=0)
    with pytest.raises(ValueError, match=r"count=2 buckets for 0 images"):
        choose_buckets(np.zeros((0, 2), int), count=2)
    with pytest.raises(
        ValueError, match=r"no bucket of \[\[32, 32\]\] can contain an image of \(10, 4"
    ):
        bucket_table(np.array([[10, 10], [10, 40]]), ((32, 32),))


def test_all_random_sizes_of_a_plan_are_sampled():
    plan = train_plan([[100, 150]] * 50)
    sampled = sample_sizes(plan, min_count=1000)
    assert len(sampled) == 1000
    values, counts = np.unique(sampled, axis=0, return_counts=True)
    assert values.tolist() == [[96, 144], [128, 192]]
    assert counts.min() > 400
    # If nothing is random, each image counts once.
    plan = train_plan([[100, 150]] * 50, short_sides=(96,))
    assert len(sample_sizes(plan, min_count=1000)) == 50


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({}, [[(128, 192), (128, 128)]]),
        ({"rot90": True}, [[(128, 192), (128, 128)], [(192, 128), (128, 128)]]),
        (
            {"scale_jitter": (0.1, 2.0), "crop_size": (160, 224), "buckets": ((192, 256),)},
            [[(160, 224), (160, 224)]],
        ),
        ({"scale_jitter": (0.5, 1.5)}, [[(171, 256), (192, 192)]]),  # the bucket limits the first
        ({"scale_jitter": (0.5, 1.0)}, [[(128, 192), (128, 128)]]),
        (
            {"short_side_sampling": "range", "short_sides": (32, 120)},
            [[(120, 180), (120, 120)]],
        ),
    ],
)
def test_chosen_buckets_contain_every_size_that_a_plan_may_sample(changes, largest):
    sizes = [[100, 150], [150, 150]]
    plan = train_plan(sizes, **changes)
    assert plan.largest_sizes.tolist() == [[list(size) for size in part] for part in largest]
    sampled = sample_sizes(plan, min_count=200)
    chosen = choose_buckets(np.concatenate([sampled, *plan.largest_sizes]), count=3)
    with_chosen = train_plan(sizes, **changes | {"buckets": chosen})
    # The buckets change only the order.
    assert sorted(sample_sizes(with_chosen, min_count=200).tolist()) == sorted(sampled.tolist())
