"""The client of an artifact without NMS selects the detections of `predict` from its outputs."""

import jax
import numpy as np
import pytest

from retinanet_jax import core
from retinanet_jax.export import client

INPUT_SIZE, SIZE = (64, 96), np.array([50, 96])
ANCHORS = {"min_level": 5, "max_level": 6, "scales": (1.0,), "ratios": (0.5, 1.0, 2.0)}
COUNTS = (2 * 3 * 3, 1 * 2 * 3)  # anchors of each level
LIMITS = {
    "score_threshold": 0.2,
    "top_k": 12,  # fewer than the candidates of the finer level
    "iou_threshold": 0.6,
    "max_detections": 16,
    "clip": "before_nms",
    "drop_empty": True,
    "nms": "hard",
    "soft_sigma": 0.5,
    "class_agnostic": False,
}


def card(limits, score_thresholds=None) -> dict:
    """The part of card.json that the selection reads."""
    return {
        "checkpoint": {"config": {"anchors": ANCHORS, "detections": limits}},
        "score_thresholds": score_thresholds,
        "categories": [{"id": 3, "name": "egg"}, {"id": 7, "name": "hen"}],
    }


def random_levels(rng) -> tuple[tuple, ...]:
    """Logits, deltas and anchors of each level; some boxes are outside the image."""
    logits = [rng.normal(0, 2, (count, 2)) for count in COUNTS]
    logits = [np.round(level, 1) for level in logits]  # some are equal
    anchors = []
    for count in COUNTS:
        corner = rng.uniform(-10, 80, (count, 2))
        anchors.append(np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1))
    deltas = [rng.normal(0, 0.2, (count, 4)) for count in COUNTS]
    return tuple(tuple(x.astype(np.float32) for x in part) for part in (logits, deltas, anchors))


@pytest.mark.parametrize(
    ("changes", "thresholds"),
    [
        ({}, None),
        pytest.param({"class_agnostic": True}, None, marks=pytest.mark.exhaustive),
        ({"clip": "after_nms", "drop_empty": False}, {"egg": 0.3, "hen": 0.7}),
    ],
)
def test_the_detections_are_those_of_predict(changes, thresholds):
    limits = {**LIMITS, **changes}
    by_class = (
        {"score_threshold": np.array([*thresholds.values()], np.float32)} if thresholds else {}
    )
    original_scale = np.ones(2, np.float32)

    @jax.jit
    def detect(logits, deltas, anchors):
        size, settings = SIZE.astype(np.float32), {**limits, **by_class}
        return core.detect(
            logits, deltas, anchors, valid_size=size, original_scale=original_scale, **settings
        )

    num_detections = 0
    for seed in range(10):
        logits, deltas, anchors = random_levels(np.random.default_rng(seed))
        boxes = core.decode(*map(np.concatenate, (deltas, anchors)))
        if limits["clip"] == "before_nms":
            boxes = core.clip(boxes, *SIZE)
        boxes = np.asarray(core.yxyx_to_xyxy(boxes))
        scores = np.asarray(jax.nn.sigmoid(np.concatenate(logits)))
        actual = client.select(boxes, scores, SIZE, INPUT_SIZE, card(limits, thresholds))
        expected = detect(logits, deltas, anchors)
        mask = np.asarray(expected.mask)
        expected_boxes = np.asarray(expected.boxes)[mask][:, [1, 0, 3, 2]]
        np.testing.assert_allclose(actual[0], expected_boxes, atol=1e-4)
        np.testing.assert_allclose(actual[1], expected.scores[mask], atol=1e-6)
        np.testing.assert_array_equal(actual[2], expected.classes[mask])
        num_detections += len(actual[1])
    assert num_detections > 80


def test_an_image_without_candidates_has_no_detections():
    boxes, scores = np.zeros((sum(COUNTS), 4), np.float32), np.zeros((sum(COUNTS), 2), np.float32)
    boxes, scores, classes = client.select(boxes, scores, SIZE, INPUT_SIZE, card(LIMITS))
    assert boxes.shape == (0, 4)
    assert scores.shape == classes.shape == (0,)


def test_soft_nms_is_refused_in_one_line():
    boxes, scores = np.zeros((sum(COUNTS), 4)), np.zeros((sum(COUNTS), 2))
    limits = {**LIMITS, "nms": "soft_linear"}
    with pytest.raises(ValueError, match=r"^nms='soft_linear' is not supported by this client"):
        client.select(boxes, scores, SIZE, INPUT_SIZE, card(limits))
