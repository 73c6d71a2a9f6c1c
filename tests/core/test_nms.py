"""Hard and soft NMS compared with their sequential algorithms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_boxes import boxes, random_boxes

from retinanet_jax.core import (
    nms,
    non_maximum_suppression,
    pairwise_iou,
    soft_non_maximum_suppression,
)


def sequential_nms(boxes, classes, mask, iou_threshold):
    """Return a mask of the boxes that the sequential algorithm selects, as the reference."""
    iou = np.asarray(pairwise_iou(boxes, boxes))
    selected = []
    for i in np.flatnonzero(mask):
        if not any(classes[i] == classes[j] and iou[i, j] > iou_threshold for j in selected):
            selected.append(i)
    return np.isin(np.arange(len(boxes)), selected)


def jitted_nms(boxes, classes, mask, *, iou_threshold, class_agnostic=False, limit=10_000):
    return _jitted_nms(boxes, classes, mask, iou_threshold, class_agnostic, limit)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _jitted_nms(boxes, classes, mask, iou_threshold, class_agnostic, limit):
    return non_maximum_suppression(
        boxes,
        classes,
        mask,
        iou_threshold=iou_threshold,
        class_agnostic=class_agnostic,
        limit=limit,
    )


def test_a_suppressed_box_suppresses_nothing():
    # Adjacent boxes have an IoU of 3/7 = .43, the ends 1/9 = .11: only the second is suppressed.
    chain = boxes([0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10])
    classes = np.zeros(3, int)
    keep = jitted_nms(chain, classes, np.ones(3, bool), iou_threshold=0.3, class_agnostic=False)
    assert keep.tolist() == [True, False, True]


def test_suppression_needs_more_than_the_threshold():
    halves = boxes([0, 0, 10, 10], [0, 0, 10, 5])
    for threshold, second in ((0.5, True), (0.49, False)):
        keep = jitted_nms(
            halves,
            np.zeros(2, int),
            np.ones(2, bool),
            iou_threshold=threshold,
            class_agnostic=False,
        )
        assert keep.tolist() == [True, second]


@pytest.mark.parametrize(
    ("class_agnostic", "expected"),
    [(False, [False, True, True, False]), (True, [False, True, False, False])],
)
def test_masked_boxes_and_those_of_other_classes_suppress_nothing(class_agnostic, expected):
    same = np.repeat(boxes([0, 0, 10, 10]), 4, axis=0)
    classes, mask = np.array([0, 1, 0, 1]), np.array([False, True, True, True])
    keep = jitted_nms(same, classes, mask, iou_threshold=0.5, class_agnostic=class_agnostic)
    assert keep.tolist() == expected


def test_the_longest_chain_is_exact():
    # Each box overlaps only the next: an iteration decides one box, and every second box remains.
    start = np.arange(64, dtype=np.float32) * 6
    chain = np.stack([start, start * 0, start + 10, start * 0 + 10], axis=1)
    keep = jitted_nms(
        chain, np.zeros(64, int), np.ones(64, bool), iou_threshold=0.2, class_agnostic=False
    )
    assert keep.tolist() == [True, False] * 32


# Fewer boxes than a block, and more than two blocks.
@pytest.mark.parametrize(("size", "examples"), [(80, 30), (2 * nms.NMS_BLOCK + 44, 10)])
def test_nms_equals_the_sequential_algorithm(size, examples):
    @settings(deadline=None, max_examples=examples)
    @given(
        st.integers(0, 2**32 - 1),
        st.integers(1, 3),
        st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]),
    )
    def law(seed, num_classes, iou_threshold):
        generator = np.random.default_rng(seed)
        arguments = (
            random_boxes(generator, size),
            generator.integers(0, num_classes, size),
            generator.random(size) < 0.9,
        )
        keep = jitted_nms(*arguments, iou_threshold=iou_threshold)
        expected = sequential_nms(*arguments, iou_threshold)
        np.testing.assert_array_equal(keep, expected)
        few = jitted_nms(*arguments, iou_threshold=iou_threshold, limit=7)
        np.testing.assert_array_equal(few, expected & (np.cumsum(expected) <= 7))

    law()


def test_nms_ends_with_the_last_requested_box(monkeypatch):
    suppress = functools.partial(
        non_maximum_suppression, iou_threshold=0.5, class_agnostic=False, limit=5
    )
    blocks = []
    not_suppressed = nms._not_suppressed

    def counted(overlapping, mask):
        jax.debug.callback(lambda: blocks.append(1))
        return not_suppressed(overlapping, mask)

    monkeypatch.setattr(nms, "_not_suppressed", counted)
    apart = np.arange(1000, dtype=np.float32)[:, None] * 20 + np.float32([0, 0, 10, 10])
    mask = np.ones(1000, bool)
    assert jnp.sum(suppress(apart, np.zeros(1000, int), mask)) == 5
    jax.effects_barrier()
    assert len(blocks) == 1
    same = np.repeat(apart[:1], 1000, axis=0)
    assert jnp.sum(suppress(same, np.zeros(1000, int), np.arange(1000) < nms.NMS_BLOCK + 1)) == 1
    jax.effects_barrier()
    assert len(blocks) == 3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_class_agnostic_nms_equals_that_of_one_class(seed):
    generator = np.random.default_rng(seed)
    candidates, classes = random_boxes(generator, 80), generator.integers(0, 3, 80)
    mask = generator.random(80) < 0.9
    keep = jitted_nms(candidates, classes, mask, iou_threshold=0.5, class_agnostic=True)
    np.testing.assert_array_equal(keep, sequential_nms(candidates, classes * 0, mask, 0.5))


def scatters(jaxpr):
    """Return the scatter operations of a program, also those inside of its loops."""
    operations = [
        equation for equation in jaxpr.eqns if equation.primitive.name.startswith("scatter")
    ]
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            operations += scatters(inner) if hasattr(inner, "eqns") else []
    return operations


@pytest.mark.parametrize("limit", [100, 300])  # fewer than all boxes, and all of them
def test_nms_scatters_only_within_the_array(limit):
    """XLA's deterministic scatter for GPUs does not drop an index beyond an image's last one."""
    suppress = functools.partial(
        non_maximum_suppression, iou_threshold=0.5, class_agnostic=False, limit=limit
    )
    shapes = [((2, 300, 4), jnp.float32), ((2, 300), jnp.int32), ((2, 300), bool)]
    program = jax.make_jaxpr(jax.vmap(suppress))(*(jax.ShapeDtypeStruct(*x) for x in shapes))
    modes = [str(equation.params["mode"]) for equation in scatters(program.jaxpr)]
    assert modes == ["GatherScatterMode.PROMISE_IN_BOUNDS"] * 2


SOFT = dict(
    method="linear",
    iou_threshold=0.3,
    sigma=0.5,
    score_threshold=0.05,
    class_agnostic=False,
    max_detections=100,
)
jitted_soft = jax.jit(soft_non_maximum_suppression, static_argnames=tuple(SOFT))


def sequential_soft_nms(boxes, scores, classes, mask, rule):
    """Return the scores of the paper's algorithm, with a shrinking list, as the reference."""
    iou = np.asarray(pairwise_iou(boxes, boxes), np.float64)
    remaining = {i: float(scores[i]) for i in np.flatnonzero(mask)}
    selected = np.zeros(len(boxes))
    for _ in range(rule["max_detections"]):
        remaining = {i: score for i, score in remaining.items() if score > rule["score_threshold"]}
        if not remaining:
            break
        best = max(remaining, key=remaining.get)
        selected[best] = remaining.pop(best)
        for i in remaining:
            overlap = iou[best, i]
            if classes[i] != classes[best] and not rule["class_agnostic"]:
                continue
            if rule["method"] == "gaussian":
                remaining[i] *= np.exp(-(overlap**2) / rule["sigma"])
            elif overlap > rule["iou_threshold"]:
                remaining[i] *= 1 - overlap
    return selected


# The IoUs of the first with the others are 1/2, 1/4 and 0; that of the second and third is 1/2.
FOUR_BOXES = boxes([0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 4, 4], [20, 20, 28, 28])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The first does not lower the third, which is selected next and halves the second again.
        ({}, [0.9, 0.8 / 2 / 2, 0.7, 0.6]),
        ({"iou_threshold": 0.2}, [0.9, 0.4 / 2, 0.7 * 3 / 4, 0.6]),
        ({"iou_threshold": 0.5}, [0.9, 0.8, 0.7, 0.6]),
        (
            {"method": "gaussian"},
            [0.9, 0.8 * np.exp(-0.5 - 0.5), 0.7 * np.exp(-0.125), 0.6],
        ),
        ({"max_detections": 2}, [0.9, 0, 0.7, 0]),
        ({"score_threshold": 0.2}, [0.9, 0, 0.7, 0.6]),  # 0.2 is at the threshold
    ],
)
def test_soft_nms_by_hand(changes, expected):
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    classes, mask = np.zeros(4, int), np.ones(4, bool)
    selected = jitted_soft(FOUR_BOXES, scores, classes, mask, **dict(SOFT, **changes))
    np.testing.assert_allclose(selected, expected, rtol=1e-6)


@pytest.mark.parametrize(("class_agnostic", "second"), [(False, 0.8), (True, 0.4)])
def test_soft_nms_lowers_scores_of_its_class_by_boxes_that_are_real(class_agnostic, second):
    scores = np.array([0.9, 0.8, 0.99, 0], np.float32)
    mask = np.array([True, True, False, False])  # the third has the best score, but is padding
    rule = dict(SOFT, class_agnostic=class_agnostic)
    selected = jitted_soft(FOUR_BOXES, scores, np.array([0, 1, 0, 0]), mask, **rule)
    np.testing.assert_allclose(selected, [0.9, second, 0, 0], rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [
            dict(SOFT, iou_threshold=0.0),
            dict(SOFT, class_agnostic=True),
            dict(SOFT, iou_threshold=0.7, max_detections=10),
            dict(SOFT, method="gaussian"),
            dict(SOFT, method="gaussian", sigma=0.1, score_threshold=0.0, class_agnostic=True),
        ]
    ),
)
def test_soft_nms_equals_the_papers_algorithm(seed, rule):
    generator = np.random.default_rng(seed)
    candidates = random_boxes(generator, 60)
    scores = generator.uniform(0, 1, 60).astype(np.float32)
    classes, mask = generator.integers(0, 3, 60), generator.random(60) < 0.9
    selected = jitted_soft(candidates, scores, classes, mask, **rule)
    expected = sequential_soft_nms(candidates, scores, classes, mask, rule)
    np.testing.assert_allclose(selected, expected, rtol=1e-4)


def test_soft_nms_refuses_invalid_settings():
    arguments = (FOUR_BOXES, np.ones(4, np.float32), np.zeros(4, int), np.ones(4, bool))
    with pytest.raises(ValueError, match="method='cubic' must be one of linear, gaussian"):
        soft_non_maximum_suppression(*arguments, **dict(SOFT, method="cubic"))
    with pytest.raises(ValueError, match=r"sigma=0\.0 of soft NMS must be above 0"):
        soft_non_maximum_suppression(*arguments, **dict(SOFT, sigma=0.0))


def test_memory_of_nms_of_5000_candidates():
    shapes = (
        jax.ShapeDtypeStruct((5000, 4), np.float32),
        jax.ShapeDtypeStruct((5000,), np.int32),
        jax.ShapeDtypeStruct((5000,), bool),
    )
    compiled = _jitted_nms.lower(*shapes, 0.5, False, 100).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e6


def test_memory_of_soft_nms_of_5000_candidates():
    shapes = (
        jax.ShapeDtypeStruct((5000, 4), np.float32),
        jax.ShapeDtypeStruct((5000,), np.float32),
        jax.ShapeDtypeStruct((5000,), np.int32),
        jax.ShapeDtypeStruct((5000,), bool),
    )
    compiled = jitted_soft.lower(*shapes, **SOFT).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e6
