"""The detector without NMS returns every anchor's box and scores, as the network predicts them."""

from unittest import mock

import jax
import numpy as np
import pytest

from retinanet_jax import modeling
from retinanet_jax.data.batch import Batch
from retinanet_jax.export.raw import raw_outputs
from retinanet_jax.models.retinanet import Outputs, RetinaNet

SIZES = np.array([[64, 96], [33, 50]], np.float32)  # one image fills the input, one does not
BATCH = Batch.of_images(np.zeros((2, 64, 96, 3), np.uint8), SIZES, np.ones_like(SIZES))


@pytest.fixture
def network(toy_config) -> mock.Mock:
    """In place of the network: random logits and deltas of two classes for every anchor."""
    rng = np.random.default_rng(0)
    counts = map(len, modeling.image_anchors((64, 96), toy_config))
    logits, deltas = zip(
        *((rng.normal(-2, 2, (2, n, 2)), rng.normal(0, 0.3, (2, n, 4))) for n in counts),
        strict=True,
    )
    outputs = Outputs(*(tuple(x.astype(np.float32) for x in levels) for levels in (logits, deltas)))
    outputs.deltas[0][0, 0] = [9, 9, 5, 5]  # far outside, and larger than boxes may be
    return mock.Mock(spec=RetinaNet, apply=lambda *args, **kwargs: outputs, outputs=outputs)


def decoded_by_hand(outputs: Outputs, config) -> tuple[np.ndarray, np.ndarray]:
    """The boxes before clipping (xyxy) and the scores, from the network's outputs in float64."""
    logits, deltas = (np.concatenate(x, axis=1).astype(float) for x in outputs)
    anchors = np.concatenate(modeling.image_anchors((64, 96), config)).astype(float)
    size = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[..., :2] * size
    half = size * np.exp(np.minimum(deltas[..., 2:], np.log(1000 / 16))) / 2
    boxes = np.concatenate([center - half, center + half], axis=-1)[..., [1, 0, 3, 2]]
    return boxes, 1 / (1 + np.exp(-logits))


def padding_by_hand(size: tuple[int, int]) -> np.ndarray:
    """Whether each anchor's cell lies outside an image of `size`: nine anchors a cell."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        rows, columns = np.indices((-(-64 // stride), -(-96 // stride)))
        outside = (rows >= -(-size[0] // stride)) | (columns >= -(-size[1] // stride))
        levels.append(np.repeat(outside.ravel(), 9))
    return np.concatenate(levels)


def test_the_outputs_are_the_networks_own_decoded_and_clipped(network, toy_config):
    outputs = jax.jit(lambda: raw_outputs({}, BATCH, network, toy_config))()
    boxes, scores = map(np.asarray, outputs)
    expected_boxes, expected_scores = decoded_by_hand(network.outputs, toy_config)
    limits = SIZES[:, None, [1, 0, 1, 0]]
    np.testing.assert_allclose(boxes, np.clip(expected_boxes, 0, limits), atol=1e-4)
    for k, size in enumerate(SIZES):
        expected_scores[k, padding_by_hand(size)] = 0
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert 0 < np.mean(scores == 0) < 0.5


def test_boxes_are_not_clipped_if_the_config_clips_after_nms(network, toy_config):
    toy_config.detections.clip = "after_nms"
    toy_config.model.padding = "plain"
    boxes, scores = jax.jit(lambda: raw_outputs({}, BATCH, network, toy_config))()
    expected_boxes, expected_scores = decoded_by_hand(network.outputs, toy_config)
    np.testing.assert_allclose(boxes, expected_boxes, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)  # in the padding too


def test_nms_of_the_raw_outputs_gives_the_detections(network, toy_config):
    """Greedy NMS in numpy, by class, of the scores above the threshold; levels are below top_k."""
    limit = 50
    toy_config.detections.update(score_threshold=0.8, top_k=10_000, max_detections=limit)
    boxes, scores = map(np.asarray, jax.jit(lambda: raw_outputs({}, BATCH, network, toy_config))())
    expected = jax.jit(lambda: modeling.detect({}, BATCH, network, toy_config))()
    for k in range(2):
        selected = []
        for c in range(2):
            candidates = np.flatnonzero(scores[k, :, c] > 0.8)
            keep = []
            for i in candidates[np.argsort(-scores[k, candidates, c])]:
                if all(iou(boxes[k, i], boxes[k, j]) <= 0.5 for j in keep):
                    keep.append(i)
            selected += [(scores[k, i, c], c, boxes[k, i]) for i in keep]
        selected = sorted(selected, key=lambda detection: -detection[0])[:limit]
        selected = [x for x in selected if np.all(x[2][:2] < x[2][2:])]  # drop_empty
        assert len(selected) == int(expected.mask[k].sum())
        selected_scores, selected_classes, selected_boxes = map(
            np.array, zip(*selected, strict=True)
        )
        count = len(selected)
        np.testing.assert_array_equal(selected_scores, expected.scores[k, :count])
        np.testing.assert_array_equal(selected_classes, expected.classes[k, :count])
        actual = selected_boxes[:, [1, 0, 3, 2]]
        np.testing.assert_allclose(actual, expected.boxes[k, :count], atol=1e-4)


def iou(a, b) -> float:
    """The intersection over union of two boxes, xyxy."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = np.prod(np.maximum(sides, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    return overlap / union if union > 0 else 0.0
