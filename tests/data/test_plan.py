"""The plan: exact epochs, resuming at any step, and the distribution of its samples."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_plans import (
    COLOR_JITTER,
    NO_COLOR_JITTER,
    SIZES,
    first_epoch,
    plan_options,
    random_sizes,
    train_plan,
)

from retinanet_jax.data.plan import BatchPlan, EvalPlan


def rotated_size(batch: BatchPlan) -> np.ndarray:
    return np.where(batch.rot90_k[:, None] % 2, batch.resized[:, ::-1], batch.resized)


def to_bytes(batch: BatchPlan) -> bytes:
    return repr(batch.bucket).encode() + b"".join(field.tobytes() for field in batch[2:10])


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 50),
    hosts=st.integers(1, 3),
    examples=st.integers(1, 5),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
    options=plan_options,
)
def test_an_epoch_contains_each_image_once_for_any_number_of_hosts(
    count, hosts, examples, epoch, seed, options
):
    plan = train_plan(random_sizes(count, seed), batch_size=hosts * examples, seed=seed, **options)
    # A landscape and a portrait bucket: at most one step more than a single bucket needs.
    assert plan.steps_per_epoch - -(-count // (hosts * examples)) in (0, 1)
    indices = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        batch = plan.batch(step)
        assert batch.weights.any()
        for host in range(hosts):
            part = batch.for_process(host, hosts)
            assert part.bucket == batch.bucket
            assert len(part.index) == examples
            indices += part.index[part.weights == 1].tolist()
    assert sorted(indices) == list(range(count))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 9),
    start=st.integers(0, 30),
    options=plan_options,
)
def test_a_step_is_the_same_whichever_step_is_planned_first(count, seed, start, options):
    sizes = random_sizes(count, seed)
    running, resumed = (train_plan(sizes, seed=seed, **options) for _ in range(2))
    all_steps = [to_bytes(running.batch(step)) for step in range(start + 3)]
    assert all_steps[start:] == [to_bytes(resumed.batch(step)) for step in range(start, start + 3)]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 9),
    step=st.integers(0, 30),
    options=plan_options,
)
def test_the_crop_lies_inside_the_rotated_image(count, seed, step, options):
    batch = train_plan(random_sizes(count, seed), seed=seed, **options).batch(step)
    rotated, crop = rotated_size(batch), options["crop_size"]
    assert np.array_equal(batch.size, np.minimum(rotated, crop) if crop else rotated)
    assert (batch.offset >= 0).all()
    assert (batch.offset + batch.size <= rotated).all()
    assert options["rot90"] or not batch.rot90_k.any()
    assert options["flip"] or not batch.flip.any()
    if options["color_jitter"] is NO_COLOR_JITTER:
        assert (batch.colors == (1, 1, 1, 0)).all()
    names = "int32 int32 bool int32 int32 int32 float32 float32"
    assert " ".join(field.dtype.name for field in batch[2:10]) == names


def test_epochs_and_seeds_differ():
    sizes = random_sizes(64)
    plan = train_plan(sizes)
    first, second = (
        np.concatenate([plan.batch(step).index for step in range(start, start + 16)])
        for start in (0, 16)
    )
    assert not np.array_equal(first, second)
    assert to_bytes(plan.batch(0)) != to_bytes(train_plan(sizes, seed=1).batch(0))


def test_the_samples_of_a_seed_never_change():
    """Otherwise a run that is resumed with a newer version would train on some images twice."""
    plan = train_plan(SIZES)
    first, second, last = (plan.batch(step) for step in (0, 1, 5))
    assert first.bucket == (128, 192)
    assert first.index.tolist() == [0, 2, 5, 3]
    assert first.resized.tolist() == [[126, 167], [107, 107], [91, 136], [100, 192]]
    assert second.bucket == (192, 128)
    assert second.index.tolist() == [1, 4, 4, 4]
    assert second.resized[:2].tolist() == [[171, 128], [155, 48]]
    assert last.index[:2].tolist() == [4, 1]
    assert last.resized[:2].tolist() == [[192, 60], [103, 77]]
    flips = [int(flip) for step in range(4, 8) for flip in plan.batch(step).flip]
    assert flips == [1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1]


def test_the_samples_are_those_of_version_0_2_if_one_bucket_contains_all_images():
    """As computed by retinanet_jax 0.2.0."""
    plan = train_plan(SIZES, buckets=((128, 192), (192, 192)), rot90=True)
    first, second, last = (plan.batch(step) for step in (0, 1, 5))
    assert (first.bucket, second.bucket, last.bucket) == ((192, 192), (128, 192), (192, 192))
    assert first.index.tolist() == [0, 1, 4, 3]
    assert first.resized.tolist() == [[126, 167], [192, 144], [155, 48], [100, 192]]
    assert first.rot90_k.tolist() == [3, 1, 2, 3]
    assert second.index.tolist() == [2, 5, 5, 5]
    assert last.index.tolist() == [0, 4, 4, 4]
    assert last.resized[:2].tolist() == [[108, 144], [192, 60]]


EVERYTHING = {"crop_size": (64, 64), "rot90": True, "color_jitter": COLOR_JITTER}


@pytest.mark.parametrize(
    ("switched_off", "changed"),
    [
        ({"flip": False}, {"flip"}),
        ({"rot90": False}, {"rot90_k", "offset", "size"}),
        ({"crop_size": None}, {"offset", "size", "resized"}),
        ({"scale_jitter": None}, {"resized", "offset", "size"}),
        ({"color_jitter": COLOR_JITTER | {"brightness": 0.0}}, {"colors"}),
    ],
)
def test_switching_off_an_augmentation_does_not_change_the_samples_of_the_others(
    switched_off, changed
):
    # One bucket for all, so that the batches contain the same images.
    sizes, options = random_sizes(40), EVERYTHING | {"buckets": ((192, 192),)}
    full, less = train_plan(sizes, **options), train_plan(sizes, **options | switched_off)
    for field in set(BatchPlan._fields) - {"bucket", "resize", "weights", "composition", "effects"}:
        assert np.array_equal(first_epoch(full, field), first_epoch(less, field)) == (
            field not in changed
        )
    if "colors" in changed:
        assert np.array_equal(
            first_epoch(full, "colors")[:, 1:], first_epoch(less, "colors")[:, 1:]
        )


def test_samples_have_the_stated_distribution():
    sizes = np.full((4000, 2), 100)
    plan = train_plan(sizes, scale_jitter=None)
    assert abs(first_epoch(plan, "flip").mean() - 0.5) < 0.04
    sides = first_epoch(plan, "resized")[:, 0]
    assert set(sides.tolist()) == {96, 128}
    assert abs((sides == 96).mean() - 0.5) < 0.04

    plan = train_plan(sizes, short_sides=(90, 99), short_side_sampling="range", scale_jitter=None)
    counts = collections.Counter(first_epoch(plan, "resized")[:, 0].tolist())
    assert sorted(counts) == list(range(90, 100))
    assert all(abs(count - 400) < 80 for count in counts.values())

    options = {"scale_jitter": (0.5, 1.5), "buckets": ((160, 160),)}
    plan = train_plan(sizes, short_sides=(100,), **options)
    sides = first_epoch(plan, "resized")[:, 0]
    assert sides.min() in (50, 51)
    assert sides.max() in (149, 150)
    assert abs(sides.mean() - 100) < 2

    counts = np.bincount(first_epoch(train_plan(sizes, rot90=True), "rot90_k"))
    assert len(counts) == 4
    assert (abs(counts - 1000) < 120).all()


def test_color_factors_have_the_stated_distribution():
    colors = first_epoch(train_plan(np.full((4000, 2), 100), color_jitter=COLOR_JITTER), "colors")
    lowest, highest = np.array([0.6, 0.8, 0.0, -0.1]), np.array([1.4, 1.2, 2.5, 0.1])
    width = highest - lowest
    assert (colors >= lowest - 1e-6).all()
    assert (colors <= highest + 1e-6).all()
    np.testing.assert_allclose(colors.min(axis=0), lowest, atol=0.01 * width.max())
    np.testing.assert_allclose(colors.max(axis=0), highest, atol=0.01 * width.max())
    assert (abs(colors.mean(axis=0) - (lowest + highest) / 2) < 0.02 * width).all()
    # The factors are independent of each other.
    assert abs(np.corrcoef(colors.T) - np.eye(4)).max() < 0.06


def test_large_scale_jitter_has_the_sizes_computed_by_hand():
    """480 x 640 is resized to between 48 x 64 and 960 x 1280, and cropped to 640 x 640."""
    plan = train_plan(
        np.tile([[480, 640]], (2000, 1)),
        buckets=((640, 640),),
        short_sides=(640,),
        long_side=640,
        scale_jitter=(0.1, 2.0),
        crop_size=(640, 640),
    )
    resized, size, offset = (first_epoch(plan, field) for field in ("resized", "size", "offset"))
    assert resized.min(axis=0).tolist() in ([48, 64], [49, 65])
    assert (resized.max(axis=0) > (958, 1277)).all()
    assert (resized.max(axis=0) <= (960, 1280)).all()
    assert abs(resized[:, 1].mean() - 640 * 1.05) < 20
    assert np.array_equal(size, np.minimum(resized, 640))
    largest_offset = resized - size
    is_large = largest_offset > 50
    assert abs((offset[is_large] / largest_offset[is_large]).mean() - 0.5) < 0.02
    assert not offset[largest_offset == 0].any()


def test_all_offsets_of_the_crop_are_equally_likely():
    options = {"short_sides": (102,), "scale_jitter": None, "crop_size": (100, 101)}
    offset = first_epoch(train_plan(np.full((3000, 2), 102), **options), "offset")
    for y in range(3):
        for x in range(2):
            assert abs((offset == (y, x)).all(axis=1).sum() - 500) < 80


@pytest.mark.parametrize("buckets", [(), ((128, 192), (192, 128))])
@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float", "pillow"])
def test_an_evaluation_contains_each_image_once_in_the_bucket_of_its_own_size(buckets, resize):
    sizes = random_sizes(37)
    options = {"buckets": buckets, "short_side": 128, "long_side": 192, "resize": resize}
    plan = EvalPlan(sizes, batch_size=4, **options)
    batches = [plan.batch(step) for step in range(plan.num_batches)]
    indices = np.concatenate([batch.index[batch.weights == 1] for batch in batches])
    assert sorted(indices.tolist()) == list(range(37))
    for batch in batches:
        assert not any(field.any() for field in (batch.flip, batch.rot90_k, batch.offset))
        assert np.array_equal(batch.size, batch.resized)
        assert (batch.colors == (1, 1, 1, 0)).all()
        for example, index in enumerate(batch.index):
            single = EvalPlan(sizes[[index]], batch_size=1, **options).batch(0)
            assert single.bucket == batch.bucket
            assert np.array_equal(single.resized[0], batch.resized[example])
    with pytest.raises(IndexError):
        plan.batch(plan.num_batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": ((800, 1333),)}, r"\(800, 1333\).*multiples of 32.*try \(800, 1344\)"),
        ({"buckets": ()}, "at least one"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -3}, "seed=-3"),
        ({"short_sides": ()}, r"short_sides=\(\)"),
        ({"long_side": 0}, "long_side=0"),
        ({"scale_jitter": (1.2, 0.8)}, r"scale_jitter=\(1.2, 0.8\)"),
        ({"scale_jitter": (2.0,)}, r"scale_jitter=\(2.0,\) must be \(lo, hi\)"),
        ({"sizes": np.zeros((0, 2), int)}, "at least one image"),
        ({"resize": "bicubic"}, "resize='bicubic' must be one of 'bilinear', 'bilinear_float'"),
        ({"short_side_sampling": "any"}, "short_side_sampling='any' must be 'choice' or 'range'"),
        ({"short_side_sampling": "range", "short_sides": (96,)}, r"short_sides=\(96,\) must be"),
        (
            {"short_side_sampling": "range", "short_sides": (96, 64)},
            r"lo <= hi if short_side_sampl",
        ),
        ({"crop_size": (0, 64)}, r"crop_size=\(0, 64\) must be a positive"),
        ({"crop_size": (128, 200)}, r"crop_size=\(128, 200\).*\[192, 128\].*bucket \(128, 224\)"),
        ({"crop_size": (160, 160)}, r"crop_size=\(160, 160\).*\[192, 128\].*bucket \(160, 160\)"),
        ({"color_jitter": NO_COLOR_JITTER | {"hue": -0.1}}, r"color_jitter\['hue'\]=-0.1 must not"),
    ],
)
def test_an_argument_out_of_range_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        train_plan(**{"sizes": SIZES} | changes)


def test_a_batch_that_does_not_divide_among_the_hosts_is_an_error():
    with pytest.raises(ValueError, match="batch_size=4 does not divide among 3 processes; try 3"):
        train_plan(SIZES).batch(0).for_process(0, 3)
