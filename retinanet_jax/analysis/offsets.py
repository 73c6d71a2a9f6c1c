"""Systematic differences of detections from their objects: a displacement, or another size.

They show that images or boxes were resized, cropped or converted differently somewhere. Each object
is compared with the best detection near it, also if their IoU is below .5, as that of small objects
is if the boxes are displaced. The numbers are medians, which a few wrong detections do not change.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from retinanet_jax.analysis.evaluated import BACKGROUND_IOU, Evaluated
from retinanet_jax.data.sources.base import Category

MANY_PAIRS = 20  # from which on a difference is judged
SAME_SIGN = 0.75  # fraction of the pairs with a difference of the sign of the median
DISPLACED_PIXELS, DISPLACED = 1.0, 0.02  # of the image; fraction of the objects' side
OTHER_SIZE = 0.1  # by which most detections are larger or smaller


class Pairs(NamedTuple):
    """Objects, each with the detection of the highest score near it.

    Attributes:
        class_index: The class of both.
        shift: (dy, dx) from the object's center to the detection's, in pixels of the image.
        ratio: The detection's height and width, divided by the object's.
        sides: The object's height and width in pixels of the image.
    """

    class_index: Int[np.ndarray, " p"]
    shift: Float[np.ndarray, "p 2"]
    ratio: Float[np.ndarray, "p 2"]
    sides: Float[np.ndarray, "p 2"]

    def select(self, mask: Bool[np.ndarray, " p"]) -> "Pairs":
        """Return the pairs of the mask."""
        return Pairs(*(field[mask] for field in self))


def best_pairs(evaluated: Evaluated) -> Pairs:
    """Return each object with the detection of the highest score near it, if there is one.

    That is a detection of the object's category that overlaps no other object more, and this one by
    an IoU of .1 or more.

    Args:
        evaluated: The dataset and its detections.
    """
    detections, objects = evaluated.detections, evaluated.objects
    near = np.flatnonzero(detections.nearest_iou >= BACKGROUND_IOU)
    nearest = detections.nearest[near]
    near = near[detections.class_index[near] == objects.class_index[nearest]]
    # The detections of an image are in descending order of score: the first is the best.
    index, first = np.unique(detections.nearest[near], return_index=True)
    box, truth = detections.box[near[first]], objects.box[index]
    sides = truth[:, 2:] - truth[:, :2]
    return Pairs(
        objects.class_index[index],
        (box[:, :2] + box[:, 2:] - truth[:, :2] - truth[:, 2:]) / 2,
        (box[:, 2:] - box[:, :2]) / sides,  # overlapping boxes have an area
        sides,
    )


def are_displaced(pairs: Pairs) -> Bool[np.ndarray, " 2"]:
    """Return whether most detections are displaced in the same direction, in y and in x."""
    sides = float(np.median(pairs.sides)) if len(pairs.sides) else 0.0
    return _are_systematic(pairs.shift, max(DISPLACED_PIXELS, DISPLACED * sides))


def have_other_size(pairs: Pairs) -> Bool[np.ndarray, " 2"]:
    """Return whether most detections are higher, or most lower, and the same of their width."""
    return _are_systematic(np.log(pairs.ratio), np.log(1 + OTHER_SIZE))


def offsets(pairs: Pairs, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Return the median displacement and the median ratio of sizes, of all objects and by category.

    Args:
        pairs: From `best_pairs`.
        categories: The categories of the dataset.

    Returns:
        First a dict of all objects, with None as category, then one of each category: the number
        of objects with a detection near them, the displacement "dy", "dx" in pixels of the image
        (positive: down, to the right), and the ratios of "height" and "width" (above 1: the
        detections are larger). Categories without such objects are left out.
    """
    if not len(pairs.class_index):
        return []
    return [
        _medians(None, pairs),
        *(
            _medians(categories[k].name, pairs.select(pairs.class_index == k))
            for k in np.unique(pairs.class_index).tolist()
        ),
    ]


def _are_systematic(differences: Float[np.ndarray, "p 2"], least: float) -> Bool[np.ndarray, " 2"]:
    """Return whether there are enough pairs, the median is large, and most have its sign."""
    if len(differences) < MANY_PAIRS:
        return np.zeros(2, bool)
    median = np.median(differences, axis=0)
    is_same = np.sign(differences) == np.sign(median)
    return (np.abs(median) >= least) & (is_same.mean(axis=0) >= SAME_SIGN)


def _medians(name: str | None, pairs: Pairs) -> dict[str, Any]:
    """Return the medians of some pairs; their category may be None."""
    dy, dx = np.median(pairs.shift, axis=0).tolist()
    height, width = np.median(pairs.ratio, axis=0).tolist()
    return {
        "category": name,
        "matches": len(pairs.shift),
        **{"dy": dy, "dx": dx, "height": height, "width": width},
    }
