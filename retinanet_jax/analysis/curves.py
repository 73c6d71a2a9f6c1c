"""Precision-recall curves and calibration."""

from typing import Any

import numpy as np
from jaxtyping import Float

from retinanet_jax.analysis.evaluated import FOREGROUND_IOU, Evaluated
from retinanet_jax.analysis.thresholds import OperatingPoints

RECALLS = np.linspace(0, 1, 101)  # at which COCO computes the precision
MAX_CURVES = 30
NUM_BINS = 10  # of the calibration


def precision_recall_curves(
    evaluated: Evaluated, thresholds: OperatingPoints
) -> list[dict[str, Any]]:
    """Return the curves of all categories together and of some of them, at IoU .5.

    Args:
        evaluated: The dataset and its detections.
        thresholds: The operating points.

    Returns:
        First the mean over the categories, with None as its name, then at most 30 categories, those
        of the lowest AP50 first. A category without objects has no curve; without any object there
        is none.
    """
    precision = precision_at_50(evaluated)
    defined = np.flatnonzero(precision[0] >= 0)
    if not len(defined):
        return []
    worst_first = defined[np.argsort(precision[:, defined].mean(axis=0), stable=True)]
    names = [category.name for category in evaluated.source.categories]

    def curve(
        name: str | None, values: Float[np.ndarray, " 101"], threshold: float | None
    ) -> dict[str, Any]:
        return {
            "category": name,
            "recall": RECALLS.tolist(),
            "precision": values.tolist(),
            "f1_threshold": threshold,
        }

    return [
        curve(None, precision[:, defined].mean(axis=1), thresholds.overall.threshold),
        *(
            curve(names[k], precision[:, k], thresholds.categories[k].threshold)
            for k in worst_first[:MAX_CURVES].tolist()
        ),
    ]


def precision_at_50(evaluated: Evaluated) -> Float[np.ndarray, "101 K"]:
    """Return the precision of each category at `RECALLS` and IoU .5; -1 if it has no objects."""
    return evaluated.evaluation.eval["precision"][0, :, :, 0, -1]


def calibration(evaluated: Evaluated) -> dict[str, Any]:
    """Return how far the scores are from the fraction of detections that are correct, by hotcoco.

    Args:
        evaluated: The dataset and its detections.

    Returns:
        The expected and the largest calibration error (https://arxiv.org/abs/1706.04599); ten bins
        of scores with their mean score ("confidence"), the fraction of correct detections
        ("accuracy") and the number of detections; and the expected error of each category. What is
        not defined because there are no detections is None.
    """
    measured = evaluated.evaluation.calibration(NUM_BINS, FOREGROUND_IOU)
    errors = measured["per_category"]
    has_detections = measured["num_detections"] > 0
    return {
        "ece": measured["ece"] if has_detections else None,
        "mce": measured["mce"] if has_detections else None,
        "bins": [
            {
                "lower": entry["bin_lower"],
                "upper": entry["bin_upper"],
                "confidence": entry["avg_confidence"] if entry["count"] else None,
                "accuracy": entry["avg_accuracy"] if entry["count"] else None,
                "count": entry["count"],
            }
            for entry in measured["bins"]
        ],
        # hotcoco's names are the numbers of the categories.
        "categories": {
            category.name: errors.get(str(number))
            for number, category in enumerate(evaluated.source.categories, 1)
        },
    }
