"""The errors by TIDE's types with the AP that each costs, and the confusion matrix."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from retinanet_jax.analysis.evaluated import (
    BACKGROUND_IOU,
    CLASS,
    ERRORS,
    FOREGROUND_IOU,
    LOCALIZATION,
    Evaluated,
)
from retinanet_jax.analysis.overlaps import in_crowd, match, nearest_objects
from retinanet_jax.analysis.thresholds import lowest_score

MISSED = "missed"
# hotcoco's names of the types.
TIDE_NAMES = {
    "class": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    MISSED: "Miss",
}
MAX_CATEGORIES = 30  # of a confusion matrix that can be read
MAX_PAIRS = 20


def error_table(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Return the number of errors of each type, and the AP50 that is gained if all are corrected.

    The numbers are of all detections, whatever their score. hotcoco computes the gain as TIDE does,
    but counts a detection that is partly in a crowd region of its class, which here is background,
    as a localization error.

    Args:
        evaluated: The dataset and its detections.
    """
    gains = evaluated.evaluation.tide_errors(FOREGROUND_IOU, BACKGROUND_IOU)["delta_ap"]
    counts = np.bincount(evaluated.detections.error, minlength=len(ERRORS)).tolist()
    number = {**dict(zip(ERRORS, counts, strict=True)), MISSED: int(missed(evaluated).sum())}
    has_objects = not evaluated.objects.is_crowd.all()
    return [
        {"type": name, "count": number[name], "delta_ap": gains[key] if has_objects else None}
        for name, key in TIDE_NAMES.items()
    ]


def missed(evaluated: Evaluated) -> Bool[np.ndarray, " m"]:
    """Return a mask of the objects that are missed by TIDE's definition.

    No detection detects them, and the correction of no localization or class error would: such an
    error is about the object that it overlaps most, of its class or of another one.

    Args:
        evaluated: The dataset and its detections.
    """
    detections, objects = evaluated.detections, evaluated.objects
    pairs = evaluated.overlaps.select(~evaluated.overlaps.is_crowd)
    mask = (objects.detection < 0) & ~objects.is_crowd
    for error, same_class in ((LOCALIZATION, True), (CLASS, False)):
        candidates = pairs.select(pairs.same_class == same_class)
        nearest = nearest_objects(candidates, len(detections.error))
        mask[nearest[detections.error == error]] = False
    return mask


def confusion(
    evaluated: Evaluated, threshold: float | None, matrix: Int[np.ndarray, "K1 K1"]
) -> dict[str, Any]:
    """Return the confusion matrix of the confident detections, and its most frequent confusions.

    Args:
        evaluated: The dataset and its detections.
        threshold: The lowest score of a detection that counts; None for all.
        matrix: From `confusion_matrix`.

    Returns:
        The names of the categories; the matrix, of which rows are classes of objects and columns
        classes of detections, with background at the end of both; the threshold; and the most
        frequent pairs of different categories. Of more than 30 categories, the matrix has
        those with the most confusions, and `num_omitted` is the number of others.
    """
    categories = evaluated.source.categories
    confused = matrix[:-1, :-1] * (1 - np.eye(len(categories), dtype=np.int64))
    selected = np.arange(len(categories))
    if len(selected) > MAX_CATEGORIES:
        most_first = np.argsort(-(confused.sum(axis=0) + confused.sum(axis=1)), stable=True)
        selected = np.sort(most_first[:MAX_CATEGORIES])
    indices = np.append(selected, len(categories))
    return {
        "categories": [categories[k].name for k in selected],
        "num_omitted": len(categories) - len(selected),
        "matrix": matrix[np.ix_(indices, indices)].tolist(),
        "score_threshold": threshold,
        "pairs": most_confused(evaluated, confused, matrix.sum(axis=1)),
    }


def confusion_matrix(evaluated: Evaluated, threshold: float | None) -> Int[np.ndarray, "K1 K1"]:
    """Return the numbers of objects by class, and by class of the detection; K is background.

    Each detection, in the order of descending score, takes the free object that it overlaps most,
    of whatever class, with IoU .5. Detections in crowd regions of their class do not count, unlike
    in hotcoco's matrix.

    Args:
        evaluated: The dataset and its detections.
        threshold: As in `confusion`.
    """
    detections, objects, pairs = evaluated.detections, evaluated.objects, evaluated.overlaps
    background = len(evaluated.source.categories)
    counts = detections.score >= lowest_score(threshold)
    can_match = counts[pairs.detection] & (pairs.same_class | ~pairs.is_crowd)
    matched = match(pairs.select(can_match), len(counts), FOREGROUND_IOU)
    counts &= ~in_crowd(matched, objects.is_crowd)
    rows = np.append(objects.class_index, background)[matched]  # -1 is the last
    undetected = ~objects.is_crowd
    undetected[matched[matched >= 0]] = False
    matrix = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(matrix, (rows[counts], detections.class_index[counts]), 1)
    matrix[:-1, -1] = np.bincount(objects.class_index[undetected], minlength=background)
    return matrix


def most_confused(
    evaluated: Evaluated, confused: Int[np.ndarray, "K K"], num_objects: Int[np.ndarray, " K1"]
) -> list[dict[str, Any]]:
    """Return the most frequent pairs of an object's category and a detection's.

    Args:
        evaluated: The dataset and its detections.
        confused: The confusion matrix without background and its diagonal.
        num_objects: The number of objects of each class.
    """
    categories = evaluated.source.categories
    flat = confused.ravel()
    frequent = np.argsort(-flat, stable=True)[:MAX_PAIRS]
    return [
        {
            "object": categories[k].name,
            "detected_as": categories[other].name,
            "count": int(confused[k, other]),
            "fraction": float(confused[k, other] / num_objects[k]),
        }
        for k, other in zip(*np.divmod(frequent[flat[frequent] > 0], len(confused)), strict=True)
    ]
