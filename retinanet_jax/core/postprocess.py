"""Detections from a network's outputs: the best candidates, NMS, a fixed number of detections."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core import boxes as box_ops
from retinanet_jax.core.nms import non_maximum_suppression, soft_non_maximum_suppression
from retinanet_jax.core.structures import Array, Detections


class Candidates(NamedTuple):
    """Boxes that may become detections, best score first."""

    boxes: Float[Array, "N 4"]  # in pixels of the network's input
    scores: Float[Array, " N"]
    classes: Int[Array, " N"]
    mask: Bool[Array, " N"]  # False for padding, too low a score, and what a later step discards


class _Level(NamedTuple):
    """Anchors of a pyramid level, with what the network predicts for them."""

    logits: Float[Array, "A K"]
    deltas: Float[Array, "A 4"]
    anchors: Float[Array, "A 4"]


def detect(
    logits: tuple[Float[Array, "_ K"], ...],
    deltas: tuple[Float[Array, "_ 4"], ...],
    anchors: tuple[Float[Array, "_ 4"], ...],
    *,
    valid_size: Float[Array, "2"],
    original_scale: Float[Array, "2"],
    score_threshold: float | Float[Array, " K"],
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    clip: str,
    drop_empty: bool,
    nms: str,
    soft_sigma: float,
    class_agnostic: bool,
    per_cell: int = 1,
) -> Detections:
    """Return the detections of one image, best score first.

    The best candidates of each pyramid level are decoded, merged and reduced by NMS
    (https://arxiv.org/abs/1708.02002, section 4.1, "Inference").

    Args:
        logits: One array of shape (h * w * a, K) per pyramid level.
        deltas: One array of shape (h * w * a, 4) per level.
        anchors: One array of shape (h * w * a, 4) per level, in pixels of the network's input.
        valid_size: (height, width) of the image inside the padded input; boxes are clipped to it.
        original_scale: (y, x) pixels of the original image per pixel of the network's input.
        score_threshold: Only boxes with a score above it are detections: one threshold, or one for
            each class. With soft NMS this also applies to the lowered scores.
        top_k: Maximal number of candidates per level.
        iou_threshold: A box is suppressed if its IoU with a better box of its class is above the
            threshold; with "soft_linear" its score is lowered instead.
        max_detections: D, the fixed length of the result.
        clip: When boxes are clipped: "before_nms" as in torchvision, or "after_nms" as in
            detectron2.
        drop_empty: Whether to discard boxes that are empty after clipping. As in detectron2, this
            happens after the best `max_detections` are selected.
        nms: "hard", "soft_linear" or "soft_gaussian".
        soft_sigma: For "soft_gaussian" only: a larger sigma lowers scores less.
        class_agnostic: Whether boxes also suppress boxes of other classes.
        per_cell: As in `select_candidates`.

    Returns:
        The boxes in pixels of the original image, with scores, classes and a mask. If there are
        fewer than `max_detections`, zeros and a False mask fill the rest.

    Raises:
        ValueError: If `clip` or `nms` is unknown or the numbers of levels differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from retinanet_jax import core
        >>> anchors = jnp.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], float)
        >>> detections = core.detect(
        ...     logits=(jnp.array([[2.0, -9.0], [1.0, -9.0], [-9.0, 0.0]]),),  # a level, 2 classes
        ...     deltas=(jnp.zeros((3, 4)),),
        ...     anchors=(anchors,),
        ...     valid_size=jnp.array([25.0, 32.0]),
        ...     original_scale=jnp.array([2.0, 2.0]),
        ...     score_threshold=0.05,
        ...     top_k=1000,
        ...     iou_threshold=0.5,
        ...     max_detections=3,
        ...     clip="before_nms",
        ...     drop_empty=False,
        ...     nms="hard",
        ...     soft_sigma=0.5,
        ...     class_agnostic=False,
        ... )
        >>> [f"{score:.2f}" for score in detections.scores]  # the second box is suppressed
        ['0.88', '0.50', '0.00']
        >>> detections.classes.tolist(), detections.mask.tolist()
        ([0, 1, 0], [True, True, False])
        >>> print(detections.boxes)
        [[ 0.  0. 20. 20.]
         [40. 40. 50. 60.]
         [ 0.  0.  0.  0.]]
    """
    if clip not in ("before_nms", "after_nms"):
        raise ValueError(f"clip={clip!r} must be 'before_nms' or 'after_nms'.")
    if nms not in ("hard", "soft_linear", "soft_gaussian"):
        raise ValueError(f"nms={nms!r} must be one of hard, soft_linear, soft_gaussian.")
    height, width = valid_size
    levels = [
        _best_anchors(_Level(*level), top_k=top_k, per_cell=per_cell)
        for level in zip(logits, deltas, anchors, strict=True)
    ]
    select = functools.partial(_best_pairs, score_threshold=score_threshold, top_k=top_k)
    # In all levels at once, since a TPU's compiler takes seconds for each sort.
    of_levels = jax.vmap(select)(_stack(levels))
    candidates = _sort_by_score(jax.tree.map(jnp.concatenate, of_levels))
    if clip == "before_nms":
        candidates = candidates._replace(boxes=box_ops.clip(candidates.boxes, height, width))

    if nms == "hard":
        keep = non_maximum_suppression(
            candidates.boxes,
            candidates.classes,
            candidates.mask,
            iou_threshold=iou_threshold,
            class_agnostic=class_agnostic,
            limit=max_detections,
        )
        candidates = candidates._replace(mask=keep)
    else:
        scores = soft_non_maximum_suppression(
            candidates.boxes,
            candidates.scores,
            candidates.classes,
            candidates.mask,
            method=nms.removeprefix("soft_"),
            iou_threshold=iou_threshold,
            sigma=soft_sigma,
            score_threshold=_of_classes(score_threshold, candidates.classes),
            class_agnostic=class_agnostic,
            max_detections=max_detections,
        )
        candidates = _sort_by_score(candidates._replace(scores=scores, mask=scores > 0))
    selected = _take_first(candidates, max_detections)
    selected = selected._replace(boxes=box_ops.clip(selected.boxes, height, width))
    if drop_empty:
        selected = selected._replace(mask=selected.mask & (box_ops.area(selected.boxes) > 0))
        selected = _take_first(selected, max_detections)
    return Detections(
        selected.boxes * jnp.tile(original_scale, 2),
        selected.scores,
        selected.classes,
        selected.mask,
    )


def select_candidates(
    logits: Float[Array, "A K"],
    deltas: Float[Array, "A 4"],
    anchors: Float[Array, "A 4"],
    *,
    score_threshold: float | Float[Array, " K"],
    top_k: int,
    per_cell: int = 1,
) -> Candidates:
    """Return the `top_k` (anchor, class) pairs of a level with the highest logits.

    The result equals that of `jax.lax.top_k` over all A * K logits, ties included, but is faster:
    the best pairs belong to the `top_k` anchors of highest maximal logit, so only their logits are
    compared. (Every anchor with a higher maximum has a pair that is better than all pairs of the
    anchors after it.)

    Args:
        logits: One logit per anchor and class of the level.
        deltas: (dy, dx, dh, dw) of each anchor.
        anchors: In pixels of the network's input.
        score_threshold: The mask is True for scores above it; one threshold, or one for each class.
        top_k: Maximal number of pairs; a level may have fewer.
        per_cell: The number of anchors that are read together, a divisor of A. The result does not
            depend on it. With the number of anchors of a cell the deltas are read in the shape that
            the box head's convolution gives them. A TPU pads each row of an array to 128 numbers.
    """
    best = _best_anchors(_Level(logits, deltas, anchors), top_k=top_k, per_cell=per_cell)
    return _best_pairs(best, score_threshold=score_threshold, top_k=top_k)


def _best_anchors(level: _Level, *, top_k: int, per_cell: int) -> _Level:
    """Return the `top_k` anchors with the highest maximal logits, in their order; all if fewer."""
    if level.logits.shape[0] <= top_k:
        return level
    _, best = jax.lax.top_k(jnp.max(level.logits, axis=1), top_k)
    best = jnp.sort(best)  # equal logits then have the order of all A * K logits
    cell, of_cell = best // per_cell, best % per_cell

    def read(x: Float[Array, "A 4"]) -> Float[Array, "N 4"]:
        cells = jnp.asarray(x).reshape(-1, per_cell * 4)[cell]
        return cells.reshape(-1, 4)[jnp.arange(top_k) * per_cell + of_cell]

    return _Level(jnp.asarray(level.logits)[best], read(level.deltas), read(level.anchors))


def _stack(levels: list[_Level]) -> _Level:
    """Stack levels after padding them to the size of the largest, with the lowest logits."""
    size = max(level.logits.shape[0] for level in levels)

    def stack(arrays: tuple[Float[Array, "_ _"], ...], fill: float) -> Float[Array, "L A _"]:
        widths = [((0, size - x.shape[0]), (0, 0)) for x in arrays]
        return jnp.stack(
            [jnp.pad(x, w, constant_values=fill) for x, w in zip(arrays, widths, strict=True)]
        )

    return _Level(*map(stack, zip(*levels, strict=True), (-jnp.inf, 0.0, 0.0)))


def _best_pairs(
    level: _Level, *, score_threshold: float | Float[Array, " K"], top_k: int
) -> Candidates:
    """Return the `top_k` (anchor, class) pairs with the highest logits as candidates."""
    pairs, num_classes = jnp.ravel(level.logits), level.logits.shape[1]
    best_logits, pair = jax.lax.top_k(pairs, min(top_k, pairs.shape[0]))
    anchor, classes = pair // num_classes, pair % num_classes

    best_logits = best_logits.astype(jnp.promote_types(best_logits.dtype, jnp.float32))
    scores = jax.nn.sigmoid(best_logits)
    boxes = box_ops.decode(jnp.asarray(level.deltas)[anchor], jnp.asarray(level.anchors)[anchor])
    mask = scores > _of_classes(score_threshold, classes)
    return Candidates(boxes, scores, classes, mask)


def _of_classes(
    threshold: float | Float[Array, " K"], classes: Int[Array, " N"]
) -> float | Float[Array, " N"]:
    """Return the threshold of each of these classes, or the only one there is."""
    return jnp.asarray(threshold)[classes] if jnp.ndim(threshold) else threshold


def _sort_by_score(candidates: Candidates) -> Candidates:
    """Sort candidates by descending score; candidates of equal score keep their order."""
    _, order = jax.lax.top_k(candidates.scores, len(candidates.scores))
    return jax.tree.map(lambda x: x[order], candidates)


def _take_first(candidates: Candidates, size: int) -> Candidates:
    """Return the first `size` candidates in the mask; zeros follow if there are fewer."""
    missing = max(0, size - len(candidates.mask))
    padded = jax.tree.map(
        lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), candidates
    )
    # Without a sort, and with indices in bounds, as ONNX requires.
    counts, last = jnp.cumsum(padded.mask), len(padded.mask) - 1
    num_before = jnp.sum(counts[:, None] < jnp.arange(1, size + 1), axis=0)
    is_real, indices = num_before <= last, jnp.minimum(num_before, last)

    def take(x):
        keep = is_real.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(keep, x[indices], jnp.zeros((), x.dtype))

    return jax.tree.map(take, padded)
