"""The overlaps of detections and objects, and COCO's greedy matching by them.

The overlaps are computed by pycocotools, and the matching is that of its COCOeval, so that whatever
is derived from them agrees with COCO's AP. hotcoco does not return its matches in a form that is
small enough for large datasets.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# An IoU of 1 may be computed as slightly less; pycocotools' tolerance.
LARGEST_THRESHOLD = 1 - 1e-10


class Overlaps(NamedTuple):
    """All pairs of a detection and an object of the same image that overlap.

    Attributes:
        detection: Index of the detection; in ascending order.
        object: Index of the object.
        iou: IoU of the pair. If the object is a crowd region, the fraction of the detection's area
            that is inside it.
        same_class: Whether both are of the same class.
        is_crowd: Whether the object is a crowd region.
    """

    detection: Int[np.ndarray, " p"]
    object: Int[np.ndarray, " p"]
    iou: Float[np.ndarray, " p"]
    same_class: Bool[np.ndarray, " p"]
    is_crowd: Bool[np.ndarray, " p"]

    def select(self, mask: Bool[np.ndarray, " p"]) -> "Overlaps":
        """Return the pairs of the mask."""
        return Overlaps(*(field[mask] for field in self))


class Boxes(NamedTuple):
    """The boxes of detections or objects, in the order of their images.

    Attributes:
        image: Index of each box's image; in ascending order.
        class_index: Index of its class.
        xywh: x, y, width and height in pixels.
    """

    image: Int[np.ndarray, " n"]
    class_index: Int[np.ndarray, " n"]
    xywh: Float[np.ndarray, "n 4"]


def find_overlaps(
    detections: Boxes, objects: Boxes, is_crowd: Bool[np.ndarray, " m"], num_images: int
) -> Overlaps:
    """Return the pairs of overlapping detections and objects.

    Args:
        detections: The n detections.
        objects: The m objects.
        is_crowd: Whether each object is a crowd region.
        num_images: The number of images.
    """
    from pycocotools import mask

    images = np.arange(num_images + 1)
    first_detection = np.searchsorted(detections.image, images).tolist()
    first_object = np.searchsorted(objects.image, images).tolist()
    crowd = is_crowd.astype(np.uint8)
    detection_parts, object_parts, iou_parts = [], [], []
    for image in np.intersect1d(detections.image, objects.image).tolist():
        start, stop = first_detection[image : image + 2]
        first, last = first_object[image : image + 2]
        # An array, since both have boxes.
        ious = np.asarray(
            mask.iou(detections.xywh[start:stop], objects.xywh[first:last], crowd[first:last])
        )
        rows, columns = np.nonzero(ious > 0)
        detection_parts.append(rows + start)
        object_parts.append(columns + first)
        iou_parts.append(ious[rows, columns])
    detection = np.concatenate([np.zeros(0, np.int64), *detection_parts])
    object_index = np.concatenate([np.zeros(0, np.int64), *object_parts])
    return Overlaps(
        detection,
        object_index,
        np.concatenate([np.zeros(0), *iou_parts]),
        detections.class_index[detection] == objects.class_index[object_index],
        is_crowd[object_index],
    )


def match(pairs: Overlaps, num_detections: int, threshold: float) -> Int[np.ndarray, " n"]:
    """Return the object that each detection is matched with, or -1, as COCO matches them.

    In their order, each detection takes the free object that it overlaps most; of equal overlaps,
    the last. If there is none, it is matched with a crowd region, with which any number of
    detections may be matched.

    Args:
        pairs: The pairs that may be matched: for COCO's AP, those of the same class. The detections
            of an image are in the order of descending score.
        num_detections: n, the number of detections.
        threshold: The lowest IoU of a match.
    """
    pairs = pairs.select(pairs.iou >= min(threshold, LARGEST_THRESHOLD))
    order = np.lexsort((-pairs.object, -pairs.iou, pairs.is_crowd, pairs.detection))
    columns = (pairs.detection[order], pairs.object[order], pairs.is_crowd[order])
    matches = np.full(num_detections, -1)
    taken: set[int] = set()
    matched = -1  # the last detection that was matched
    for detection, candidate, is_crowd in zip(*(c.tolist() for c in columns), strict=True):
        if detection != matched and candidate not in taken:
            matches[detection] = candidate
            matched = detection
            if not is_crowd:
                taken.add(candidate)
    return matches


def in_crowd(
    matched: Int[np.ndarray, " n"], is_crowd: Bool[np.ndarray, " m"]
) -> Bool[np.ndarray, " n"]:
    """Return whether each detection is matched with a crowd region.

    Args:
        matched: The object that each detection is matched with, or -1.
        is_crowd: Whether each object is a crowd region.
    """
    return np.append(is_crowd, False)[matched]  # -1 is the last


def nearest_objects(pairs: Overlaps, num_detections: int) -> Int[np.ndarray, " n"]:
    """Return the object that each detection overlaps most; -1 if it overlaps none.

    Args:
        pairs: The pairs to choose from. Of equal overlaps, the first one is chosen.
        num_detections: n, the number of detections.
    """
    order = np.lexsort((-pairs.object, pairs.iou, pairs.detection))
    nearest = np.full(num_detections, -1)
    # Of the pairs of a detection, numpy stores the last one.
    nearest[pairs.detection[order]] = pairs.object[order]
    return nearest


def highest(
    index: Int[np.ndarray, " p"], iou: Float[np.ndarray, " p"], length: int
) -> Float[np.ndarray, " length"]:
    """Return the highest IoU of the pairs of each detection or object; 0 if it has none.

    Args:
        index: The detection or object of each pair.
        iou: The IoU of each pair.
        length: The number of detections or objects.
    """
    highest_iou = np.zeros(length)
    np.maximum.at(highest_iou, index, iou)
    return highest_iou
