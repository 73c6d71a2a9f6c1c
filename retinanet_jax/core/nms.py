"""Non-maximum suppression (NMS), hard and soft, of the boxes of one image."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core import boxes as box_ops
from retinanet_jax.core.structures import Array

NMS_BLOCK = 256  # number of boxes that one iteration of NMS processes


@functools.partial(jax.jit, static_argnames=("iou_threshold", "class_agnostic", "limit"))
def non_maximum_suppression(
    boxes: Float[Array, "N 4"],
    classes: Int[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    iou_threshold: float,
    class_agnostic: bool,
    limit: int,
) -> Bool[Array, " N"]:
    """Return a mask of the boxes that greedy NMS selects.

    See https://arxiv.org/abs/1708.02002, section 4.1, "Inference".

    A box is suppressed if an earlier box of its class that is not suppressed itself overlaps it by
    more than the threshold. The result equals that of the sequential algorithm at every threshold.

    The boxes are processed in blocks of NMS_BLOCK, each of which is compared with the boxes
    selected so far and then with itself. The loop ends at the last real box or once `limit` boxes
    are selected, which for a detector usually happens in the first blocks.

    Args:
        boxes: Boxes in the order of descending score.
        classes: Class of each box.
        mask: False where an entry is padding.
        iou_threshold: A box is suppressed by an IoU above the threshold, but not by an equal IoU.
        class_agnostic: Whether boxes also suppress boxes of other classes.
        limit: The maximal number of boxes to select.

    Returns:
        The mask, which is False for all boxes after the first `limit` selected boxes.
    """
    size, limit = len(boxes), min(limit, len(boxes))
    end = jnp.max(jnp.where(mask, jnp.arange(size) + 1, 0))

    def take(indices):
        """Return the boxes, classes and mask at `indices`; those beyond the end are all zero."""
        columns = (jnp.asarray(boxes), jnp.asarray(classes), jnp.asarray(mask))
        return tuple(x.at[indices].get(mode="fill", fill_value=0) for x in columns)

    def overlaps(boxes, classes, others, other_classes):
        comparable = class_agnostic | (classes[:, None] == other_classes[None, :])
        return comparable & (box_ops.pairwise_iou(boxes, others) > iou_threshold)

    def process_block(state):
        start, selected, count = state  # `count` selected indices, followed by `size` as padding
        indices = start + jnp.arange(NMS_BLOCK)
        block, block_classes, is_real = take(indices)
        better, better_classes, _ = take(selected)
        suppressed = jnp.any(overlaps(block, block_classes, better, better_classes), axis=1)
        is_earlier = jnp.tri(NMS_BLOCK, k=-1, dtype=bool)
        overlapping = is_earlier & overlaps(block, block_classes, block, block_classes)
        keep = _not_suppressed(overlapping, is_real & ~suppressed)
        slots = jnp.minimum(jnp.where(keep, count + jnp.cumsum(keep) - 1, limit), limit)
        selected = selected.at[slots].set(
            jnp.where(slots < limit, indices, size), mode="promise_in_bounds"
        )
        return start + NMS_BLOCK, selected, count + jnp.sum(keep)

    # The last slot is for boxes that are not selected. JAX would also drop an index beyond the end,
    # but with --deterministic XLA's GPU backend then writes into the next image (jax 0.11.2).
    _, selected, _ = jax.lax.while_loop(
        lambda state: (state[0] < end) & (state[2] < limit),
        process_block,
        (jnp.array(0), jnp.full(limit + 1, size), jnp.array(0)),
    )
    return jnp.zeros(size + 1, bool).at[selected].set(True, mode="promise_in_bounds")[:size]


def _not_suppressed(overlapping: Bool[Array, "N N"], mask: Bool[Array, " N"]) -> Bool[Array, " N"]:
    """Return a mask of the boxes that no other remaining box suppresses.

    `overlapping[i, j]` is True where the earlier box j overlaps box i. This definition is applied
    to all boxes of `mask` at once until nothing changes. After i iterations at least the first i
    boxes are final; in practice a few iterations suffice.
    """

    def refine(state):
        keep, _ = state
        refined = mask & ~jnp.any(overlapping & keep[None, :], axis=1)
        return refined, jnp.any(refined != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], refine, (mask, jnp.array(True)))
    return keep


def soft_non_maximum_suppression(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    classes: Int[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    method: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float | Float[Array, " N"],
    class_agnostic: bool,
    max_detections: int,
) -> Float[Array, " N"]:
    """Return the scores after soft NMS (https://arxiv.org/abs/1704.04503, section 4).

    The best remaining box is selected and the scores of the other boxes of its class are multiplied
    by 1 - IoU where the IoU exceeds the threshold ("linear") or by exp(-IoU^2 / sigma)
    ("gaussian"); then the next box is selected. As scores only decrease, boxes are selected in the
    order of their new scores. Each selection compares one box with N others, so there is no N x N
    matrix.

    Args:
        boxes: Boxes in any order.
        scores: Score of each box, above 0 where `mask` is True.
        classes: Class of each box.
        mask: False where an entry is padding.
        method: "linear" or "gaussian".
        iou_threshold: For "linear" only: an IoU above the threshold lowers a score.
        sigma: For "gaussian" only: a larger sigma lowers scores less.
        score_threshold: Boxes with a score at or below it are discarded; one threshold, or one for
            each box.
        class_agnostic: Whether a selected box also lowers the scores of other classes.
        max_detections: The maximal number of boxes to select.

    Returns:
        The score that each box had when it was selected; 0 for boxes that were not selected.

    Raises:
        ValueError: If `method` is unknown or `sigma` is not above 0.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method={method!r} must be one of linear, gaussian.")
    if sigma <= 0:
        raise ValueError(f"sigma={sigma} of soft NMS must be above 0; try 0.5.")

    def decay(iou):
        if method == "linear":
            return jnp.where(iou > iou_threshold, 1 - iou, 1)
        return jnp.exp(-(iou**2) / sigma)

    def select(_, state):
        remaining, selected = state  # the scores of boxes that are not selected yet, and that are
        best = jnp.argmax(remaining)
        # If no box remains, the best score is 0, and the maximum changes nothing.
        selected = selected.at[best].max(remaining[best])
        comparable = class_agnostic | (classes == classes[best])
        decayed = remaining * decay(box_ops.paired_iou(boxes, boxes[best]))
        remaining = jnp.where(comparable, decayed, remaining)
        remaining = jnp.where(remaining > score_threshold, remaining, 0).at[best].set(0)
        return remaining, selected

    remaining = jnp.where(mask & (scores > score_threshold), scores, 0)
    iterations = min(max_detections, len(boxes))
    return jax.lax.fori_loop(0, iterations, select, (remaining, jnp.zeros_like(remaining)))[1]
