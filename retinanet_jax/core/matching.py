"""Matching of anchors with ground truths, and the training targets of the anchors.

A matrix of all A x M IoUs would take 80 MB per image. Instead, a loop visits one ground truth after
the other and updates the best match of every anchor.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core.boxes import area, intersection, paired_iou
from retinanet_jax.core.structures import BACKGROUND, IGNORE, Array, Targets

# Boxes that a loop visits in one iteration. Compiled for a TPU v5e, 100 boxes then take 3.0
# estimated ms for 8 images of 640 x 640 pixels, and 6.1 with one box; on a CPU the time is the
# same. More boxes take more memory.
BOXES_PER_ITERATION = 4

State = TypeVar("State")


def match(
    anchors: Float[Array, "A 4"],
    gt_boxes: Float[Array, "M 4"],
    gt_mask: Bool[Array, " M"],
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
    eligible: Bool[Array, " A"] | None = None,
    num_gt: Int[Array, ""] | int | None = None,
) -> Int[Array, " A"]:
    """Return the index of the ground truth matched with each anchor, or BACKGROUND or IGNORE.

    An anchor is matched with the ground truth of highest IoU, or the first of several with the
    same IoU. It is foreground if that IoU is at least `foreground_iou`, background if it is below
    `background_iou`, and ignored otherwise. See https://arxiv.org/abs/1708.02002, section 4,
    "Anchors".

    Args:
        anchors: In pixels of the network's input.
        gt_boxes: In pixels of the network's input; the values do not matter where `gt_mask` is
            False.
        gt_mask: True where a ground truth is real.
        foreground_iou: Lowest IoU of foreground anchors; the paper's is 0.5.
        background_iou: IoU below which anchors are background; the paper's is 0.4.
        low_quality: Whether the anchor of highest IoU with a ground truth, or all such anchors in
            a tie, are foreground however low that IoU is. Such an anchor is still matched with the
            ground truth of its own highest IoU. A ground truth that overlaps no anchor forces no
            match.
        eligible: Anchors where this is False are ignored and never the best anchors of a ground
            truth. None means that all anchors are eligible.
        num_gt: The number of ground truths after which there are only masked ones, which then cost
            no time. Under vmap it should be one number for the whole batch. None means all.

    Returns:
        An index into `gt_boxes`, BACKGROUND or IGNORE per anchor.

    Raises:
        ValueError: Unless 0 <= background_iou <= foreground_iou <= 1 and foreground_iou > 0.
    """
    if not 0 <= background_iou <= foreground_iou <= 1 or foreground_iou == 0:
        raise ValueError(
            f"background_iou={background_iou} and foreground_iou={foreground_iou} must be ordered "
            "0 <= background <= foreground <= 1 with foreground > 0; try 0.4 and 0.5."
        )
    num_anchors = len(anchors)
    if eligible is None:
        eligible = jnp.ones(num_anchors, bool)

    columns = jnp.transpose(anchors)  # contiguous values per coordinate, which vectorizes

    def update(state, index):
        best_iou, best_index, forced = state
        # The barrier makes XLA compute the IoUs only once: computed again in another fusion, their
        # last bits could differ, and then no anchor would equal the maximum.
        iou = jnp.where(gt_mask[index] & eligible, paired_iou(columns.T, gt_boxes[index]), 0)  # A
        iou = jax.lax.optimization_barrier(iou)
        highest = jnp.max(iou)
        forced |= (iou == highest) & (highest > 0)
        better = iou > best_iou
        best_iou = jnp.where(better, iou, best_iou)
        best_index = jnp.where(better, index, best_index)
        return best_iou, best_index, forced

    start = (
        jnp.zeros(num_anchors, jnp.result_type(anchors, gt_boxes)),
        jnp.zeros(num_anchors, jnp.int32),
        jnp.zeros(num_anchors, bool),
    )
    gt_boxes, gt_mask = jnp.asarray(gt_boxes), jnp.asarray(gt_mask)
    best_iou, best_index, forced = _visit(update, start, len(gt_boxes), num_gt)

    foreground = best_iou >= foreground_iou
    if low_quality:
        foreground |= forced
    return jnp.select(
        [~eligible, foreground, best_iou < background_iou],
        [IGNORE, best_index, BACKGROUND],
        IGNORE,
    )


def assign_targets(
    anchors: Float[Array, "A 4"],
    gt_boxes: Float[Array, "M 4"],
    gt_classes: Int[Array, " M"],
    gt_mask: Bool[Array, " M"],
    crowd_boxes: Float[Array, "C 4"],
    crowd_mask: Bool[Array, " C"],
    valid_size: Float[Array, "2"],
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
    crowd_ioa: float | None,
    ignore_padding: bool,
    num_gt: Int[Array, ""] | int | None = None,
    num_crowd: Int[Array, ""] | int | None = None,
) -> Targets:
    """Return the training targets of the anchors of one image.

    Anchors are matched with ground truths by IoU (https://arxiv.org/abs/1708.02002, section 4,
    "Anchors"), then anchors in the padding and background anchors in crowd regions are excluded.

    Args:
        anchors: In pixels of the network's input.
        gt_boxes: In pixels of the network's input; at least one, which may be padding.
        gt_classes: Class of each ground truth, in [0, K).
        gt_mask: True where a ground truth is real.
        crowd_boxes: Regions of many objects that are not annotated individually (COCO's
            iscrowd).
        crowd_mask: True where a region is real.
        valid_size: (height, width) of the image inside the padded input.
        foreground_iou: As in `match`.
        background_iou: As in `match`.
        low_quality: As in `match`.
        crowd_ioa: Background anchors with more than this fraction of their area in one crowd region
            become IGNORE. None leaves them background, as torchvision and detectron2 do.
        ignore_padding: Whether anchors with their center outside the image are IGNORE and never a
            ground truth's best anchor. False treats them like any other, as torchvision and
            detectron2 do.
        num_gt: As in `match`.
        num_crowd: As in `max_crowd_ioa`.

    Returns:
        A label and a box per anchor.

    Raises:
        ValueError: If `gt_boxes` has length 0, or `match` rejects the thresholds.

    Examples:
        >>> import jax.numpy as jnp
        >>> from retinanet_jax import core
        >>> targets = core.assign_targets(
        ...     anchors=jnp.array([[0, 0, 10, 10], [0, 0, 10, 4], [20, 20, 30, 30]], float),
        ...     gt_boxes=jnp.array([[0, 0, 10, 9]], float),
        ...     gt_classes=jnp.array([7]),
        ...     gt_mask=jnp.array([True]),
        ...     crowd_boxes=jnp.zeros((1, 4)),
        ...     crowd_mask=jnp.array([False]),
        ...     valid_size=jnp.array([32.0, 32.0]),
        ...     foreground_iou=0.5,
        ...     background_iou=0.4,
        ...     low_quality=True,
        ...     crowd_ioa=None,
        ...     ignore_padding=False,
        ... )
        >>> targets.labels.tolist()  # IoUs of .90, .44 and 0: class 7, IGNORE and BACKGROUND
        [7, -2, -1]
    """
    if len(gt_boxes) == 0:
        raise ValueError(
            "gt_boxes has 0 rows and requires at least 1; pad it with a box and gt_mask False."
        )
    eligible = None
    if ignore_padding:
        eligible = jnp.all((anchors[:, :2] + anchors[:, 2:]) / 2 < valid_size, axis=1)
    matches = match(
        anchors,
        gt_boxes,
        gt_mask,
        foreground_iou=foreground_iou,
        background_iou=background_iou,
        low_quality=low_quality,
        eligible=eligible,
        num_gt=num_gt,
    )
    if crowd_ioa is not None:
        in_crowd = max_crowd_ioa(anchors, crowd_boxes, crowd_mask, num_crowd) > crowd_ioa
        matches = jnp.where((matches == BACKGROUND) & in_crowd, IGNORE, matches)

    foreground = matches >= 0
    index = jnp.maximum(matches, 0)
    return Targets(
        labels=jnp.where(foreground, jnp.asarray(gt_classes)[index], matches),
        boxes=jnp.where(foreground[:, None], jnp.asarray(gt_boxes)[index], anchors),
    )


def max_crowd_ioa(
    anchors: Float[Array, "A 4"],
    crowd_boxes: Float[Array, "C 4"],
    crowd_mask: Bool[Array, " C"],
    num_crowd: Int[Array, ""] | int | None = None,
) -> Float[Array, " A"]:
    """Return each anchor's highest intersection over area (IoA) with a crowd region.

    The area is the anchor's, so the result is a fraction of the anchor, as in COCO's evaluation of
    detections in crowd regions.

    Args:
        anchors: In pixels of the network's input.
        crowd_boxes: In pixels of the network's input.
        crowd_mask: True where a region is real.
        num_crowd: The number of regions after which there are only masked ones, as in `match`.
    """
    crowd_boxes, crowd_mask = jnp.asarray(crowd_boxes), jnp.asarray(crowd_mask)

    def update(highest, index):
        overlap = intersection(anchors, crowd_boxes[index])
        return jnp.maximum(highest, jnp.where(crowd_mask[index], overlap, 0))

    start = jnp.zeros(len(anchors), jnp.result_type(anchors, crowd_boxes))
    return _visit(update, start, len(crowd_boxes), num_crowd) / area(anchors)


def _visit(
    update: Callable[[State, Int[Array, ""]], State],
    state: State,
    length: int,
    num_boxes: Int[Array, ""] | int | None,
) -> State:
    """Return the state after visiting the first `num_boxes` of `length` boxes.

    Boxes after these may be visited as well, and the last one repeatedly: `update` must not depend
    on masked boxes, nor change the state if it is called again with the same index.
    """
    if length == 0:
        return state
    per_iteration = min(BOXES_PER_ITERATION, length)
    num_iterations = -(-(length if num_boxes is None else num_boxes) // per_iteration)

    def visit_several(iteration, state):
        for index in range(per_iteration):
            state = update(state, jnp.minimum(iteration * per_iteration + index, length - 1))
        return state

    return jax.lax.fori_loop(0, num_iterations, visit_several, state)
