"""Non-maximum suppression, hard and soft, of one image's boxes."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core import boxes as box_ops
from retinanet_jax.core.types import Array

NMS_BLOCK = 256  # boxes that NMS settles together


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
    """Which boxes stay when each drops the later ones of its class that overlap it too much.

    Boxes come best score first; `class_agnostic` takes them all for one class. A box stays if no
    box that stays before it has an IoU above the threshold with it; only the first `limit` that
    stay are wanted. The result is the sequential algorithm's, at every threshold.

    A block of boxes is settled at a time: against those that stay so far, and within itself. That
    ends with the last real box or the last that is wanted, which for a detector comes soon.
    """
    size, limit = len(boxes), min(limit, len(boxes))
    end = jnp.max(jnp.where(mask, jnp.arange(size) + 1, 0))

    def rows_of(rows):
        """Their boxes, classes and mask; a row beyond the last is an empty box."""
        columns = (jnp.asarray(boxes), jnp.asarray(classes), jnp.asarray(mask))
        return tuple(x.at[rows].get(mode="fill", fill_value=0) for x in columns)

    def overlap(boxes, classes, others, other_classes):
        rivals = class_agnostic | (classes[:, None] == other_classes[None, :])
        return rivals & (box_ops.pairwise_iou(boxes, others) > iou_threshold)

    def settle_block(state):
        start, kept, count = state  # kept: the rows that stay, `size` where there is none yet
        rows = start + jnp.arange(NMS_BLOCK)
        block, block_classes, real = rows_of(rows)
        better, better_classes, _ = rows_of(kept)
        beaten = jnp.any(overlap(block, block_classes, better, better_classes), axis=1)
        earlier = jnp.tri(NMS_BLOCK, k=-1, dtype=bool)
        beaten_by = earlier & overlap(block, block_classes, block, block_classes)
        stays = _undisputed(beaten_by, real & ~beaten)
        place = jnp.where(stays, count + jnp.cumsum(stays) - 1, limit)
        return start + NMS_BLOCK, kept.at[place].set(rows, mode="drop"), count + jnp.sum(stays)

    _, kept, _ = jax.lax.while_loop(
        lambda state: (state[0] < end) & (state[2] < limit),
        settle_block,
        (jnp.array(0), jnp.full(limit, size), jnp.array(0)),
    )
    return jnp.zeros(size, bool).at[kept].set(True, mode="drop")


def _undisputed(beaten_by: Bool[Array, "N N"], mask: Bool[Array, " N"]) -> Bool[Array, " N"]:
    """The boxes that no box which stays beats; a box is beaten by earlier ones alone.

    The definition is applied to all at once until nothing changes: the first i boxes are right
    after i rounds at most, and in practice a few rounds do.
    """

    def refine(state):
        keep, _ = state
        refined = mask & ~jnp.any(beaten_by & keep[None, :], axis=1)
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
    score_threshold: float,
    class_agnostic: bool,
    max_detections: int,
) -> Float[Array, " N"]:
    """The scores with which boxes are picked when each pick lowers its rivals' (Bodla et al. 2017).

    The best box left is picked; every other of its class is multiplied by 1 - IoU where the IoU is
    above the threshold ("linear"), or by exp(-IoU^2 / sigma) ("gaussian"); and so on. Scores only
    fall, so the order of picking is that of the result. One pick looks at N boxes, and no N x N
    matrix is made.

    Args:
      boxes: in any order.
      scores: above 0 where `mask` is True.
      classes: of the boxes.
      mask: False where a row is no box.
      method: "linear" or "gaussian".
      iou_threshold: of "linear"; as in hard NMS, an IoU of just this costs nothing.
      sigma: of "gaussian".
      score_threshold: a box at it or below it is out.
      class_agnostic: every box is every other's rival.
      max_detections: how many are picked at most.

    Returns:
      The score each box was picked with, 0 where it was not.

    Raises:
      ValueError: an unknown `method`, or a `sigma` that is not above 0.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method={method!r} must be one of linear, gaussian.")
    if sigma <= 0:
        raise ValueError(f"sigma={sigma} of soft NMS must be above 0; try 0.5.")

    def decay(iou):
        if method == "linear":
            return jnp.where(iou > iou_threshold, 1 - iou, 1)
        return jnp.exp(-(iou**2) / sigma)

    def pick(_, state):
        left, picked = state  # scores of the boxes not picked yet, and of those that are
        best = jnp.argmax(left)
        picked = picked.at[best].max(left[best])  # 0 changes nothing: none was left
        rivals = class_agnostic | (classes == classes[best])
        left = jnp.where(rivals, left * decay(box_ops.paired_iou(boxes, boxes[best])), left)
        left = jnp.where(left > score_threshold, left, 0).at[best].set(0)
        return left, picked

    left = jnp.where(mask & (scores > score_threshold), scores, 0)
    picks = min(max_detections, len(boxes))
    return jax.lax.fori_loop(0, picks, pick, (left, jnp.zeros_like(left)))[1]
