import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.core import (
    BACKGROUND,
    IGNORE,
    classification_per_anchor,
    cross_entropy,
    hard_examples,
    pairwise_iou,
)

RULE = dict(num_candidates=100, iou_threshold=0.5, num_examples=3, negatives_per_positive=0)
jitted = jax.jit(hard_examples, static_argnames=tuple(RULE))


def random_image(generator, size):
    """Return losses, boxes with large overlaps, and foreground, background and ignored labels."""
    corner = generator.uniform(0, 40, (size, 2))
    sides = generator.uniform(10, 30, (size, 2))
    return (
        generator.permutation(size).astype(np.float32) / size,  # all different
        np.concatenate([corner, corner + sides], axis=-1).astype(np.float32),
        generator.choice([IGNORE, BACKGROUND, BACKGROUND, 0, 7], size),
    )


def hard_examples_by_lists(losses, boxes, labels, rule):
    """Return the result of the definition, computed with lists, as the reference."""
    iou = np.asarray(pairwise_iou(boxes, boxes))
    group_size = 1 + rule["negatives_per_positive"]
    eligible = [i for i in np.argsort(-losses) if labels[i] != IGNORE]
    candidates = eligible[: rule["num_candidates"]]
    if group_size > 1:
        num_positives = rule["num_candidates"] // group_size
        num_negatives = rule["num_candidates"] - num_positives
        positives = [i for i in eligible if labels[i] >= 0][:num_positives]
        negatives = [i for i in eligible if labels[i] < 0][:num_negatives]
        candidates = [i for i in eligible if i in positives or i in negatives]
    remaining = []
    for i in candidates:
        if not any(iou[i, j] > rule["iou_threshold"] for j in remaining):
            remaining.append(i)
    selected = remaining[: rule["num_examples"]]
    if group_size > 1:
        positives = [i for i in remaining if labels[i] >= 0][: rule["num_examples"] // group_size]
        negatives = [i for i in remaining if labels[i] < 0]
        selected = positives + negatives[: (group_size - 1) * max(len(positives), 1)]
    return np.isin(np.arange(len(losses)), selected)


def row_of_boxes(*starts):
    """Return boxes of 10 x 10 pixels in one row."""
    start = np.array(starts, np.float32)
    return np.stack([start * 0, start, start * 0 + 10, start + 10], axis=1)


def test_the_hardest_of_overlapping_anchors_are_selected_by_hand():
    boxes = row_of_boxes(0, 2, 20, 40, 60, 80)  # IoU of the first two: 8 / 12
    losses = np.array([4, 5, 3, 9, 1, 2], np.float32)
    labels = np.array([0, BACKGROUND, BACKGROUND, IGNORE, BACKGROUND, 3])
    keep = jitted(losses, boxes, labels, **RULE)
    assert keep.tolist() == [False, True, True, False, False, True]
    keep = jitted(losses, boxes, labels, **dict(RULE, iou_threshold=0.7))
    assert keep.tolist() == [True, True, True, False, False, False]
    # Only candidates are selected or suppress others: three candidates result in two examples.
    keep = jitted(losses, boxes, labels, **dict(RULE, num_candidates=3))
    assert keep.tolist() == [False, True, True, False, False, False]


def test_the_first_of_equal_losses_is_selected():
    keep = jitted(np.ones(5, np.float32), row_of_boxes(0, 0, 20, 40, 60), np.zeros(5, int), **RULE)
    assert keep.tolist() == [True, False, True, True, False]


def test_negatives_are_in_proportion_to_the_selected_positives():
    boxes, labels = row_of_boxes(*range(0, 200, 20)), np.array([BACKGROUND] * 7 + [0, 1, 2])
    losses = np.arange(10, 0, -1).astype(np.float32)  # the positives are the easiest
    keep = functools.partial(jitted, losses, boxes, labels)
    plain = keep(**dict(RULE, num_examples=6))
    assert plain.tolist() == [True] * 6 + [False] * 4
    two_to_one = keep(**dict(RULE, num_examples=6, negatives_per_positive=2))
    assert two_to_one.tolist() == [True] * 4 + [False] * 3 + [True, True, False]
    # Two positives and four negatives would fit, but there is only one positive.
    labels[7:9] = IGNORE
    one_positive = keep(**dict(RULE, num_examples=6, negatives_per_positive=2))
    assert one_positive.tolist() == [True] * 2 + [False] * 7 + [True]
    labels[9] = BACKGROUND
    none = keep(**dict(RULE, num_examples=6, negatives_per_positive=2))
    assert none.tolist() == [True] * 2 + [False] * 8


def test_hard_negatives_do_not_crowd_out_the_positives():
    boxes, labels = row_of_boxes(*range(0, 200, 20)), np.array([BACKGROUND] * 9 + [0])
    losses = np.arange(10, 0, -1).astype(np.float32)
    rule = dict(RULE, num_candidates=4, num_examples=4)
    assert not jitted(losses, boxes, labels, **rule)[9]
    keep = jitted(losses, boxes, labels, **dict(rule, negatives_per_positive=3))
    assert keep.tolist() == [True] * 3 + [False] * 6 + [True]


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [
            RULE,
            dict(RULE, num_candidates=20, iou_threshold=0.3, num_examples=10),
            dict(RULE, iou_threshold=1.0, num_examples=100),
            dict(RULE, num_candidates=20, num_examples=10, negatives_per_positive=1),
            dict(RULE, iou_threshold=0.0, num_examples=9, negatives_per_positive=3),
        ]
    ),
)
def test_hard_examples_equal_the_definition(seed, rule):
    image = random_image(np.random.default_rng(seed), 50)
    keep = np.asarray(jitted(*image, **rule))
    np.testing.assert_array_equal(keep, hard_examples_by_lists(*image, rule))
    assert keep.sum() <= rule["num_examples"]
    assert not np.any(keep & (image[2] == IGNORE))


def test_ignored_anchors_are_never_selected():
    for negatives_per_positive in (0, 2):
        rule = dict(RULE, negatives_per_positive=negatives_per_positive)
        keep = jitted(
            np.ones(4, np.float32), row_of_boxes(0, 20, 40, 60), np.full(4, IGNORE), **rule
        )
        assert not np.any(keep)


@pytest.mark.parametrize("negatives_per_positive", [0, 1])
def test_only_selected_anchors_have_a_gradient(negatives_per_positive):
    generator = np.random.default_rng(0)
    _, boxes, labels = random_image(generator, 50)
    rule = dict(RULE, num_examples=10, negatives_per_positive=negatives_per_positive)

    @jax.jit
    def total(logits):
        losses = classification_per_anchor(logits, labels, cross_entropy)
        keep = hard_examples(losses, boxes, labels, **rule)
        return jnp.sum(jnp.where(keep, losses, 0)), keep

    gradient, keep = jax.grad(total, has_aux=True)(generator.normal(size=(50, 8)))
    assert 1 < keep.sum() <= 10
    np.testing.assert_array_equal(gradient != 0, np.repeat(keep[:, None], 8, axis=1))


@pytest.mark.parametrize("negatives_per_positive", [0, 3])
def test_jit_and_vmap_change_nothing(negatives_per_positive):
    generator = np.random.default_rng(0)
    images = [random_image(generator, 50) for _ in range(3)]
    boxes = images[0][1]
    rule = dict(RULE, num_examples=12, negatives_per_positive=negatives_per_positive)
    select = functools.partial(hard_examples, **rule)
    all_losses, _, all_labels = zip(*images, strict=True)
    losses, labels = np.stack(all_losses), np.stack(all_labels)
    batched = jax.jit(jax.vmap(select, in_axes=(0, None, 0)))(losses, boxes, labels)
    for index in range(3):
        expected = jax.jit(select)(losses[index], boxes, labels[index])
        np.testing.assert_array_equal(batched[index], expected)


@pytest.mark.parametrize(
    "changes",
    [dict(num_examples=101), dict(negatives_per_positive=3), dict(negatives_per_positive=-1)],
)
def test_sizes_that_contradict_each_other_are_refused(changes):
    image = random_image(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="num_candidates >= num_examples > negatives_per_positive"):
        hard_examples(*image, **dict(RULE, **changes))


@pytest.mark.parametrize("negatives_per_positive", [0, 3])
def test_memory_of_hard_examples_of_200000_anchors(negatives_per_positive):
    shapes = (
        jax.ShapeDtypeStruct((200_000,), np.float32),
        jax.ShapeDtypeStruct((200_000, 4), np.float32),
        jax.ShapeDtypeStruct((200_000,), np.int32),
    )
    rule = dict(RULE, num_candidates=2000, num_examples=128)
    rule.update(negatives_per_positive=negatives_per_positive)
    compiled = jitted.lower(*shapes, **rule).compile()
    # Two bytes per pair of candidates, almost nothing per anchor. Measured: 8.1e6.
    assert compiled.memory_analysis().temp_size_in_bytes < 12e6
