"""Candidates and detections by hand, and compared with torchvision and detectron2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_boxes import boxes, random_boxes

from retinanet_jax.core import decode, detect, select_candidates, xyxy_to_yxyx

jitted_select = jax.jit(select_candidates, static_argnames=("score_threshold", "top_k"))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 12, 20, 60]), st.sampled_from([1, 3]))
def test_candidates_are_the_top_k_of_all_pairs_including_ties(seed, top_k, num_classes):
    generator = np.random.default_rng(seed)
    logits = generator.integers(-3, 3, (12, num_classes)).astype(np.float32)  # many ties
    deltas, anchors = np.zeros((12, 4), np.float32), random_boxes(generator, 12)
    result = jitted_select(logits, deltas, anchors, score_threshold=0.0, top_k=top_k)
    values, index = jax.lax.top_k(logits.reshape(-1), min(top_k, 12 * num_classes))
    np.testing.assert_allclose(result.scores, jax.nn.sigmoid(values), rtol=1e-6)
    np.testing.assert_array_equal(result.classes, index % num_classes)
    expected_boxes = decode(deltas, anchors)[index // num_classes]
    np.testing.assert_allclose(result.boxes, expected_boxes, rtol=1e-6)


SIZES = (12, 6, 3)  # anchors of each level
detect_all = jax.jit(
    functools.partial(
        detect,
        valid_size=jnp.array([99.0, 99.0]),
        original_scale=jnp.ones(2),
        score_threshold=0.2,
        iou_threshold=1.0,
        max_detections=30,
        clip="after_nms",
        drop_empty=False,
        nms="hard",
        soft_sigma=0.5,
        class_agnostic=False,
    ),
    static_argnames=("top_k", "per_cell"),
)


def best_of_levels(levels, anchors, top_k):
    """Return (anchor, class, score) of the detections if nothing is suppressed, with numpy."""
    rows, first = [], 0
    for logits in levels:
        flat = logits.reshape(-1)
        best = np.argsort(-flat, stable=True)[:top_k]
        rows += [(first + i // 2, i % 2, 1 / (1 + np.exp(-flat[i]))) for i in best.tolist()]
        first += len(logits)
    rows.sort(key=lambda row: -row[2])  # stable, too
    return [(anchors[anchor], label, score) for anchor, label, score in rows if score > 0.2][:30]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 1), (7, 3), (40, 3)]))
def test_levels_of_different_sizes_give_the_best_of_each_in_the_order_of_scores_and_anchors(
    seed, setting
):
    (top_k, per_cell), generator = setting, np.random.default_rng(seed)
    logits = [generator.choice([-np.inf, -9, -1, 0, 1], (size, 2)) for size in SIZES]  # many ties
    anchors = np.arange(21, dtype=np.float32)[:, None] + np.float32([0, 0, 8, 8])
    ends = np.cumsum(SIZES)[:-1]
    levels = [x.astype(np.float32) for x in logits], [np.zeros((n, 4), np.float32) for n in SIZES]
    result = detect_all(
        *map(tuple, levels), tuple(np.split(anchors, ends)), top_k=top_k, per_cell=per_cell
    )
    expected = best_of_levels(logits, anchors, top_k)
    assert result.mask.tolist() == [True] * len(expected) + [False] * (30 - len(expected))
    for index, (box, label, score) in enumerate(expected):
        np.testing.assert_array_equal(result.boxes[index], box)
        assert result.classes[index] == label
        np.testing.assert_allclose(result.scores[index], score, rtol=1e-6)


def test_candidates_have_the_decoded_boxes_of_their_anchors():
    logits = np.array([[-9, -9], [-9, 2], [1, -9]], np.float32)
    anchors = boxes([0, 0, 8, 8], [8, 8, 16, 16], [16, 16, 24, 24])
    deltas = np.zeros((3, 4), np.float32)
    deltas[1, 0] = 0.5
    result = select_candidates(logits, deltas, anchors, score_threshold=0.05, top_k=2)
    np.testing.assert_array_equal(result.boxes, boxes([12, 8, 20, 16], [16, 16, 24, 24]))
    assert result.classes.tolist() == [1, 0]


def test_a_score_equal_to_the_threshold_is_masked():
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
    """Return detections of (score, class, box) rows: two levels, the first with a single row."""
    logits = np.full((len(rows), 2), -9.0, np.float32)
    for logit, (score, label, _) in zip(logits, rows, strict=True):
        logit[label] = np.log(score / (1 - score))
    anchors = boxes(*(box for _, _, box in rows))
    levels = [(x[:1], x[1:]) for x in (logits, np.zeros_like(anchors), anchors)]
    return detect(*levels, **dict(DETECT, **changes))


SCENE = [
    (0.6, 1, [0, 0, 10, 10]),
    (0.9, 0, [0, 0, 10, 10]),
    (0.8, 0, [0, 0, 10, 9]),  # suppressed by the box above
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
    assert result.classes.tolist() == [0, 1, 0, 0]  # the duplicate now follows the other class
    assert result.mask.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(result.boxes[2], [0, 0, 10, 9])


def test_class_agnostic_boxes_suppress_those_of_other_classes():
    result = run_detect(SCENE, class_agnostic=True)
    np.testing.assert_allclose(result.scores, [0.9, 0, 0, 0], rtol=1e-6)
    result = run_detect(SCENE, class_agnostic=True, nms="soft_linear")
    np.testing.assert_allclose(result.scores, [0.9, 0.08, 0, 0], rtol=1e-5)


def test_detect_returns_the_best_max_detections():
    result = run_detect(SCENE, iou_threshold=1.0, max_detections=2)
    np.testing.assert_allclose(result.scores, [0.9, 0.8], rtol=1e-6)


def test_detect_returns_max_detections_even_with_fewer_candidates():
    result = run_detect(SCENE, max_detections=30)
    assert result.mask.tolist() == [True] * 2 + [False] * 28
    assert not np.any(result.boxes[2:])


def greedy_nms(rows, thresholds, nms, class_agnostic):
    """Return the selected (score, class, box) rows, with those below the thresholds left out."""

    def iou(a, b):
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        overlap = np.prod(np.maximum(sides, 0))
        return overlap / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap)

    decay = {
        "hard": lambda iou: 1 - (iou > 0.5),
        "soft_linear": lambda iou: 1 - iou * (iou > 0.5),
        "soft_gaussian": lambda iou: np.exp(-(iou**2) / 0.5),
    }[nms]
    remaining, selected = [(s, k, np.clip(box, 0, 100)) for s, k, box in rows], []
    while remaining := [row for row in remaining if row[0] > thresholds[row[1]]]:
        remaining.sort(key=lambda row: -row[0])
        (_, label, box), *others = remaining
        selected.append(remaining[0])
        remaining = [
            (s * decay(iou(box, b)) if class_agnostic or k == label else s, k, b)
            for s, k, b in others
        ]
    return selected


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_thresholds_of_classes_act_before_nms_as_one_for_all_does(nms, class_agnostic):
    """The result is that of a sequential search, also under jit."""
    generator = np.random.default_rng(3)
    thresholds = np.float32([0.3, 0.6])
    scores = generator.uniform(0.05, 0.95, 60).tolist()
    labels = generator.integers(0, 2, 60).tolist()
    rows = list(zip(scores, labels, random_boxes(generator, 60).tolist(), strict=True))
    changes = dict(nms=nms, class_agnostic=class_agnostic, max_detections=40)
    result = jax.jit(lambda: run_detect(rows, score_threshold=thresholds, **changes))()
    expected = greedy_nms(rows, thresholds, nms, class_agnostic)
    assert 5 < len(expected) < 40
    assert result.classes[result.mask].tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(result.scores[result.mask], [s for s, *_ in expected], rtol=1e-5)
    np.testing.assert_allclose(result.boxes[result.mask], [b for *_, b in expected], atol=1e-4)


def test_a_threshold_of_a_class_is_exclusive_and_changes_no_other_class():
    rows = [(0.5, 0, [0, 0, 10, 10]), (0.5, 1, [0, 0, 10, 10]), (0.25, 1, [20, 0, 30, 10])]
    score = float(run_detect(rows).scores[0])  # 0.5 up to rounding
    result = run_detect(rows, score_threshold=np.float32([score, 0.2]))
    assert result.classes[result.mask].tolist() == [1, 1]
    result = run_detect(rows, score_threshold=np.float32([0.2, score]))
    assert result.classes[result.mask].tolist() == [0]


def test_a_box_below_the_threshold_of_its_class_suppresses_nothing():
    rows = [(0.9, 0, [0, 0, 10, 10]), (0.8, 1, [0, 0, 10, 9])]
    result = run_detect(rows, class_agnostic=True)
    assert result.classes[result.mask].tolist() == [0]
    thresholds = np.float32([0.95, 0.5])
    result = run_detect(rows, class_agnostic=True, score_threshold=thresholds)
    assert result.classes[result.mask].tolist() == [1]


def test_equal_thresholds_of_all_classes_are_one_for_all():
    for actual, expected in zip(
        run_detect(SCENE, score_threshold=np.float32([0.7, 0.7])),
        run_detect(SCENE, score_threshold=0.7),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


def test_without_scores_above_the_threshold_all_fields_are_zero():
    result = run_detect(SCENE, score_threshold=0.95)
    for field in result:
        assert not np.any(field)


def test_boxes_are_clipped_to_the_image_then_scaled_per_axis():
    rows = [(0.9, 0, [-5, -5, 30, 90]), (0.8, 0, [10, 60, 25, 90])]
    scale = {"original_scale": np.array([2, 3], np.float32)}
    result = run_detect(rows, valid_size=np.array([20, 80], np.float32), **scale)
    np.testing.assert_array_equal(result.boxes[:2], boxes([0, 0, 40, 240], [20, 180, 40, 240]))


def test_clipping_before_nms_changes_what_overlaps():
    # The IoU of the whole boxes is 91 / 109; inside the image they are 10 and 1 rows high.
    rows = [(0.9, 0, [-90, 0, 10, 10]), (0.8, 0, [-99, 0, 1, 10])]
    assert run_detect(rows, clip="before_nms").mask.tolist() == [True, True, False, False]
    assert run_detect(rows, clip="after_nms").mask.tolist() == [True, False, False, False]


@pytest.mark.parametrize("clip", ["before_nms", "after_nms"])
def test_empty_boxes_are_dropped_and_the_rest_move_up(clip):
    rows = [(0.9, 0, [0, 0, 10, 10]), (0.8, 0, [20, 110, 30, 120]), (0.7, 0, [40, 0, 50, 10])]
    with_empty = run_detect(rows, clip=clip, max_detections=2)
    np.testing.assert_allclose(with_empty.scores, [0.9, 0.8], rtol=1e-6)
    dropped = run_detect(rows, clip=clip, drop_empty=True)
    np.testing.assert_allclose(dropped.scores, [0.9, 0.7, 0, 0], rtol=1e-6)
    assert dropped.mask.tolist() == [True, True, False, False]
    # First the best are selected, then the empty ones are dropped, as in detectron2.
    selected = run_detect(rows, clip=clip, drop_empty=True, max_detections=2)
    np.testing.assert_allclose(selected.scores, [0.9, 0], rtol=1e-6)


def test_top_k_is_per_level():
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

    def detect_image(logits, deltas, valid_size, original_scale):
        changes = dict(valid_size=valid_size, original_scale=original_scale, max_detections=30)
        return detect(logits, deltas, anchors, **dict(DETECT, drop_empty=True, nms=nms, **changes))

    batched = jax.jit(jax.vmap(detect_image))(logits, deltas, valid_size, scale)
    for i in range(3):
        of_image = functools.partial(jax.tree.map, lambda x, i=i: x[i])
        expected = jax.jit(detect_image)(
            of_image(logits), of_image(deltas), valid_size[i], scale[i]
        )
        assert 5 < expected.mask.sum() <= 30
        for ours, reference in zip(of_image(batched), expected, strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


def test_an_unknown_clip_is_refused():
    with pytest.raises(ValueError, match="clip='later'"):
        run_detect(SCENE, clip="later")


def test_an_unknown_nms_is_refused_with_those_that_exist():
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
def test_detections_equal_torchvisions_and_detectron2s(test_data, name, library):
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
