"""From a network's outputs to detections: the best candidates, NMS, a fixed number of rows."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core import boxes as box_ops
from retinanet_jax.core.types import Array, Detections

NMS_BLOCK = 256  # boxes that NMS settles together


class Candidates(NamedTuple):
    """Boxes that may become detections, best score first."""

    boxes: Float[Array, "N 4"]  # in pixels of the network's input
    scores: Float[Array, " N"]
    classes: Int[Array, " N"]
    mask: Bool[Array, " N"]  # score above the threshold, and whatever was found wanting since


def detect(
    logits: tuple[Float[Array, "_ K"], ...],
    deltas: tuple[Float[Array, "_ 4"], ...],
    anchors: tuple[Float[Array, "_ 4"], ...],
    *,
    valid_size: Float[Array, "2"],
    original_scale: Float[Array, "2"],
    score_threshold: float,
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    clip: str,
    drop_empty: bool,
    nms: str,
    soft_sigma: float,
    class_agnostic: bool,
) -> Detections:
    """The detections of one image, from one array a level of each output (paper, section 4.1).

    Args:
      logits: "h*w*a K" a level.
      deltas: "h*w*a 4" a level.
      anchors: "h*w*a 4" a level, pixels of the network's input.
      valid_size: (height, width) of the picture inside the padded input; boxes are cut to it.
      original_scale: (y, x) pixels of the original picture per pixel of the network's input.
      score_threshold: a candidate's score is above it, and with soft NMS its new score too.
      top_k: candidates of a level, at most.
      iou_threshold: a box that overlaps a better one of its class by more than this is dropped, or
        by "soft_linear" scored lower.
      max_detections: D, the rows that come out.
      clip: "before_nms" as torchvision, or "after_nms" as detectron2.
      drop_empty: leave out boxes without area after clipping; as in detectron2, once the best
        `max_detections` are chosen.
      nms: "hard", "soft_linear" or "soft_gaussian".
      soft_sigma: of "soft_gaussian": the larger, the less an overlap costs.
      class_agnostic: boxes compete whatever their classes.

    Raises:
      ValueError: an unknown `clip` or `nms`, or a different number of levels.
    """
    if clip not in ("before_nms", "after_nms"):
        raise ValueError(f"clip={clip!r} must be 'before_nms' or 'after_nms'.")
    if nms not in ("hard", "soft_linear", "soft_gaussian"):
        raise ValueError(f"nms={nms!r} must be one of hard, soft_linear, soft_gaussian.")
    height, width = valid_size
    levels = [
        select_candidates(*level, score_threshold=score_threshold, top_k=top_k)
        for level in zip(logits, deltas, anchors, strict=True)
    ]
    found = _best_first(jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels))
    if clip == "before_nms":
        found = found._replace(boxes=box_ops.clip(found.boxes, height, width))

    if nms == "hard":
        keep = non_maximum_suppression(
            found.boxes,
            found.classes,
            found.mask,
            iou_threshold=iou_threshold,
            class_agnostic=class_agnostic,
            limit=max_detections,
        )
        found = found._replace(mask=keep)
    else:
        scores = soft_non_maximum_suppression(
            found.boxes,
            found.scores,
            found.classes,
            found.mask,
            method=nms.removeprefix("soft_"),
            iou_threshold=iou_threshold,
            sigma=soft_sigma,
            score_threshold=score_threshold,
            class_agnostic=class_agnostic,
            max_detections=max_detections,
        )
        found = _best_first(found._replace(scores=scores, mask=scores > 0))
    found = _first(found, max_detections)
    found = found._replace(boxes=box_ops.clip(found.boxes, height, width))
    if drop_empty:
        found = found._replace(mask=found.mask & (box_ops.area(found.boxes) > 0))
        found = _first(found, max_detections)
    return Detections(
        found.boxes * jnp.tile(original_scale, 2), found.scores, found.classes, found.mask
    )


def select_candidates(
    logits: Float[Array, "A K"],
    deltas: Float[Array, "A 4"],
    anchors: Float[Array, "A 4"],
    *,
    score_threshold: float,
    top_k: int,
) -> Candidates:
    """The `top_k` highest (anchor, class) pairs of a level, fewer where it has fewer.

    Exactly those of `jax.lax.top_k` over all A * K, ties included, without sorting A * K numbers:
    an anchor with a pair among them is itself among the `top_k` best anchors by highest logit,
    since each anchor before it has a pair before that one.
    """
    num_classes = logits.shape[1]
    _, best_anchors = jax.lax.top_k(jnp.max(logits, axis=1), min(top_k, len(logits)))
    best_anchors = jnp.sort(best_anchors)  # equal logits then keep their order in A * K
    pairs = jnp.asarray(logits)[best_anchors].reshape(-1)
    best_logits, pair = jax.lax.top_k(pairs, min(top_k, len(pairs)))
    anchor = best_anchors[pair // num_classes]

    best_logits = best_logits.astype(jnp.promote_types(best_logits.dtype, jnp.float32))
    scores = jax.nn.sigmoid(best_logits)
    return Candidates(
        boxes=box_ops.decode(jnp.asarray(deltas)[anchor], jnp.asarray(anchors)[anchor]),
        scores=scores,
        classes=pair % num_classes,
        mask=scores > score_threshold,
    )


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


def _best_first(candidates: Candidates) -> Candidates:
    """The rows by falling score; equals keep their order."""
    order = jnp.argsort(candidates.scores, descending=True)
    return jax.tree.map(lambda rows: rows[order], candidates)


def _first(candidates: Candidates, size: int) -> Candidates:
    """The first `size` rows with a True mask; where there are fewer, zero and False rows follow."""
    missing = max(0, size - len(candidates.mask))
    padded = jax.tree.map(
        lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), candidates
    )
    picked, rows = jax.lax.top_k(padded.mask.astype(jnp.int32), size)  # of equals the first

    def chosen(x):
        kept = picked.reshape(-1, *[1] * (x.ndim - 1)) > 0
        return jnp.where(kept, x[rows], jnp.zeros((), x.dtype))

    return jax.tree.map(chosen, padded)
