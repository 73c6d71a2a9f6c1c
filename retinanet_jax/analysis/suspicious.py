"""Annotations that may be wrong, because confident detections contradict them."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from retinanet_jax.analysis.evaluated import (
    BACKGROUND,
    BACKGROUND_IOU,
    CLASS,
    FOREGROUND_IOU,
    LOCALIZATION,
    Evaluated,
    missed_by,
)
from retinanet_jax.analysis.overlaps import Boxes, find_overlaps
from retinanet_jax.analysis.thresholds import lowest_score
from retinanet_jax.core import yxyx_to_xywh, yxyx_to_xyxy

MISSING, WRONG, INACCURATE, DUPLICATE = REASONS = (
    "missing annotation",
    "wrong category",
    "inaccurate box",
    "duplicate",
)
DUPLICATE_IOU = 0.8  # of two annotations of the same object
MAX_LABELS = 200


class Suspicions(NamedTuple):
    """Annotations that may be wrong, each with a detection that contradicts it.

    Attributes:
        reason: Index in REASONS.
        detection: Index of the detection.
        object: Index of the annotation; -1 if it is missing.
        iou: IoU of both or, if the reason is "duplicate", of two annotations; 0 without annotation.
    """

    reason: Int[np.ndarray, " n"]
    detection: Int[np.ndarray, " n"]
    object: Int[np.ndarray, " n"]
    iou: Float[np.ndarray, " n"]


def suspicious_labels(evaluated: Evaluated, threshold: float | None) -> list[dict[str, Any]]:
    """Return the annotations that confident detections contradict, the most suspicious first.

    Those detections have the threshold's score or more, and an object is missed if none of them
    detects it. An annotation may be

    * "missing annotation": a detection overlaps no object by more than IoU .1;
    * "wrong category": a detection overlaps a missed object of another category by IoU .5 or more;
    * "inaccurate box": a detection overlaps a missed object of its category by IoU .1 to .5;
    * "duplicate": of two objects of a category that overlap by IoU .8 or more, one is missed.

    At most 200 are returned, those of the highest scores; each detection and each object is named
    once. Detections in crowd regions of their category do not count.

    Args:
        evaluated: The dataset and its detections.
        threshold: The lowest score of a detection that counts; None for all.
    """
    score = evaluated.detections.score
    is_confident = score >= lowest_score(threshold)
    find = (missing_annotations, contradicted_annotations, duplicate_annotations)
    parts = [part(evaluated, is_confident) for part in find]
    suspicions = Suspicions(*map(np.concatenate, zip(*parts, strict=True)))
    order = np.lexsort((-suspicions.iou, suspicions.detection, -score[suspicions.detection]))
    labels: list[dict[str, Any]] = []
    named: set[tuple[str, int]] = set()
    for reason, detection, index, iou in zip(*(c[order].tolist() for c in suspicions), strict=True):
        names = {("detection", detection), *([("object", index)] if index >= 0 else [])}
        if len(labels) < MAX_LABELS and not names & named:
            named |= names
            labels.append(label(evaluated, REASONS[reason], detection, index, iou))
    return labels


def missing_annotations(evaluated: Evaluated, is_confident: Bool[np.ndarray, " n"]) -> Suspicions:
    """Return the confident detections of background.

    Args:
        evaluated: The dataset and its detections.
        is_confident: Whether each detection counts.
    """
    detection = np.flatnonzero(is_confident & (evaluated.detections.error == BACKGROUND))
    count = len(detection)
    reason = np.full(count, REASONS.index(MISSING))
    return Suspicions(reason, detection, np.full(count, -1), np.zeros(count))


def contradicted_annotations(
    evaluated: Evaluated, is_confident: Bool[np.ndarray, " n"]
) -> Suspicions:
    """Return the missed objects of which a confident detection contradicts category or box.

    Args:
        evaluated: The dataset and its detections.
        is_confident: Whether each detection counts.
    """
    pairs = evaluated.overlaps
    error = evaluated.detections.error[pairs.detection]
    candidates = is_confident[pairs.detection] & missed_by(evaluated, is_confident)[pairs.object]
    wrong = (error == CLASS) & ~pairs.same_class & (pairs.iou >= FOREGROUND_IOU)
    inaccurate = (error == LOCALIZATION) & pairs.same_class & (pairs.iou >= BACKGROUND_IOU)
    reason = np.where(wrong, REASONS.index(WRONG), REASONS.index(INACCURATE))
    indices = np.flatnonzero(candidates & (wrong | inaccurate))
    return Suspicions(
        reason[indices], pairs.detection[indices], pairs.object[indices], pairs.iou[indices]
    )


def duplicate_annotations(evaluated: Evaluated, is_confident: Bool[np.ndarray, " n"]) -> Suspicions:
    """Return the missed objects that lie upon an object of their category that is detected.

    Args:
        evaluated: The dataset and its detections.
        is_confident: Whether each detection counts.
    """
    objects = evaluated.objects
    boxes = Boxes(objects.image, objects.class_index, np.asarray(yxyx_to_xywh(objects.box)))
    pairs = find_overlaps(boxes, boxes, objects.is_crowd, len(evaluated.source))
    is_missed = missed_by(evaluated, is_confident)
    is_detected = ~is_missed & ~objects.is_crowd
    # Of a pair of objects, the first is in the field `detection`.
    is_copy = is_detected[pairs.detection] & is_missed[pairs.object]
    pairs = pairs.select(is_copy & pairs.same_class & (pairs.iou >= DUPLICATE_IOU))
    reason = np.full(len(pairs.iou), REASONS.index(DUPLICATE))
    return Suspicions(reason, objects.detection[pairs.detection], pairs.object, pairs.iou)


def label(
    evaluated: Evaluated, reason: str, detection: int, index: int, iou: float
) -> dict[str, Any]:
    """Return the entry of a suspicious annotation in analysis.json; boxes are xyxy in pixels.

    Args:
        evaluated: The dataset and its detections.
        reason: One of REASONS.
        detection: Index of the detection.
        index: Index of the object, or -1.
        iou: As in `Suspicions`.
    """
    source, detections, objects = evaluated.source, evaluated.detections, evaluated.objects
    image, has_object = int(detections.image[detection]), index >= 0
    return {
        "reason": reason,
        "image_id": int(source.image_ids[image]),
        "file_name": source.file_name(image),
        "category": source.categories[objects.class_index[index]].name if has_object else None,
        "detected_as": source.categories[detections.class_index[detection]].name,
        "box": xyxy(detections.box[detection]),
        "object_box": xyxy(objects.box[index]) if has_object else None,
        "score": float(detections.score[detection]),
        "iou": iou if has_object else None,
    }


def xyxy(box: Float[np.ndarray, "4"]) -> list[float]:
    """Return a yxyx box as a list of x0, y0, x1 and y1."""
    return np.asarray(yxyx_to_xyxy(box)).tolist()
