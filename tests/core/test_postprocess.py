import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.core import (
    decode,
    detect,
    nms,
    non_maximum_suppression,
    pairwise_iou,
    select_candidates,
    soft_non_maximum_suppression,
    xyxy_to_yxyx,
)


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def random_boxes(generator, *shape):
    corner = generator.uniform(0, 50, (*shape, 2))
    sides = generator.uniform(1, 50, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def nms_one_by_one(boxes, classes, mask, iou_threshold):
    """The sequential algorithm: the oracle."""
    iou = np.asarray(pairwise_iou(boxes, boxes))
    kept = []
    for i in np.flatnonzero(mask):
        if not any(classes[i] == classes[j] and iou[i, j] > iou_threshold for j in kept):
            kept.append(i)
    return np.isin(np.arange(len(boxes)), kept)


# Selection


jitted_select = jax.jit(select_candidates, static_argnames=("score_threshold", "top_k"))


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


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 12, 20, 60]), st.sampled_from([1, 3]))
def test_selection_is_the_flat_top_k_ties_included(seed, top_k, num_classes):
    generator = np.random.default_rng(seed)
    logits = generator.integers(-3, 3, (12, num_classes)).astype(np.float32)  # many ties
    deltas, anchors = np.zeros((12, 4), np.float32), random_boxes(generator, 12)
    result = jitted_select(logits, deltas, anchors, score_threshold=0.0, top_k=top_k)
    values, index = jax.lax.top_k(logits.reshape(-1), min(top_k, 12 * num_classes))
    np.testing.assert_allclose(result.scores, jax.nn.sigmoid(values), rtol=1e-6)
    np.testing.assert_array_equal(result.classes, index % num_classes)
    expected_boxes = decode(deltas, anchors)[index // num_classes]
    np.testing.assert_allclose(result.boxes, expected_boxes, rtol=1e-6)


def test_selection_decodes_the_chosen_anchor():
    logits = np.array([[-9, -9], [-9, 2], [1, -9]], np.float32)
    anchors = boxes([0, 0, 8, 8], [8, 8, 16, 16], [16, 16, 24, 24])
    deltas = np.zeros((3, 4), np.float32)
    deltas[1, 0] = 0.5
    result = select_candidates(logits, deltas, anchors, score_threshold=0.05, top_k=2)
    np.testing.assert_array_equal(result.boxes, boxes([12, 8, 20, 16], [16, 16, 24, 24]))
    assert result.classes.tolist() == [1, 0]


def test_a_score_at_the_threshold_is_below_it():
    logits, deltas = jnp.array([[0.0], [1e-6]]), np.zeros((2, 4), np.float32)
    anchors = boxes([0, 0, 8, 8], [0, 0, 8, 8])
    result = select_candidates(logits, deltas, anchors, score_threshold=0.5, top_k=2)
    assert result.mask.tolist() == [True, False]
    assert result.scores.tolist()[1] == 0.5


def test_half_precision_logits_give_float32_scores():
    logits = jnp.array([[-2.9375], [0.3125]], jnp.bfloat16)
    anchors = boxes([0, 0, 8, 8], [0, 0, 8, 8])
    zeros = jnp.zeros((2, 4), jnp.bfloat16)
    result = select_candidates(logits, zeros, anchors, score_threshold=0.05, top_k=2)
    assert result.scores.dtype == result.boxes.dtype == jnp.float32
    np.testing.assert_allclose(result.scores, 1 / (1 + np.exp([-0.3125, 2.9375])), rtol=1e-6)


# Non-maximum suppression


def test_a_suppressed_box_suppresses_nothing():
    # IoU of neighbours is 3/7 = .43, of the ends 1/19 = .05: the first removes the second alone.
    chain = boxes([0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10])
    alone = np.zeros(3, int)
    keep = jitted_nms(chain, alone, np.ones(3, bool), iou_threshold=0.3, class_agnostic=False)
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
def test_masked_boxes_do_not_suppress_and_classes_do_if_told(class_agnostic, expected):
    same = np.repeat(boxes([0, 0, 10, 10]), 4, axis=0)
    classes, mask = np.array([0, 1, 0, 1]), np.array([False, True, True, True])
    keep = jitted_nms(same, classes, mask, iou_threshold=0.5, class_agnostic=class_agnostic)
    assert keep.tolist() == expected


def test_the_longest_chain_is_exact():
    # Each box overlaps the next alone, so that a round settles one box: every other one stays.
    start = np.arange(64, dtype=np.float32) * 6
    chain = np.stack([start, start * 0, start + 10, start * 0 + 10], axis=1)
    keep = jitted_nms(
        chain, np.zeros(64, int), np.ones(64, bool), iou_threshold=0.2, class_agnostic=False
    )
    assert keep.tolist() == [True, False] * 32


# Fewer boxes than a block, and more than two.
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
        expected = nms_one_by_one(*arguments, iou_threshold)
        np.testing.assert_array_equal(keep, expected)
        few = jitted_nms(*arguments, iou_threshold=iou_threshold, limit=7)
        np.testing.assert_array_equal(few, expected & (np.cumsum(expected) <= 7))

    law()


def test_nms_ends_with_the_last_box_that_is_wanted(monkeypatch):
    nms = functools.partial(
        non_maximum_suppression, iou_threshold=0.5, class_agnostic=False, limit=5
    )
    settled = []
    resolve = nms._undisputed

    def counted(beaten_by, mask):
        jax.debug.callback(lambda: settled.append(1))
        return resolve(beaten_by, mask)

    monkeypatch.setattr(nms, "_undisputed", counted)
    apart = np.arange(1000, dtype=np.float32)[:, None] * 20 + np.float32([0, 0, 10, 10])
    mask = np.ones(1000, bool)
    assert jnp.sum(nms(apart, np.zeros(1000, int), mask)) == 5
    jax.effects_barrier()
    assert len(settled) == 1
    same = np.repeat(apart[:1], 1000, axis=0)
    assert jnp.sum(nms(same, np.zeros(1000, int), np.arange(1000) < nms.NMS_BLOCK + 1)) == 1
    jax.effects_barrier()
    assert len(settled) == 3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_class_agnostic_nms_is_that_of_one_class(seed):
    generator = np.random.default_rng(seed)
    found, classes = random_boxes(generator, 80), generator.integers(0, 3, 80)
    mask = generator.random(80) < 0.9
    keep = jitted_nms(found, classes, mask, iou_threshold=0.5, class_agnostic=True)
    np.testing.assert_array_equal(keep, nms_one_by_one(found, classes * 0, mask, 0.5))


# Soft non-maximum suppression

SOFT = dict(
    method="linear",
    iou_threshold=0.3,
    sigma=0.5,
    score_threshold=0.05,
    class_agnostic=False,
    max_detections=100,
)
jitted_soft = jax.jit(soft_non_maximum_suppression, static_argnames=tuple(SOFT))


def soft_nms_one_by_one(boxes, scores, classes, mask, rule):
    """The algorithm of the publication, on a shrinking list: the oracle."""
    iou = np.asarray(pairwise_iou(boxes, boxes), np.float64)
    left = {i: float(scores[i]) for i in np.flatnonzero(mask)}
    picked = np.zeros(len(boxes))
    for _ in range(rule["max_detections"]):
        left = {i: score for i, score in left.items() if score > rule["score_threshold"]}
        if not left:
            break
        best = max(left, key=left.get)
        picked[best] = left.pop(best)
        for i in left:
            overlap = iou[best, i]
            if classes[i] != classes[best] and not rule["class_agnostic"]:
                continue
            if rule["method"] == "gaussian":
                left[i] *= np.exp(-(overlap**2) / rule["sigma"])
            elif overlap > rule["iou_threshold"]:
                left[i] *= 1 - overlap
    return picked


# IoU of the first with the others: 1/2, 1/4 and 0; of the second and the third: 1/2.
THREE = boxes([0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 4, 4], [20, 20, 28, 28])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The third, rescored by the first not at all, is picked before the second, which it halves.
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
    picked = jitted_soft(THREE, scores, np.zeros(4, int), np.ones(4, bool), **dict(SOFT, **changes))
    np.testing.assert_allclose(picked, expected, rtol=1e-6)


@pytest.mark.parametrize(("class_agnostic", "second"), [(False, 0.8), (True, 0.4)])
def test_soft_nms_rescores_rivals_that_are_there(class_agnostic, second):
    scores = np.array([0.9, 0.8, 0.99, 0], np.float32)
    mask = np.array([True, True, False, False])  # the third is best of all, and no box
    rule = dict(SOFT, class_agnostic=class_agnostic)
    picked = jitted_soft(THREE, scores, np.array([0, 1, 0, 0]), mask, **rule)
    np.testing.assert_allclose(picked, [0.9, second, 0, 0], rtol=1e-6)


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
def test_soft_nms_is_the_publications(seed, rule):
    generator = np.random.default_rng(seed)
    found = random_boxes(generator, 60)
    scores = generator.uniform(0, 1, 60).astype(np.float32)
    classes, mask = generator.integers(0, 3, 60), generator.random(60) < 0.9
    picked = jitted_soft(found, scores, classes, mask, **rule)
    expected = soft_nms_one_by_one(found, scores, classes, mask, rule)
    np.testing.assert_allclose(picked, expected, rtol=1e-4)


def test_soft_nms_names_what_it_does_not_know():
    arguments = (THREE, np.ones(4, np.float32), np.zeros(4, int), np.ones(4, bool))
    with pytest.raises(ValueError, match="method='cubic' must be one of linear, gaussian"):
        soft_non_maximum_suppression(*arguments, **dict(SOFT, method="cubic"))
    with pytest.raises(ValueError, match="sigma=0.0 of soft NMS must be above 0"):
        soft_non_maximum_suppression(*arguments, **dict(SOFT, sigma=0.0))


# All of it

DETECT = dict(
    valid_size=np.array([100, 100], np.float32),
    original_scale=np.array([1, 1], np.float32),
    score_threshold=0.05,
    top_k=1000,
    iou_threshold=0.5,
    max_detections=4,
    clip="before_nms",
    drop_empty=False,
    nms="hard",
    soft_sigma=0.5,
    class_agnostic=False,
)


def run_detect(rows, **changes):
    """Detections of (score, class, box) rows: two classes, the first row alone in its level."""
    logits = np.full((len(rows), 2), -9.0, np.float32)
    for logit, (score, label, _) in zip(logits, rows, strict=True):
        logit[label] = np.log(score / (1 - score))
    anchors = boxes(*(box for _, _, box in rows))
    levels = [(x[:1], x[1:]) for x in (logits, np.zeros_like(anchors), anchors)]
    return detect(*levels, **dict(DETECT, **changes))


SCENE = [
    (0.6, 1, [0, 0, 10, 10]),
    (0.9, 0, [0, 0, 10, 10]),
    (0.8, 0, [0, 0, 10, 9]),  # beaten by the one above
    (0.04, 1, [50, 50, 60, 60]),  # below the score threshold
]


def test_detect_by_hand():
    result = run_detect(SCENE)
    np.testing.assert_allclose(result.scores, [0.9, 0.6, 0, 0], rtol=1e-6)
    assert result.classes.tolist() == [0, 1, 0, 0]
    assert result.mask.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(result.boxes, boxes(*[[0, 0, 10, 10]] * 2, *[[0] * 4] * 2))
    assert result.classes.dtype == jnp.int32


@pytest.mark.parametrize(
    ("nms", "duplicate"), [("soft_linear", 0.8 * 0.1), ("soft_gaussian", 0.8 * np.exp(-1.62))]
)
def test_soft_nms_lowers_what_hard_nms_drops(nms, duplicate):
    result = run_detect(SCENE, nms=nms)
    np.testing.assert_allclose(result.scores, [0.9, 0.6, duplicate, 0], rtol=1e-5)
    assert result.classes.tolist() == [0, 1, 0, 0]  # the duplicate now comes after the other class
    assert result.mask.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(result.boxes[2], [0, 0, 10, 9])


def test_class_agnostic_boxes_suppress_those_of_other_classes():
    result = run_detect(SCENE, class_agnostic=True)
    np.testing.assert_allclose(result.scores, [0.9, 0, 0, 0], rtol=1e-6)
    result = run_detect(SCENE, class_agnostic=True, nms="soft_linear")
    np.testing.assert_allclose(result.scores, [0.9, 0.08, 0, 0], rtol=1e-5)


def test_detect_keeps_the_best_max_detections():
    result = run_detect(SCENE, iou_threshold=1.0, max_detections=2)
    np.testing.assert_allclose(result.scores, [0.9, 0.8], rtol=1e-6)


def test_detect_gives_every_row_even_with_fewer_candidates():
    result = run_detect(SCENE, max_detections=30)
    assert result.mask.tolist() == [True] * 2 + [False] * 28
    assert not np.any(result.boxes[2:])


def test_nothing_above_the_threshold_is_nothing_at_all():
    result = run_detect(SCENE, score_threshold=0.95)
    for field in result:
        assert not np.any(field)


def test_boxes_are_clipped_to_the_picture_then_scaled_by_axis():
    rows = [(0.9, 0, [-5, -5, 30, 90]), (0.8, 0, [10, 60, 25, 90])]
    scale = {"original_scale": np.array([2, 3], np.float32)}
    result = run_detect(rows, valid_size=np.array([20, 80], np.float32), **scale)
    np.testing.assert_array_equal(result.boxes[:2], boxes([0, 0, 40, 240], [20, 180, 40, 240]))


def test_clipping_before_nms_changes_what_overlaps():
    # The whole boxes overlap by 90 / 110; inside the picture they are 10 and 1 rows high.
    rows = [(0.9, 0, [-90, 0, 10, 10]), (0.8, 0, [-99, 0, 1, 10])]
    assert run_detect(rows, clip="before_nms").mask.tolist() == [True, True, False, False]
    assert run_detect(rows, clip="after_nms").mask.tolist() == [True, False, False, False]


@pytest.mark.parametrize("clip", ["before_nms", "after_nms"])
def test_empty_boxes_are_dropped_and_the_rest_move_up(clip):
    rows = [(0.9, 0, [0, 0, 10, 10]), (0.8, 0, [20, 110, 30, 120]), (0.7, 0, [40, 0, 50, 10])]
    kept = run_detect(rows, clip=clip, max_detections=2)
    np.testing.assert_allclose(kept.scores, [0.9, 0.8], rtol=1e-6)
    dropped = run_detect(rows, clip=clip, drop_empty=True)
    np.testing.assert_allclose(dropped.scores, [0.9, 0.7, 0, 0], rtol=1e-6)
    assert dropped.mask.tolist() == [True, True, False, False]
    # Chosen first, dropped then, as in detectron2.
    chosen = run_detect(rows, clip=clip, drop_empty=True, max_detections=2)
    np.testing.assert_allclose(chosen.scores, [0.9, 0], rtol=1e-6)


def test_top_k_is_a_levels():
    rows = [(score, 0, [20 * i, 0, 20 * i + 9, 9]) for i, score in enumerate([0.3, 0.9, 0.8])]
    result = run_detect(rows, top_k=1)
    np.testing.assert_allclose(result.scores, [0.9, 0.3, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
def test_jit_and_vmap_change_nothing(nms):
    generator = np.random.default_rng(0)
    sizes = (40, 10)
    anchors = tuple(random_boxes(generator, size) for size in sizes)
    logits = tuple(generator.normal(size=(3, size, 5)).astype(np.float32) for size in sizes)
    deltas = tuple(0.3 * generator.normal(size=(3, size, 4)) for size in sizes)
    deltas = tuple(level.astype(np.float32) for level in deltas)
    valid_size = np.array([[60, 80], [90, 50], [70, 70]], np.float32)
    scale = np.array([[1, 1], [2, 2.5], [0.5, 0.5]], np.float32)

    def one(logits, deltas, valid_size, original_scale):
        changes = dict(valid_size=valid_size, original_scale=original_scale, max_detections=30)
        return detect(logits, deltas, anchors, **dict(DETECT, drop_empty=True, nms=nms, **changes))

    batched = jax.jit(jax.vmap(one))(logits, deltas, valid_size, scale)
    for i in range(3):
        at = functools.partial(jax.tree.map, lambda x, i=i: x[i])
        expected = jax.jit(one)(at(logits), at(deltas), valid_size[i], scale[i])
        assert 5 < expected.mask.sum() <= 30
        for ours, theirs in zip(at(batched), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_misspelt_clip_is_named():
    with pytest.raises(ValueError, match="clip='later'"):
        run_detect(SCENE, clip="later")


def test_an_unknown_nms_is_told_with_those_there_are():
    with pytest.raises(ValueError, match="nms='soft' must be one of hard, soft_linear, soft_gau"):
        run_detect(SCENE, nms="soft")


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("torchvision_v1", dict(max_detections=300, clip="before_nms", drop_empty=False)),
        (
            "detectron2_r50_stride_in_1x1",
            dict(max_detections=100, clip="after_nms", drop_empty=True),
        ),
    ],
)
def test_parity(test_data, name, library):
    golden = np.load(test_data / "parity" / f"{name}_128x160.npz")
    logits = golden["cls_logits"][0]
    deltas = xyxy_to_yxyx(golden["bbox_regression"][0])
    anchors = xyxy_to_yxyx(golden["anchors"])
    ends = np.cumsum(golden["levels"])[:-1]
    levels = [tuple(map(jnp.array, np.split(x, ends))) for x in (logits, deltas, anchors)]
    size = {"valid_size": np.array([128, 160], np.float32)}
    result = jax.jit(lambda *outputs: detect(*outputs, **dict(DETECT, **size, **library)))(*levels)
    assert np.all(result.mask)
    np.testing.assert_allclose(result.scores, golden["det0_scores"], rtol=1e-5)
    labels = golden["det0_labels" if "torchvision" in name else "det0_classes"]
    np.testing.assert_array_equal(result.classes, labels)
    np.testing.assert_allclose(result.boxes, xyxy_to_yxyx(golden["det0_boxes"]), atol=2e-3)


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
