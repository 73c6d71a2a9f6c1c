"""Merging the detections of overlapping windows, so that each object of the image appears once.

Boxes are x0, y0, x1, y1 in pixels of the image.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.sparse import coo_array, csgraph

from retinanet_jax.inference.merging import (
    ScoredBoxes,
    areas,
    concatenate,
    intersections,
    pairwise_iou,
)
from retinanet_jax.inference.tiles import Grid

# Two windows see the same object if their boxes have a higher IoU within the part that both see.
SAME_OBJECT = 0.5
# What may extend beyond the windows is an object, and no part of a large one, from this IoU on.
MOST_OF_IT = 2 / 3
CUT = 0.05  # of a box's side: ending so near to the border of a window, it may extend beyond it


def merge_by_owner(
    detected: ScoredBoxes,
    window: Int[np.ndarray, " n"],
    grid: Grid,
    *,
    class_agnostic: bool,
) -> tuple[ScoredBoxes, Bool[np.ndarray, " m"]]:
    """Return each object once from the detections of overlapping windows.

    A window owns the detections with centers in its core; the others are dropped. If an object
    is no larger than the overlap, exactly one window owns it, and sees it whole: a window that sees
    only a part of it does not have the center of that part in its core.

    Real boxes add two cases. Windows that see an object slightly differently may both own it, or
    each may leave it to the other; and if an object is larger than the overlap, windows may own a
    part of it each. So detections are compared within the part of the image that both windows see,
    and those of one object become one: the best that the windows show whole or, if there is none,
    the box around all parts, with the score of the best part.

    Args:
        detected: The detections of all windows.
        window: The index of the window of each detection.
        grid: The windows.
        class_agnostic: Whether detections of different classes can be the same object.

    Returns:
        The objects, and whether each may extend beyond what the windows together show of it.
    """
    first, second = _same_objects(detected, window, grid, class_agnostic)
    windows = grid.windows[window]
    is_part = np.zeros(len(window), bool)
    is_part[first[_goes_beyond(detected.boxes[second], windows[first])]] = True
    owner = grid.owners(detected.boxes)
    owned = owner == window
    is_left = ~owned[first] & ~owned[second] & (owner[first] == window[second])
    candidate = owned.copy()
    candidate[first[is_left]] = True

    group = _groups(candidate, first, second)
    best_first = np.lexsort((-detected.scores, ~owned, is_part))
    best_first = best_first[candidate[best_first]]
    best = best_first[np.unique(group[best_first], return_index=True)[1]]  # of each group
    around = _boxes_around(detected.boxes[candidate], group[candidate])
    boxes = np.where(is_part[best, None], around, detected.boxes[best])
    goes_on = _ends_at_border(boxes[group[candidate]], windows[candidate], grid)
    incomplete = np.bincount(group[candidate], goes_on, len(best)) > 0
    return detected.take(best)._replace(boxes=boxes), incomplete


def larger_than_windows(whole: ScoredBoxes, grid: Grid) -> ScoredBoxes:
    """Return the detections in the whole image that no window can hold.

    Args:
        whole: The detections in the whole image.
        grid: The windows.
    """
    goes_beyond = _goes_beyond(whole.boxes[:, None], grid.windows[None])
    return whole.take(np.flatnonzero(goes_beyond.all(axis=1)))


def add_large(
    objects: ScoredBoxes,
    incomplete: Bool[np.ndarray, " m"],
    large: ScoredBoxes,
    *,
    class_agnostic: bool,
) -> ScoredBoxes:
    """Return the objects in windows together with those that are too large for the windows.

    A large object that the windows together show completely is not added, because its box in the
    whole image is less exact. One that is added replaces its parts, except those with a higher
    score: in a reduced image, several small objects may look like a large one.

    Args:
        objects: The objects in windows.
        incomplete: Whether each may extend beyond what the windows show of it.
        large: Detections in the whole image.
        class_agnostic: Whether detections of different classes can be the same object.
    """
    comparable = _comparable(objects, large, class_agnostic)
    required = np.where(incomplete, MOST_OF_IT, SAME_OBJECT)[:, None]
    matched = comparable & (pairwise_iou(objects.boxes, large.boxes) > required)
    is_new = ~matched.any(axis=0)
    is_better = large.scores >= objects.scores[:, None]
    covered = (
        intersections(objects.boxes, large.boxes) > SAME_OBJECT * areas(objects.boxes)[:, None]
    )
    is_part = incomplete & (comparable & covered & is_new & is_better).any(axis=1)
    return concatenate([objects.take(np.flatnonzero(~is_part)), large.take(np.flatnonzero(is_new))])


def _comparable(a: ScoredBoxes, b: ScoredBoxes, class_agnostic: bool) -> Bool[np.ndarray, "A B"]:
    """Return which boxes can be the same object, by their classes."""
    return class_agnostic | (a.classes[:, None] == b.classes)


def _same_objects(
    detected: ScoredBoxes, window: Int[np.ndarray, " n"], grid: Grid, class_agnostic: bool
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Return the pairs of detections in different windows that are the same object.

    They are each other's best match within the part of the image that both windows see. Each pair
    is returned in both orders.
    """
    pairs = [np.zeros((2, 0), int)]
    indices = {w: np.flatnonzero(window == w) for w in np.unique(window).tolist()}
    for first, second in _neighbors(grid, np.array(list(indices), int)):
        shared = np.stack([grid.windows[first], grid.windows[second]])
        low, high = shared[:, :2].max(axis=0), shared[:, 2:].min(axis=0)
        a, b = (detected.take(indices[w]) for w in (first, second))
        clip = [np.clip(x.boxes.reshape(-1, 2, 2), low, high).reshape(-1, 4) for x in (a, b)]
        ious = pairwise_iou(*clip) * _comparable(a, b, class_agnostic)
        best = (ious == ious.max(axis=0)) & (ious == ious.max(axis=1, keepdims=True))
        row, column = np.nonzero(best & (ious > SAME_OBJECT))
        pairs.append(np.stack([indices[first][row], indices[second][column]]))
    first, second = np.concatenate(pairs, axis=1)
    return np.concatenate([first, second]), np.concatenate([second, first])


def _neighbors(grid: Grid, used: Int[np.ndarray, " w"]) -> list[list[int]]:
    """Return the pairs among some windows that have a part of the image in common."""
    windows = grid.windows[used]
    return used[np.argwhere(np.triu(intersections(windows, windows) > 0, k=1))].tolist()


def _goes_beyond(
    boxes: Float[np.ndarray, "*n 4"], windows: Int[np.ndarray, "*n 4"]
) -> Bool[np.ndarray, "*n"]:
    """Return whether boxes extend beyond windows."""
    before, after = boxes[..., :2] < windows[..., :2], boxes[..., 2:] > windows[..., 2:]
    return np.any(before | after, axis=-1)


def _ends_at_border(
    boxes: Float[np.ndarray, "n 4"], windows: Int[np.ndarray, "n 4"], grid: Grid
) -> Bool[np.ndarray, " n"]:
    """Return whether boxes end where the border of a window may have cut them."""
    image = np.concatenate([grid.windows[:, :2].min(axis=0), grid.windows[:, 2:].max(axis=0)])
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return ((np.abs(boxes - windows) <= CUT * sides) & (windows != image)).any(axis=1)


def _groups(
    candidate: Bool[np.ndarray, " n"],
    first: Int[np.ndarray, " pairs"],
    second: Int[np.ndarray, " pairs"],
) -> Int[np.ndarray, " n"]:
    """Return the number of the object of each candidate, from 0; -1 for the others."""
    linked = candidate[first] & candidate[second]
    pairs = first[linked], second[linked]
    graph = coo_array((np.ones(len(pairs[0])), pairs), shape=(len(candidate),) * 2)
    components = csgraph.connected_components(graph, directed=False)[1]
    group = np.full(len(candidate), -1)
    group[candidate] = np.unique(components[candidate], return_inverse=True)[1]
    return group


def _boxes_around(
    boxes: Float32[np.ndarray, "n 4"], group: Int[np.ndarray, " n"]
) -> Float32[np.ndarray, "groups 4"]:
    """Return the smallest box around the boxes of each group."""
    sign = np.array([1, 1, -1, -1], np.float32)
    around = np.full((group.max(initial=-1) + 1, 4), np.inf, np.float32)
    np.minimum.at(around, group, boxes * sign)
    return around * sign
