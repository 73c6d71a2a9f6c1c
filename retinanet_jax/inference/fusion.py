"""Weighted box fusion: detections of the same object in several views become their average."""

import numpy as np
from jaxtyping import Int

from retinanet_jax.inference.merging import ScoredBoxes, best_first, pairwise_iou


def weighted_box_fusion(
    scored: ScoredBoxes, view: Int[np.ndarray, " n"], *, num_views: int, iou_threshold: float
) -> ScoredBoxes:
    """Return the weighted averages of the boxes of the same object, best score first.

    See https://arxiv.org/abs/1910.13302, section 3. In the order of descending scores, each box
    joins that cluster of its class of which it overlaps the average most, if their IoU is above the
    threshold, and otherwise begins a new one. The boxes of a cluster are averaged with their scores
    as weights. The score of the average is the sum of their scores divided by the number of views:
    a view that does not show the object counts as a score of 0.

    In addition to the paper's rule, a cluster has at most one box of each view, because boxes of
    one view are different objects: non-maximum suppression has compared them. So the boxes of a
    single view are returned as they are.

    Args:
        scored: The boxes of all views.
        view: The index of the view of each box.
        num_views: The number of views, also of those without a box.
        iou_threshold: The IoU, from 0 to 1, above which a box joins a cluster.
    """
    size, count = len(view), 0  # boxes, and clusters
    has_view = np.zeros((size, num_views), bool)  # of each cluster
    classes = np.zeros(size, scored.classes.dtype)
    weighted_boxes, weights = np.zeros((size, 4)), np.zeros(size)
    averages = np.zeros((size, 4))
    for index in np.argsort(-scored.scores, stable=True):
        box, score = scored.boxes[index].astype(float), float(scored.scores[index])
        is_free = ~has_view[:count, view[index]] & (classes[:count] == scored.classes[index])
        overlaps = np.where(is_free, pairwise_iou(box[None], averages[:count])[0], 0)
        cluster = int(np.argmax(overlaps)) if count else 0
        if not count or overlaps[cluster] <= iou_threshold:
            cluster, count = count, count + 1
        has_view[cluster, view[index]], classes[cluster] = True, scored.classes[index]
        weighted_boxes[cluster] += score * box
        weights[cluster] += score
        averages[cluster] = weighted_boxes[cluster] / weights[cluster]
    scores = (weights[:count] / num_views).astype(np.float32)
    return best_first(ScoredBoxes(averages[:count].astype(np.float32), scores, classes[:count]))
