"""Buckets are the configured ones, and an image gets the smallest one that contains it."""

import numpy as np

from retinanet_jax.data.buckets import (
    fewest_buckets,
    make_buckets,
    minimal_buckets,
    smallest_bucket,
)
from retinanet_jax.data.plan import EvalPlan

COCO_BUCKETS = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))


def test_without_buckets_each_image_is_padded_to_multiples_of_32():
    sizes = np.array([[800, 1066], [801, 32], [799, 1060], [1, 1], [32, 801]])
    assert minimal_buckets(sizes).tolist() == [[32, 32], [32, 832], [832, 32], [800, 1088]]
    options = {"buckets": (), "short_side": 64, "long_side": 96, "resize": "bilinear"}
    plan = EvalPlan(np.array([[64, 65], [64, 96], [70, 64], [64, 64]]), batch_size=1, **options)
    buckets = [plan.batch(step).bucket for step in range(plan.num_batches)]
    assert sorted(buckets) == [(64, 64), (64, 96), (64, 96), (96, 64)]


def test_buckets_are_the_configured_ones_sorted_by_area():
    expected = [[800, 1088], [1088, 800], [800, 1344], [1344, 800]]
    assert make_buckets(COCO_BUCKETS).tolist() == expected
    assert make_buckets(((64, 64), (32, 64), (64, 64))).tolist() == [[32, 64], [64, 64]]


def test_an_image_gets_the_smallest_bucket_that_contains_it():
    sizes = np.array([[800, 1000], [801, 799], [800, 1089], [1000, 1000], [1345, 1]])
    assert smallest_bucket(sizes, make_buckets(COCO_BUCKETS)).tolist() == [0, 1, 2, -1, -1]


def test_as_few_buckets_as_possible_contain_all_images():
    buckets = make_buckets(COCO_BUCKETS)
    landscapes, portrait = [[800, 1000], [800, 800], [600, 1200]], [[1000, 800]]
    assert fewest_buckets(np.array(landscapes[:2]), buckets).tolist() == [0, 0]
    assert fewest_buckets(np.array(landscapes), buckets).tolist() == [2, 2, 2]
    # The square fits in the portrait's bucket, too, but the landscape bucket contains more images.
    assert fewest_buckets(np.array(landscapes + portrait), buckets).tolist() == [2, 2, 2, 1]
    assert fewest_buckets(np.array(portrait * 2 + landscapes[:2]), buckets).tolist() == [1, 1, 0, 1]
