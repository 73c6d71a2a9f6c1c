"""Weighted box fusion: literals, properties, and the steps of the paper written out."""

import numpy as np
import pytest

from retinanet_jax.inference.fusion import weighted_box_fusion
from retinanet_jax.inference.merging import ScoredBoxes, pairwise_iou


def scored(*rows) -> ScoredBoxes:
    """The boxes of rows of (x0, y0, x1, y1, score, class)."""
    table = np.array(rows, float).reshape(-1, 6)
    return ScoredBoxes(
        table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(int)
    )


def fuse(candidates, view, num_views, iou_threshold=0.5):
    return weighted_box_fusion(
        candidates, np.array(view, int), num_views=num_views, iou_threshold=iou_threshold
    )


def test_boxes_of_an_object_are_averaged_by_their_scores():
    candidates = scored((0, 0, 10, 10, 0.25, 1), (0, 0, 10, 14, 0.75, 1), (40, 0, 50, 10, 0.5, 1))
    fused = fuse(candidates, [0, 1, 1], num_views=2)
    # (0.25 * 10 + 0.75 * 14) / 1 = 13; the scores are 1 / 2 and, seen in one view of two, 0.5 / 2.
    np.testing.assert_array_equal(fused.boxes, [[0, 0, 10, 13], [40, 0, 50, 10]])
    np.testing.assert_array_equal(fused.scores, np.float32([0.5, 0.25]))
    assert fused.scores.dtype == fused.boxes.dtype == np.float32
    assert fused.classes.tolist() == [1, 1]


def test_a_box_is_compared_with_the_average_and_joins_the_one_that_it_overlaps_most():
    # The third box overlaps the first by 4 / 8, which is not above the threshold, but the average
    # of the first two, which ends at 7, by 4 / 7.
    candidates = scored((0, 0, 8, 1, 0.5, 0), (0, 0, 6, 1, 0.5, 0), (0, 0, 4, 1, 0.1, 0))
    assert len(fuse(candidates, [0, 1, 2], 3).scores) == 1
    assert len(fuse(candidates.take([0, 2]), [0, 2], 3).scores) == 2
    candidates = scored((0, 0, 10, 10, 0.9, 0), (0, 1, 10, 11, 0.8, 0), (0, 1, 10, 11, 0.4, 0))
    fused = fuse(candidates, [0, 0, 1], num_views=2)
    np.testing.assert_array_equal(fused.boxes, [[0, 1, 10, 11], [0, 0, 10, 10]])
    np.testing.assert_allclose(fused.scores, [0.6, 0.45], rtol=1e-6)


def test_boxes_of_another_class_or_of_the_same_view_are_other_objects():
    other_class = scored((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1))
    assert len(fuse(other_class, [0, 1], 2).scores) == 2
    same_class = scored((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))
    assert len(fuse(same_class, [1, 1], 2).scores) == 2
    assert len(fuse(same_class, [0, 1], 2).scores) == 1


def random_boxes(seed: int, size: int, num_views: int) -> tuple[ScoredBoxes, np.ndarray]:
    """Boxes around a few places, so that many of them overlap."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 3, (size, 2)) * 30 + rng.normal(0, 3, (size, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(15, 25, (size, 2))], axis=1)
    scores, classes = rng.uniform(0.05, 1, size), rng.integers(0, 2, size)
    candidates = ScoredBoxes(boxes.astype(np.float32), scores.astype(np.float32), classes)
    return candidates, rng.integers(0, num_views, size)


def fuse_by_the_paper(candidates, view, num_views, iou_threshold):
    """Lists of clusters as in section 3 of the paper, with one box of each view in a cluster."""
    clusters: list[list[int]] = []

    def average(cluster):
        weights = candidates.scores[cluster].astype(float)
        return (weights[:, None] * candidates.boxes[cluster]).sum(axis=0) / weights.sum()

    for index in sorted(range(len(view)), key=lambda i: -candidates.scores[i]):
        best, most = None, iou_threshold
        for cluster in clusters:
            overlap = pairwise_iou(average(cluster)[None], candidates.boxes[[index]].astype(float))
            is_other = candidates.classes[index] != candidates.classes[cluster[0]]
            if not is_other and view[index] not in view[cluster] and overlap.item() > most:
                best, most = cluster, overlap.item()
        if best is None:
            clusters.append(best := [])
        best.append(index)
    rows = [
        (*average(c), candidates.scores[c].mean() * len(c) / num_views, candidates.classes[c[0]])
        for c in clusters
    ]
    return sorted(rows, key=lambda row: -row[4])


@pytest.mark.parametrize("seed", range(3))
def test_it_follows_the_steps_of_the_paper(seed):
    candidates, view = random_boxes(seed, size=60, num_views=4)
    fused = fuse(candidates, view, 4)
    expected = np.array(fuse_by_the_paper(candidates, view, 4, 0.5))
    assert 15 < len(expected) < 50  # many boxes are fused, and not all
    np.testing.assert_allclose(fused.boxes, expected[:, :4], rtol=1e-5)
    np.testing.assert_allclose(fused.scores, expected[:, 4], rtol=1e-5)
    assert fused.classes.tolist() == expected[:, 5].tolist()


def test_the_boxes_of_a_single_view_are_returned_bit_for_bit():
    candidates, view = random_boxes(0, size=50, num_views=1)
    candidates = candidates.take(np.argsort(-candidates.scores))
    for column, expected in zip(fuse(candidates, view, 1), candidates, strict=True):
        np.testing.assert_array_equal(column, expected)


def test_views_without_detections_only_lower_the_scores():
    candidates, view = random_boxes(1, size=20, num_views=2)
    fused, more = fuse(candidates, view, 2), fuse(candidates, view, 4)
    np.testing.assert_array_equal(more.boxes, fused.boxes)
    np.testing.assert_allclose(more.scores, fused.scores / 2, rtol=1e-6)
    assert len(fuse(scored(), [], 3).scores) == 0
