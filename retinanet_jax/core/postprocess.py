"""From a network's outputs to detections: the best candidates, NMS, a fixed number of rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core import boxes as box_ops
from retinanet_jax.core.nms import non_maximum_suppression, soft_non_maximum_suppression
from retinanet_jax.core.types import Array, Detections


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
