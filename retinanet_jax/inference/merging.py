"""Merging the detections of several views of an image, so that each object appears once.

Boxes are x0, y0, x1, y1 in pixels of the image.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from retinanet_jax import core


class ScoredBoxes(NamedTuple):
    """Boxes with their scores and classes."""

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]

    def take(self, selected: np.ndarray) -> "ScoredBoxes":
        """Return the boxes at some indices, or where a mask is True."""
        return ScoredBoxes(*(column[selected] for column in self))


def concatenate(parts: Iterable[ScoredBoxes]) -> ScoredBoxes:
    """Return the boxes of several results as one; there must be at least one result."""
    return ScoredBoxes(*map(np.concatenate, zip(*parts, strict=True)))


def best_first(detected: ScoredBoxes) -> ScoredBoxes:
    """Return the boxes in descending order of their scores; equal scores keep their order."""
    return detected.take(np.argsort(-detected.scores, stable=True))


def class_wise_nms(
    detected: ScoredBoxes, *, iou_threshold: float, class_agnostic: bool
) -> ScoredBoxes:
    """Return the boxes that greedy NMS selects, best score first.

    Args:
        detected: The boxes of all views.
        iou_threshold: A box is suppressed if its IoU with a better one of its class is higher.
        class_agnostic: Whether boxes also suppress boxes of other classes.
    """
    detected = best_first(detected)
    size = len(detected.scores)
    padding = (1 << size.bit_length()) - size  # few lengths, because each is compiled
    selected = core.non_maximum_suppression(
        np.pad(detected.boxes, ((0, padding), (0, 0))),
        np.pad(detected.classes, (0, padding)),
        np.arange(size + padding) < size,
        iou_threshold=iou_threshold,
        class_agnostic=class_agnostic,
        limit=size + padding,
    )
    return detected.take(np.asarray(selected)[:size])


def pairwise_iou(
    a: Float[np.ndarray, "A 4"], b: Float[np.ndarray, "B 4"]
) -> Float[np.ndarray, "A B"]:
    """Return the intersection over union of every box of `a` with every box of `b`.

    `core.pairwise_iou` is compiled for each number of boxes, which differs between windows.
    """
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b) - shared
    return shared / np.maximum(union, np.finfo(np.float32).tiny)


def intersections(
    a: Float[np.ndarray, "A 4"], b: Float[np.ndarray, "B 4"]
) -> Float[np.ndarray, "A B"]:
    """Return the area of overlap of every box of `a` with every box of `b`, in square pixels."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # A B 2
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # A B 2
    return np.maximum(high - low, 0).prod(axis=-1)


def areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Return the areas of boxes in square pixels; 0 for empty and inverted boxes."""
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
