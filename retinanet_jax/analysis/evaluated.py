"""Detections of a dataset, compared with its objects: what all parts of the analysis compute from.

Everything is in columns: of 5,000 images with 100 detections each, a dictionary for each detection
would take gigabytes and minutes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.analysis.overlaps import (
    Boxes,
    Overlaps,
    find_overlaps,
    highest,
    in_crowd,
    match,
    nearest_objects,
)
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.dense_images import COCO_DETECTIONS
from retinanet_jax.evaluation.coco_metrics import (
    METRICS,
    none_if_undefined,
    renumber,
    summarize,
    with_plain_names,
)
from retinanet_jax.utils.packages import import_optional

# What is wrong with a detection, by TIDE's definitions (https://arxiv.org/abs/2008.08115). A
# detection of which nothing is wrong is "none"; an "ignored" one is in a crowd region.
ERRORS = ("none", "class", "localization", "both", "duplicate", "background", "ignored")
NONE, CLASS, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(len(ERRORS))
FOREGROUND_IOU = 0.5  # the lowest IoU of a detection with the object that it detects
BACKGROUND_IOU = 0.1  # the highest IoU of a detection of background


class DetectionColumns(NamedTuple):
    """The n detections, sorted by image and in each image by descending score.

    Attributes:
        image: Index of the image in the source.
        class_index: Index in the source's categories.
        box: yxyx in pixels of the original image.
        score: From 0 to 1.
        object: Index of the object that the detection is matched with, by COCO's matching with
            IoU .5; -1 if there is none. Of an ignored detection it is a crowd region.
        error: Index in `ERRORS`.
        nearest: Index of the object, of any class but no crowd region, that the detection overlaps
            most; -1 if it overlaps none.
        nearest_iou: The IoU with that object; 0 if there is none.
    """

    image: Int[np.ndarray, " n"]
    class_index: Int[np.ndarray, " n"]
    box: Float[np.ndarray, "n 4"]
    score: Float[np.ndarray, " n"]
    object: Int[np.ndarray, " n"]
    error: Int[np.ndarray, " n"]
    nearest: Int[np.ndarray, " n"]
    nearest_iou: Float[np.ndarray, " n"]


class ObjectColumns(NamedTuple):
    """The m annotated objects, in the order of the source.

    Attributes:
        image: Index of the image in the source.
        class_index: Index in the source's categories.
        box: yxyx in pixels of the original image, as annotated.
        area: The annotation's area in square pixels.
        is_crowd: Whether it is a crowd region instead of an object.
        detection: Index of the detection that detects it; -1 if it is missed or a crowd region.
        nearest_iou: The highest IoU with a detection of its class.
    """

    image: Int[np.ndarray, " m"]
    class_index: Int[np.ndarray, " m"]
    box: Float[np.ndarray, "m 4"]
    area: Float[np.ndarray, " m"]
    is_crowd: Bool[np.ndarray, " m"]
    detection: Int[np.ndarray, " m"]
    nearest_iou: Float[np.ndarray, " m"]


class Evaluated(NamedTuple):
    """A dataset and a detector's detections of it, compared.

    Attributes:
        source: The dataset.
        config: The config of the detector; None if the detections are of another program.
        detections: The detections; at most 100 of a category in an image count, as in COCO.
        objects: The objects.
        overlaps: The pairs of detections and objects that overlap.
        evaluation: hotcoco's COCOeval after `evaluate` and `accumulate`. Its images have the ids 1,
            2, ... in the order of the dataset's ids, its categories those of their class index + 1.
    """

    source: Source
    config: ConfigDict | None
    detections: DetectionColumns
    objects: ObjectColumns
    overlaps: Overlaps
    evaluation: Any


def evaluate_detections(
    source: Source, results: Sequence[dict[str, Any]], config: ConfigDict | None = None
) -> Evaluated:
    """Compare detections with the objects of a dataset.

    Args:
        source: The dataset.
        results: Detections in COCO's results format, with the dataset's ids of images and
            categories, in any order.
        config: The config of the detector; None if it is another program's.

    Raises:
        ValueError: If hotcoco is not installed, or an image or a category of the results is not in
            the dataset.
    """
    hotcoco = hotcoco_api()
    ground_truth, numbered = renumber(source.ground_truth(), results)
    table = np.array(
        [(r["image_id"], *r["bbox"], r["score"], r["category_id"]) for r in numbered], np.float64
    ).reshape(-1, 7)
    truth = hotcoco.COCO(with_plain_names(ground_truth))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(table), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    boxes, score = detection_columns(source, table)
    xywh = np.array([entry["bbox"] for entry in ground_truth["annotations"]], np.float64)
    given = source.objects
    objects = Boxes(given.image_index, given.classes, xywh.reshape(-1, 4))
    overlaps = find_overlaps(boxes, objects, given.crowd, len(source))
    detections, objects = compare(boxes, score, source, overlaps)
    return Evaluated(source, config, detections, objects, overlaps, evaluation)


def hotcoco_api() -> Any:
    """Return the package hotcoco.

    Raises:
        ValueError: If it is not installed.
    """
    return import_optional("hotcoco", "the analysis", "retinanet-jax[analyze]")


def image_numbers(source: Source) -> Int[np.ndarray, " N"]:
    """Return the number of each image in `Evaluated.evaluation`: 1, 2, ... in the order of ids."""
    by_id = sorted(range(len(source)), key=source.image_ids.__getitem__)
    numbers = np.empty(len(source), np.int64)
    numbers[by_id] = np.arange(1, len(source) + 1)
    return numbers


def twelve_metrics(evaluated: Evaluated) -> dict[str, float | None]:
    """Return COCO's twelve metrics; None where one is undefined because there are no objects."""
    numbers, _ = summarize(evaluated.evaluation.eval)
    return dict(zip(METRICS, map(none_if_undefined, numbers), strict=True))


def missed_by(evaluated: Evaluated, counted: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " m"]:
    """Return a mask of the objects that none of some detections detects; no crowd regions.

    Args:
        evaluated: The dataset and its detections.
        counted: Whether each detection is one of them.
    """
    is_detected = np.append(counted, False)[evaluated.objects.detection]  # -1 is the last
    return ~is_detected & ~evaluated.objects.is_crowd


def detection_columns(
    source: Source, table: Float[np.ndarray, "r 7"]
) -> tuple[Boxes, Float[np.ndarray, " n"]]:
    """Return boxes and scores of the detections that count, in the order of `DetectionColumns`.

    Args:
        source: The dataset.
        table: Image number from 1 in the order of the ids, xywh, score and category number.
    """
    image = np.argsort(image_numbers(source))[table[:, 0].astype(np.int64) - 1]
    class_index = table[:, 6].astype(np.int64) - 1
    order = np.lexsort((-table[:, 5], class_index, image))
    group = image[order] * len(source.categories) + class_index[order]  # sorted
    counts = np.arange(len(group)) - np.searchsorted(group, group) < COCO_DETECTIONS
    # In the order of the results: detections of equal score keep it.
    rows = np.sort(order[counts])
    rows = rows[np.lexsort((-table[rows, 5], image[rows]))]
    return Boxes(image[rows], class_index[rows], table[rows, 1:5]), table[rows, 5]


def compare(
    boxes: Boxes, score: Float[np.ndarray, " n"], source: Source, overlaps: Overlaps
) -> tuple[DetectionColumns, ObjectColumns]:
    """Return the columns of detections and objects.

    Args:
        boxes: The detections.
        score: Their scores.
        source: The dataset.
        overlaps: The pairs of detections and objects that overlap.
    """
    given = source.objects
    num_detections, num_objects = len(score), len(given.classes)
    of_class = overlaps.select(overlaps.same_class)
    matched = match(of_class, num_detections, FOREGROUND_IOU)
    detector = np.full(num_objects, -1)
    detected = np.flatnonzero(matched >= 0)
    detector[matched[detected]] = detected
    detector[given.crowd] = -1
    pairs = overlaps.select(~overlaps.is_crowd)
    nearest = nearest_objects(pairs, num_detections)
    nearest_iou = highest(pairs.detection, pairs.iou, num_detections)
    return (
        DetectionColumns(
            *(boxes.image, boxes.class_index, np.asarray(core.xywh_to_yxyx(boxes.xywh)), score),
            *(matched, error_types(overlaps, matched, given.crowd), nearest, nearest_iou),
        ),
        ObjectColumns(
            *(given.image_index, given.classes, given.boxes, given.areas, given.crowd),
            *(detector, highest(of_class.object, of_class.iou, num_objects)),
        ),
    )


def error_types(
    overlaps: Overlaps, matched: Int[np.ndarray, " n"], is_crowd: Bool[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """Return the index in `ERRORS` of each detection.

    Args:
        overlaps: The pairs of detections and objects that overlap.
        matched: The object that each detection is matched with, or -1.
        is_crowd: Whether each object is a crowd region.
    """
    pairs = overlaps.select(~overlaps.is_crowd)
    same, other = pairs.select(pairs.same_class), pairs.select(~pairs.same_class)
    same_iou = highest(same.detection, same.iou, len(matched))
    other_iou = highest(other.detection, other.iou, len(matched))
    return np.select(
        [
            in_crowd(matched, is_crowd),
            matched >= 0,
            (same_iou >= BACKGROUND_IOU) & (same_iou <= FOREGROUND_IOU),
            other_iou >= FOREGROUND_IOU,
            same_iou > FOREGROUND_IOU,
            other_iou <= BACKGROUND_IOU,
        ],
        [IGNORED, NONE, LOCALIZATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
