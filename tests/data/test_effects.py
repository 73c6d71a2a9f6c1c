"""Blur, JPEG compression, cutout and gray change pixels as stated, and no box."""

import numpy as np
import pytest
from seeded_images import encode_image, noise, smooth
from train_plans import DEFAULTS, first_epoch, make_train_plan, random_sizes, train_plan

from retinanet_jax.data.effects import Effects, apply_effects, sample_effects
from retinanet_jax.data.pipeline import batches

ALL = {"gray": 0.25, "blur": 0.25, "jpeg": 0.5, "cutout": 0.75}


def effects(blur=0.0, jpeg=0, cutout=(0, 0, 0, 0)) -> Effects:
    """Return the effects on a single image."""
    return Effects(np.array(blur, np.float32), np.array(jpeg, np.int32), np.array(cutout, np.int32))


def sampled(sizes, **fractions) -> Effects:
    """Return the effects on images of these sizes in the first epoch."""
    result = sample_effects(train_plan(sizes, **fractions).augmentation, sizes, seed=0, epoch=0)
    assert result is not None
    return result


def test_a_blur_has_the_standard_deviation_that_is_planned():
    for sigma in (0.5, 1.0, 2.0):
        step = np.where(np.arange(41) < 20, 0, 250).astype(np.uint8)
        edge = apply_effects(np.broadcast_to(step[:, None, None], (41, 9, 3)), effects(blur=sigma))
        weights = np.diff(edge[:, 4, 0].astype(float)) / 250
        rows = np.arange(40) + 0.5
        mean = (weights * rows).sum()
        assert weights.sum() == pytest.approx(1)
        assert mean == pytest.approx(19.5, abs=0.05)
        assert np.sqrt((weights * (rows - mean) ** 2).sum()) == pytest.approx(sigma, rel=0.1)


def test_compression_loses_more_at_lower_quality():
    image = smooth(40, 56)
    errors = [
        np.abs(apply_effects(image, effects(jpeg=quality)).astype(int) - image).mean()
        for quality in (90, 60, 30)
    ]
    assert 0 < errors[0] < errors[1] < errors[2] < 10
    gray = np.full((40, 56, 3), 128, np.uint8)
    np.testing.assert_array_equal(apply_effects(gray, effects(jpeg=30)), gray)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_cutout_covers_its_rectangle_and_nothing_else(dtype):
    image = noise(20, 30).astype(dtype)
    original = image.copy()
    result = apply_effects(image, effects(cutout=(3, 5, 9, 17)))
    covered = np.zeros((20, 30), bool)
    covered[3:9, 5:17] = True
    assert (result[covered] == 114).all()
    np.testing.assert_array_equal(result[~covered], original[~covered])
    np.testing.assert_array_equal(image, original)
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_effect_changes_nothing(dtype):
    image = (noise(20, 30) * 0.9).astype(dtype)
    assert apply_effects(image, effects()) is image
    result = apply_effects(image, effects(blur=1.0, jpeg=50))
    assert (result.dtype, result.shape) == (dtype, image.shape)


def test_samples_have_the_stated_distribution():
    sizes = np.tile([[100, 200]], (4000, 1))
    blur, jpeg, cutout = sampled(sizes, **ALL)
    colors = first_epoch(train_plan(sizes, **ALL), "colors")
    fractions = [(colors[:, 2] == 0).mean(), (blur > 0).mean(), (jpeg > 0).mean()]
    assert fractions == pytest.approx([0.25, 0.25, 0.5], abs=0.03)
    assert 0.5 <= blur[blur > 0].min() < 0.51
    assert 1.99 < blur.max() < 2.0
    assert set(jpeg[jpeg > 0].tolist()) == set(range(30, 91))
    y1, x1, y2, x2 = cutout[cutout[:, 2] > 0].T
    assert len(y1) / 4000 == pytest.approx(0.75, abs=0.03)
    assert set((y2 - y1).tolist()) == set(range(10, 31))
    assert set((x2 - x1).tolist()) == set(range(20, 61))
    assert (y1.min(), x1.min(), y2.max(), x2.max()) == (0, 0, 100, 200)


def test_the_rectangle_lies_inside_images_of_any_size():
    sizes = np.array([[1, 1], [1, 500], [3, 4], [64, 64]]).repeat(50, axis=0)
    y1, x1, y2, x2 = sampled(sizes, cutout=1.0).cutout.T
    assert (y1 >= 0).all()
    assert (x1 >= 0).all()
    assert (y1 < y2).all()
    assert (x1 < x2).all()
    assert (y2 <= sizes[:, 0]).all()
    assert (x2 <= sizes[:, 1]).all()


def test_an_effect_does_not_change_the_samples_of_the_others():
    sizes = random_sizes(50)
    full = sampled(sizes, **ALL)
    for name in Effects._fields:
        less = sampled(sizes, **ALL | {name: 0.0})
        assert [np.array_equal(a, b) for a, b in zip(full, less, strict=True)] == [
            field != name for field in Effects._fields
        ]


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_out_of_range_is_an_error(name, fraction):
    with pytest.raises(ValueError, match=f"{name}={fraction} must be a fraction of the images"):
        train_plan(random_sizes(2), **{name: fraction})


@pytest.fixture
def source(folder):
    """Return smooth images, in both of TensorFlow's ways of decoding."""
    for image_id in range(1, 9):
        pixels = smooth(60 + image_id, 80, seed=image_id)
        data = encode_image(pixels, "JPEG" if image_id % 2 else "PNG")
        folder.add_image(60 + image_id, 80, data)
        folder.add_box(image_id, [5, 10, 30, 25])
    return folder.load()


def load(source, loader, **changes):
    plan = make_train_plan(source.sizes, DEFAULTS | changes)
    options = {"prefetch": 2, "loader": loader, "min_visible": 0.0}
    return list(batches(source, plan, start_step=0, num_steps=4, **options))


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float"])
def test_both_loaders_apply_the_effects_of_the_plan(source, resize):
    changes = {"resize": resize, **ALL}
    pairs = zip(load(source, "tf", **changes), load(source, "numpy", **changes), strict=True)
    for by_tf, by_numpy in pairs:
        for name, a, b in zip(by_tf._fields, by_tf, by_numpy, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_effects_stay_inside_the_image_and_leave_its_boxes(source):
    plain, changed = load(source, "numpy"), load(source, "numpy", **ALL)
    num_changed = 0
    for before, after in zip(plain, changed, strict=True):
        for name in set(before._fields) - {"images", "colors"}:
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        for example, (height, width) in enumerate(before.sizes.astype(int)):
            image = after.images[example]
            assert not image[height:].any()
            assert not image[:, width:].any()
            num_changed += not np.array_equal(image, before.images[example])
    assert num_changed > 8


def test_a_split_batch_has_the_effects_of_its_part(source):
    batch_plan = make_train_plan(source.sizes, DEFAULTS | ALL).batch(0)
    assert batch_plan.effects is not None
    parts = [batch_plan.for_process(host, 2).effects for host in range(2)]
    for name in Effects._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(batch_plan.effects, name))
    assert make_train_plan(source.sizes, DEFAULTS).batch(0).effects is None
