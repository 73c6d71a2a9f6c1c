"""Images with rare categories are repeated by LVIS's rule, in epochs of constant length."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_plans import random_sizes, train_plan

from retinanet_jax.data.repeats import Repeats, repeat_factors


def epoch_counts(plan, epoch: int, num_images: int) -> np.ndarray:
    """Return how often an epoch has each image."""
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.batch(step) for step in steps]
    assert all(batch.weights.any() for batch in batches)
    images = np.concatenate([batch.index[batch.weights == 1] for batch in batches])
    return np.bincount(images, minlength=num_images)


def test_the_factors_are_those_computed_by_hand():
    """Class 0 is in 4 of 8 images, class 1 in 1, which also has class 0; 4 images are empty."""
    factors = repeat_factors(
        np.array([0, 0, 0, 0, 0, 1, 1]),
        np.array([0, 1, 2, 2, 3, 3, 3]),
        num_images=8,
        threshold=0.5,
    )
    assert factors.tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    none = np.zeros(0, int)
    assert repeat_factors(none, none, num_images=2, threshold=0.5).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"data.repeat_threshold=2.0 must be a fraction"):
        repeat_factors(none, none, num_images=2, threshold=2.0)


def test_an_image_is_repeated_by_its_factor_on_average():
    factors = np.array([1, 1, 1.25, 1.5, 2, 3.25])
    plan = train_plan(np.full((6, 2), 100), batch_size=2, repeat_factors=factors)
    counts = np.array([epoch_counts(plan, epoch, 6) for epoch in range(200)])
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.1)


@settings(deadline=None, max_examples=30)
@given(
    factors=st.lists(st.floats(1, 5), min_size=1, max_size=30),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 9),
    rot90=st.booleans(),
)
def test_all_epochs_have_equally_many_images_and_batches(factors, batch_size, seed, rot90):
    factors = np.array(factors)
    options = {"batch_size": batch_size, "seed": seed, "rot90": rot90}
    plan = train_plan(random_sizes(len(factors)), repeat_factors=factors, **options)
    totals = set()
    for epoch in range(3):
        counts = epoch_counts(plan, epoch, len(factors))
        assert (counts >= np.floor(factors)).all()
        totals.add(int(counts.sum()))
    # Each of two groups is completed to a whole number of images.
    assert len(totals) == 1
    assert -1e-5 < totals.pop() - factors.sum() < 2


def test_each_group_has_equally_many_images_in_all_epochs():
    """So that the batches of landscapes, and those of portraits, are always equally many."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 60)
    factors = np.maximum(1, rng.uniform(0, 3, 60))
    repeats = Repeats(factors, groups)
    for epoch in range(20):
        counts = np.bincount(groups[repeats.image[repeats.present(0, epoch)]])
        np.testing.assert_array_equal(counts, repeats.group_counts)
    sums = np.bincount(groups, factors)
    np.testing.assert_array_equal(repeats.group_counts, np.ceil(sums))


def test_the_copies_of_an_image_are_transformed_differently():
    plan = train_plan(np.full((1, 2), 100), repeat_factors=np.array([4.0]), batch_size=4)
    batch = plan.batch(0)
    assert batch.index.tolist() == [0, 0, 0, 0]
    assert len({tuple(size) for size in batch.resized.tolist()}) > 1


def test_a_plan_with_everything_on_is_the_same_from_any_step():
    options = {
        "repeat_factors": np.linspace(1, 3, 12),
        "affine": {"rotation": 9.0, "shear": 3.0, "scale": (0.5, 1.5), "translation": 0.1},
        **dict.fromkeys(("mosaic", "mixup", "gray", "blur", "jpeg", "cutout"), 0.5),
    }
    sizes = random_sizes(12)
    running = train_plan(sizes, **options)
    for step in range(3 * running.steps_per_epoch):
        expected = running.batch(step)
        assert set(expected.images()) <= set(range(12))
        resumed = train_plan(sizes, **options).batch(step)
        jax.tree.map(np.testing.assert_array_equal, resumed, expected)


def test_without_a_threshold_the_plan_is_the_same():
    sizes = random_sizes(20)
    plain, once = train_plan(sizes), train_plan(sizes, repeat_factors=np.ones(20))
    for step in range(2 * plain.steps_per_epoch):
        jax.tree.map(np.testing.assert_array_equal, plain.batch(step), once.batch(step))
