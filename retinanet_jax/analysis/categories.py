"""The table of the categories: AP, the best threshold and the most frequent error of each."""

from typing import Any

import numpy as np

from retinanet_jax.analysis.errors import MISSED
from retinanet_jax.analysis.evaluated import ERRORS, IGNORED, NONE, Evaluated, missed_by
from retinanet_jax.analysis.thresholds import OperatingPoints, lowest_score
from retinanet_jax.evaluation.coco_metrics import category_averages


def category_rows(evaluated: Evaluated, thresholds: OperatingPoints) -> list[dict[str, Any]]:
    """Return the numbers of each category, those of the lowest AP first.

    AP, AP50 and AR are COCO's. Objects, images with objects and missed objects do not count crowd
    regions; an object is missed if no detection detects it, whatever its score. The worst error is
    the most frequent one at the category's threshold, "missed" included, or None.

    Args:
        evaluated: The dataset and its detections.
        thresholds: The operating points.
    """
    detections, objects = evaluated.detections, evaluated.objects
    num_categories = len(evaluated.source.categories)
    counted = ~objects.is_crowd
    occurrences = np.unique(
        np.stack([objects.image[counted], objects.class_index[counted]]), axis=1
    )

    def count(class_index: Any) -> list[int]:
        return np.bincount(class_index, minlength=num_categories).tolist()

    columns = {
        "objects": count(objects.class_index[counted]),
        "images": count(occurrences[1]),
        "detections": count(detections.class_index),
        "missed": count(objects.class_index[counted & (objects.detection < 0)]),
        "worst_error": worst_errors(evaluated, thresholds),
    }
    averages = category_averages(evaluated.evaluation.eval)
    rows = [
        {
            "name": category.name,
            **averages[k],
            **{name: values[k] for name, values in columns.items()},
            **thresholds.categories[k]._asdict(),
        }
        for k, category in enumerate(evaluated.source.categories)
    ]
    return sorted(rows, key=lambda row: np.inf if row["AP"] is None else row["AP"])


def worst_errors(evaluated: Evaluated, thresholds: OperatingPoints) -> list[str | None]:
    """Return the most frequent error of each category at its threshold; None if there is none.

    A class error counts for the category of the detection, a missed object for its own. Where a
    category has no threshold, all of its detections count.

    Args:
        evaluated: The dataset and its detections.
        thresholds: The operating points.
    """
    detections, objects = evaluated.detections, evaluated.objects
    lowest = np.array([lowest_score(point.threshold) for point in thresholds.categories])
    is_confident = detections.score >= lowest[detections.class_index]
    missed = missed_by(evaluated, is_confident)
    names = (*ERRORS, MISSED)
    counts = np.zeros((len(lowest), len(names)), np.int64)
    np.add.at(counts, (detections.class_index[is_confident], detections.error[is_confident]), 1)
    counts[:, names.index(MISSED)] = np.bincount(objects.class_index[missed], minlength=len(lowest))
    counts[:, [NONE, IGNORED]] = 0
    worst = counts.argmax(axis=1).tolist()
    return [names[k] if counts[i, k] else None for i, k in enumerate(worst)]
