"""The score thresholds that maximize F1, and precision, recall and F1 at every threshold.

A detection counts if its score is the threshold or more, and is correct if it detects an object
with IoU .5; detections in crowd regions do not count. F1 is the harmonic mean of precision and
recall: 2 * correct / (detections + objects).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from retinanet_jax import checkpoint
from retinanet_jax.analysis.evaluated import IGNORED, NONE, Evaluated
from retinanet_jax.data.sources.base import Category

CURVE_THRESHOLDS = np.linspace(0, 1, 101)


class OperatingPoint(NamedTuple):
    """The threshold of the highest F1, and precision, recall and F1 there.

    Attributes:
        threshold: A detection's score; None if no detection is correct, or there are no objects.
        F1: 0 if no detection is correct; None if there are no objects.
        precision: None if there is no threshold.
        recall: 0 if no detection is correct; None if there are no objects.
    """

    threshold: float | None
    F1: float | None
    precision: float | None
    recall: float | None


class OperatingPoints(NamedTuple):
    """The operating points of a detector."""

    overall: OperatingPoint  # one threshold for all categories
    categories: tuple[OperatingPoint, ...]  # in the order of the source's categories


def find_thresholds(evaluated: Evaluated) -> OperatingPoints:
    """Return the operating points of all categories together and of each of them.

    Args:
        evaluated: The dataset and its detections.
    """
    detections, objects = evaluated.detections, evaluated.objects
    num_categories = len(evaluated.source.categories)
    counted = np.flatnonzero(detections.error != IGNORED)
    # By category, so that each one is a slice.
    counted = counted[np.argsort(detections.class_index[counted], stable=True)]
    score, is_correct = detections.score[counted], detections.error[counted] == NONE
    bounds = np.searchsorted(detections.class_index[counted], np.arange(num_categories + 1))
    num_objects = np.bincount(
        objects.class_index[~objects.is_crowd], minlength=num_categories
    ).tolist()
    return OperatingPoints(
        operating_point(score, is_correct, sum(num_objects)),
        tuple(
            operating_point(score[start:stop], is_correct[start:stop], num_objects[k])
            for k, (start, stop) in enumerate(itertools.pairwise(bounds))
        ),
    )


def operating_point(
    score: Float[np.ndarray, " n"], is_correct: Bool[np.ndarray, " n"], num_objects: int
) -> OperatingPoint:
    """Return the point of the highest F1; of equal ones, that of the highest threshold.

    Every score is tried as the threshold.

    Args:
        score: The scores of the detections that count.
        is_correct: Whether each of them detects an object.
        num_objects: The number of objects.
    """
    if num_objects == 0:
        return OperatingPoint(None, None, None, None)
    if not is_correct.any():
        return OperatingPoint(None, 0.0, None, 0.0)
    thresholds, index = np.unique(-score, return_inverse=True)  # descending scores, negated
    num_detections = np.cumsum(np.bincount(index, minlength=len(thresholds)))
    num_correct = np.cumsum(np.bincount(index, is_correct, minlength=len(thresholds)))
    f1 = 2 * num_correct / (num_detections + num_objects)
    best = int(np.argmax(f1))
    return OperatingPoint(
        float(-thresholds[best]),
        float(f1[best]),
        float(num_correct[best] / num_detections[best]),
        float(num_correct[best] / num_objects),
    )


def thresholds_to_store(
    thresholds: OperatingPoints, categories: Sequence[Category]
) -> checkpoint.Thresholds:
    """Return the thresholds of a checkpoint with which just the detections that count are returned.

    A checkpoint's thresholds are exceeded, those here are reached: they are the next lower number.

    Args:
        thresholds: The operating points.
        categories: The source's categories. Those without an operating point have the overall one.

    Raises:
        ValueError: If no detection is correct.
    """
    overall = thresholds.overall.threshold
    if overall is None:
        raise ValueError("no detection is correct, so that there is no score threshold to store.")

    def below(threshold: float) -> float:
        return max(0.0, float(np.nextafter(np.float32(threshold), np.float32(-1))))

    by_name = {
        category.name: below(point.threshold)
        for category, point in zip(categories, thresholds.categories, strict=True)
        if point.threshold is not None
    }
    return checkpoint.Thresholds(below(overall), by_name)


def lowest_score(threshold: float | None) -> float:
    """Return the lowest score that counts: the threshold or, if it is None, any score."""
    return -np.inf if threshold is None else threshold


def threshold_curve(evaluated: Evaluated) -> dict[str, list[Any]]:
    """Return precision, recall and F1 of all categories together at thresholds from 0 to 1.

    Args:
        evaluated: The dataset and its detections.

    Returns:
        Four lists of 101 numbers: threshold, precision, recall and F1. Precision is None where no
        detection counts; recall and F1 are None if there are no objects.
    """
    detections = evaluated.detections
    num_objects = int((~evaluated.objects.is_crowd).sum())

    def count(mask: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " 101"]:
        """Return how many detections of the mask have the score of each threshold or more."""
        scores = np.sort(detections.score[mask])
        return len(scores) - np.searchsorted(scores, CURVE_THRESHOLDS)

    num_correct = count(detections.error == NONE)
    num_detections = count(detections.error != IGNORED)
    num_both = (num_detections + num_objects) * (num_objects > 0)
    return {
        "threshold": CURVE_THRESHOLDS.tolist(),
        "precision": ratios(num_correct, num_detections),
        "recall": ratios(num_correct, np.full_like(num_correct, num_objects)),
        "F1": ratios(2 * num_correct, num_both),
    }


def ratios(
    numerators: Int[np.ndarray, " n"], denominators: Int[np.ndarray, " n"]
) -> list[float | None]:
    """Return the ratios of the numbers; None where the denominator is 0."""
    return [
        numerator / denominator if denominator else None
        for numerator, denominator in zip(numerators.tolist(), denominators.tolist(), strict=True)
    ]
