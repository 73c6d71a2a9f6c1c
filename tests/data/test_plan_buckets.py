"""Shapes of batches: all are configured, and every epoch has the same number of steps."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_plans import (
    COLOR_JITTER,
    SIZES,
    first_epoch,
    plan_options,
    random_sizes,
    train_plan,
)

from retinanet_jax.data.plan import EvalPlan, TrainPlan
from retinanet_jax.data.sizes import resized_sizes

SEVEN_BUCKETS = (
    (800, 928),
    (800, 1088),
    (800, 1216),
    (800, 1344),
    (1088, 800),
    (1216, 800),
    (1344, 800),
)
FOUR_BUCKETS = ((128, 128), (128, 192), (192, 96), (192, 128))
SIDES = {"short_side": 800, "long_side": 1333}


def area(bucket: tuple[int, int]) -> int:
    return bucket[0] * bucket[1]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 9),
    step=st.integers(0, 30),
    options=plan_options,
)
def test_a_batch_has_the_smallest_bucket_that_contains_it(count, seed, step, options):
    plan = train_plan(random_sizes(count, seed), seed=seed, **options, buckets=FOUR_BUCKETS)
    batch = plan.batch(step)
    needed = batch.size.max(axis=0)
    large_enough = [bucket for bucket in FOUR_BUCKETS if (needed <= bucket).all()]
    assert batch.bucket == min(large_enough, key=area)
    assert area(batch.bucket) <= area(plan.largest_bucket)
    assert (batch.size <= plan.largest_sizes.max(axis=0)[batch.index]).all()


def test_fillers_repeat_an_image_of_their_batch():
    plan = train_plan(random_sizes(5), batch_size=4)
    batches = [plan.batch(step) for step in range(2)]
    short = min(batches, key=lambda batch: batch.weights.sum())
    assert short.weights.tolist() == [1, 0, 0, 0]
    assert len(set(short.index.tolist())) == 1


def first_buckets(plan: TrainPlan) -> list[tuple[int, int]]:
    """Return the buckets of the first epoch's batches, sorted."""
    return sorted(plan.batch(step).bucket for step in range(plan.steps_per_epoch))


def test_leftover_images_of_both_orientations_are_not_in_one_batch():
    """65 landscapes and 65 portraits in batches of 8: each leftover image has its own batch."""
    sizes = np.array([[100, 150], [150, 100]] * 65)
    plan = train_plan(sizes, batch_size=8, short_sides=(128,), scale_jitter=None)
    assert first_buckets(plan) == [(128, 192)] * 9 + [(192, 128)] * 9
    # Without leftover images there is no additional step.
    plan = train_plan(sizes[:128], batch_size=8, short_sides=(128,), scale_jitter=None)
    assert first_buckets(plan) == [(128, 192)] * 8 + [(192, 128)] * 8


def test_leftover_images_are_padded_to_a_larger_bucket_of_their_orientation():
    """9 images of 3:2 and 7 of 4:3 in batches of 8: a leftover image of 3:2 with the others."""
    sizes = np.array([[100, 150]] * 9 + [[96, 128]] * 7 + [[128, 96]] * 3)
    options = {"batch_size": 8, "short_sides": (96,), "scale_jitter": None}
    plan = train_plan(sizes, buckets=((96, 128), (96, 160), (128, 96)), **options)
    assert first_buckets(plan) == [(96, 160)] * 2 + [(128, 96)]
    # A bucket for the portraits and the images of 4:3 does not make another group of batches.
    plan = train_plan(sizes, buckets=((96, 160), (128, 128)), **options)
    assert first_buckets(plan) == [(96, 160)] * 2 + [(128, 128)]


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(16, 8, 3), (2, 8, 2), (1, 8, 1)])
def test_every_epoch_has_as_many_steps_though_rotations_move_images_between_buckets(
    count, batch_size, steps
):
    """16 images are 2 batches if 8 of them are rotated and 3 otherwise, so all epochs have 3."""
    sizes = np.array([[100, 150]] * count)
    plan = train_plan(sizes, batch_size=batch_size, rot90=True)
    assert plan.steps_per_epoch == steps
    numbers_of_images = set()
    for epoch in range(20):
        batches = [plan.batch(epoch * steps + step) for step in range(steps)]
        images = [batch.index[batch.weights == 1].tolist() for batch in batches]
        assert sorted(itertools.chain(*images)) == list(range(count))
        assert all(images)
        assert {batch.bucket for batch in batches} <= {(128, 192), (192, 128)}
        numbers_of_images.add(tuple(sorted(map(len, images))))
    if count == 16:  # 8 and 8 are divided further
        assert (4, 4, 8) in numbers_of_images


def test_each_step_has_an_image_though_there_are_more_buckets_than_images():
    """Two rotated images of different shapes: an epoch needs two of four buckets."""
    buckets = ((64, 192), (192, 64), (128, 160), (160, 128))
    options = {"scale_jitter": None, "short_sides": (128,), "rot90": True}
    plan = train_plan([[40, 120], [120, 150]], buckets=buckets, **options)
    assert plan.steps_per_epoch == 2
    assert {plan.batch(step).bucket for step in range(40)} == set(buckets)
    assert all(plan.batch(step).weights.sum() == 1 for step in range(40))


def test_the_largest_bucket_is_the_largest_that_the_images_can_require():
    landscape, panorama, portrait = [480, 640], [300, 640], [640, 480]
    options = {"buckets": SEVEN_BUCKETS, "short_sides": (640, 800), "long_side": 1333}
    options["scale_jitter"] = None

    def largest(*sizes, **changes):
        return train_plan(np.array(sizes), **options | changes).largest_bucket

    assert largest(landscape) == (800, 1088)
    assert largest(landscape, panorama) == (800, 1344)
    assert largest(portrait, portrait) == (1088, 800)
    assert largest(landscape, rot90=True) == (1088, 800)  # the last of two with the same area
    assert largest(landscape, short_sides=(600,)) == (800, 928)
    assert largest(landscape, short_sides=(600,), scale_jitter=(0.8, 1.5)) == (800, 1088)
    assert largest(panorama, crop_size=(640, 640)) == (800, 928)


def test_scale_jitter_is_limited_to_what_fits_after_the_rotation():
    """480 x 640 fits in 128 x 192 as 128 x 171, and rotated by 90 degrees as 128 x 96."""
    plan = train_plan(
        np.tile([[480, 640]], (64, 1)),
        buckets=((128, 192),),
        short_sides=(64,),
        scale_jitter=(4.0, 4.0),
        rot90=True,
    )
    rot90_k, sizes = first_epoch(plan, "rot90_k"), first_epoch(plan, "size")
    assert {(int(k) % 2, *size) for k, size in zip(rot90_k, sizes.tolist(), strict=True)} == {
        (0, 128, 171),
        (1, 128, 96),
    }


def test_scale_jitter_is_limited_by_the_bucket_of_the_image_s_orientation():
    plan = train_plan(SIZES, scale_jitter=(9.0, 9.0), batch_size=1)
    batches = [plan.batch(step) for step in range(6)]
    # As large as fits in (128, 192) or (192, 128) at the image's aspect ratio.
    assert {(int(batch.index[0]), *batch.resized[0].tolist()) for batch in batches} == {
        (0, 128, 171),
        (1, 171, 128),
        (2, 128, 128),
        (3, 100, 192),
        (4, 192, 60),
        (5, 128, 192),
    }


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float", "pillow"])
def test_a_jitter_by_1_changes_no_size_though_images_fill_their_buckets(resize):
    """A limit that is computed as 1 - 1e-16 would decide how sides of n + 0.5 are rounded."""
    sizes = np.stack(np.meshgrid(np.arange(100, 300), np.arange(100, 300)), axis=-1).reshape(-1, 2)
    options = {"short_sides": (128,), "resize": resize}
    jittered, fixed = (train_plan(sizes, scale_jitter=j, **options) for j in ((0.9, 1.0), None))
    expected = resized_sizes(sizes, short_side=128, long_side=192, resize=resize)
    assert np.array_equal(jittered.largest_sizes[0], expected)
    assert np.array_equal(fixed.largest_sizes[0], expected)


def test_an_image_that_fits_in_no_bucket_is_named_with_the_bucket_it_requires():
    with pytest.raises(ValueError, match=r"image 1 of \(640, 480\).*\(1067, 800\).*\(1088, 800"):
        EvalPlan(SIZES, batch_size=1, buckets=((800, 1088),), **SIDES, resize="bilinear")
    with pytest.raises(ValueError, match=r"image 0 .*no bucket of \[\[64, 64\]\]"):
        train_plan(SIZES, buckets=((64, 64),))
    # Neither of the buckets contains a square of their longer side.
    square = {"buckets": ((96, 128), (128, 96)), "resize": "bilinear"}
    message = (
        r"image 0 of \(500, 500\).*\(128, 128\), which fits in no.*add the bucket \(128, 128\)"
    )
    with pytest.raises(ValueError, match=message):
        train_plan([[500, 500]], **square, short_sides=(128,))
    with pytest.raises(ValueError, match=message):
        EvalPlan(np.array([[500, 500]]), batch_size=1, **square, short_side=128, long_side=128)
    landscape = {"buckets": ((128, 192),), "short_sides": (128,)}
    train_plan(SIZES[:1], **landscape)
    with pytest.raises(ValueError, match=r"image 0 of \(480, 640\).*\(171, 128\).*\(192, 128\)"):
        train_plan(SIZES[:1], **landscape, rot90=True)


def coco_like_sizes(count: int = 118_287) -> np.ndarray:
    """Return simulated sizes, of which 60% are COCO's four most common ones.

    The others have a long side of 640 and a uniform short side from 300 to 640; 30% are portraits.
    """
    rng = np.random.default_rng(0)
    common = np.array([[480, 640], [427, 640], [640, 480], [640, 427]])
    sizes = common[rng.choice(4, count, p=[0.39, 0.36, 0.14, 0.11])]
    rest = np.stack([rng.integers(300, 641, count), np.full(count, 640)], axis=1)
    portraits = rng.random(count) < 0.3
    rest[portraits] = rest[portraits, ::-1]
    return np.where(rng.random(count)[:, None] < 0.6, sizes, rest)


def test_a_simulated_coco_is_planned_in_seconds_and_pads_little():
    """An epoch with all augmentations, and the padding overhead of three sets of buckets."""
    sizes = coco_like_sizes()
    tracemalloc.start()
    start = time.perf_counter()
    everything = {"rot90": True, "color_jitter": COLOR_JITTER}
    coco_plan(sizes, SEVEN_BUCKETS, **everything).batch(0)
    seconds = time.perf_counter() - start
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"{len(sizes):,} simulated sizes: an epoch in {seconds:.1f} s, {megabytes:.0f} MB")
    assert seconds < 10
    assert megabytes < 1000

    overheads = {}
    for buckets in (((1344, 1344),), ((800, 1344), (1344, 800)), SEVEN_BUCKETS):
        plan = coco_plan(sizes, buckets)
        batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
        pixels = sum(int(batch.size.prod(axis=1) @ batch.weights) for batch in batches)
        padded = sum(len(batch.index) * batch.bucket[0] * batch.bucket[1] for batch in batches)
        overheads[len(buckets)] = 1 - pixels / padded
        print(f"{len(plan.buckets)} buckets: {overheads[len(buckets)]:.1%} padding")
    assert overheads[7] < 0.05
    assert 0.15 < overheads[2] < 0.20
    assert overheads[1] > 0.5


def coco_plan(sizes, buckets, **changes) -> TrainPlan:
    options = {"batch_size": 16, "short_sides": (800,), "long_side": 1333, "scale_jitter": None}
    return train_plan(sizes, buckets=buckets, **options | changes)
