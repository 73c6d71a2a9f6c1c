"""The comparison of two lists of detections, such as an artifact's and the checkpoint's."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

# The largest differences that rounding can cause, of a coordinate in pixels and of a score.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4
# The largest differences between two detections that are compared with each other at all.
NEAR_BOX, NEAR_SCORE = 1.0, 1e-2


class DetectionArrays(NamedTuple):
    """The detections of one image, best score first."""

    boxes: Float[np.ndarray, "n 4"]  # x0 y0 x1 y1 in pixels of the artifact's input
    scores: Float[np.ndarray, " n"]
    categories: Int[np.ndarray, " n"]


class DetectionDifference(NamedTuple):
    """How much the detections of an artifact differ from the expected ones.

    Attributes:
        num_images: Number of compared images.
        num_detections: Number of expected detections.
        num_matched: Number of expected detections with a counterpart.
        box: Largest difference of a coordinate in pixels of the artifact's input, over detections
            with a counterpart.
        score: Largest difference of a score, over detections with a counterpart.
        num_unmatched: Number of detections, expected or actual, that have no counterpart of their
            category.
    """

    num_images: int = 0
    num_detections: int = 0
    num_matched: int = 0
    box: float = 0.0
    score: float = 0.0
    num_unmatched: int = 0

    def including(self, other: "DetectionDifference") -> "DetectionDifference":
        """Return the difference of these images and other images together."""
        return DetectionDifference(
            num_images=self.num_images + other.num_images,
            num_detections=self.num_detections + other.num_detections,
            num_matched=self.num_matched + other.num_matched,
            box=max(self.box, other.box),
            score=max(self.score, other.score),
            num_unmatched=self.num_unmatched + other.num_unmatched,
        )

    @property
    def exceeds_rounding(self) -> bool:
        """Whether rounding cannot have caused the difference."""
        return self.box > BOX_TOLERANCE or self.score > SCORE_TOLERANCE or self.num_unmatched > 0


def compare_detections(
    expected: DetectionArrays,
    actual: DetectionArrays,
    config: ConfigDict | None,
    score_thresholds: Mapping[int, float] | None = None,
) -> DetectionDifference:
    """Return the difference between the detections of one image.

    Each expected detection, best first, is compared with the nearest actual one of its category
    that is not yet the counterpart of another. A detection without a counterpart counts only if
    rounding cannot decide whether it is returned.

    Args:
        expected: The detections of the reference.
        actual: The detections to check.
        config: The detector's config; its limits of detections are used. None means that every
            detection without a counterpart counts.
        score_thresholds: The detector's score threshold of each category, by its id; None if that
            of the config is for all.
    """
    is_certain, is_certain_actual = (
        certain_mask(detections, expected, config, score_thresholds)
        for detections in (expected, actual)
    )
    distance = np.abs(expected.boxes[:, None] - actual.boxes).max(axis=-1, initial=0)
    score_distance = np.abs(expected.scores[:, None] - actual.scores)
    is_candidate = expected.categories[:, None] == actual.categories
    is_candidate &= score_distance <= NEAR_SCORE
    distance = np.where(is_candidate, distance, np.inf)
    box_differences, score_differences = [0.0], [0.0]
    is_free = np.ones(len(actual.scores), bool)
    num_unmatched = 0
    for i in range(len(expected.scores)):
        j = int(distance[i].argmin()) if len(is_free) else -1
        if j < 0 or distance[i, j] > NEAR_BOX:
            num_unmatched += is_certain[i]
            continue
        box_differences.append(float(distance[i, j]))
        score_differences.append(float(score_distance[i, j]))
        distance[:, j] = np.inf
        is_free[j] = False
    num_unmatched += np.sum(is_free & is_certain_actual)
    return DetectionDifference(
        num_images=1,
        num_detections=len(expected.scores),
        num_matched=int(np.sum(~is_free)),
        box=max(box_differences),
        score=max(score_differences),
        num_unmatched=int(num_unmatched),
    )


def certain_mask(
    detections: DetectionArrays,
    expected: DetectionArrays,
    config: ConfigDict | None,
    score_thresholds: Mapping[int, float] | None = None,
) -> Bool[np.ndarray, " n"]:
    """Return which detections have a score at which rounding cannot decide about them.

    Other scores are near the threshold or, if an image has the largest number of detections, near
    the last of their scores.

    Args:
        detections: The detections.
        expected: As in `compare_detections`.
        config: As in `compare_detections`.
        score_thresholds: As in `compare_detections`.
    """
    if config is None:
        return np.ones(len(detections.scores), bool)
    limits = config.detections
    by_id, common = score_thresholds or {}, float(limits.score_threshold)
    thresholds = np.array([by_id.get(k, common) for k in detections.categories.tolist()])
    is_full = len(expected.scores) == limits.max_detections
    lowest = float(expected.scores[-1]) if is_full else 0.0
    return detections.scores > np.maximum(thresholds, lowest) + SCORE_TOLERANCE
