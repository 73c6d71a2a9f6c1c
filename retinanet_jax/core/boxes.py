"""Boxes: area, overlap, clipping, the regression code, and other people's formats.

Everything is elementwise over leading axes, which broadcast. See `types` for what a box is.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from retinanet_jax.core.types import Array

# A predicted side is at most 1000 / 16 times its anchor's: exp() of an untrained output is finite.
MAX_LOG_SIZE = math.log(1000 / 16)


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Area in square pixels; 0 for empty and inverted boxes."""
    ymin, xmin, ymax, xmax = jnp.unstack(boxes, axis=-1)
    return jnp.maximum(ymax - ymin, 0) * jnp.maximum(xmax - xmin, 0)


def intersection(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
    """Area in square pixels that each `a` shares with its `b`."""
    a_ymin, a_xmin, a_ymax, a_xmax = jnp.unstack(a, axis=-1)
    b_ymin, b_xmin, b_ymax, b_xmax = jnp.unstack(b, axis=-1)
    height = jnp.minimum(a_ymax, b_ymax) - jnp.maximum(a_ymin, b_ymin)
    width = jnp.minimum(a_xmax, b_xmax) - jnp.maximum(a_xmin, b_xmin)
    return jnp.maximum(height, 0) * jnp.maximum(width, 0)


def paired_iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
    """Intersection over union of each `a` with its `b`; 0 where both are empty."""
    shared = intersection(a, b)
    return _ratio(shared, area(a) + area(b) - shared)


def pairwise_iou(a: Float[Array, "A 4"], b: Float[Array, "M 4"]) -> Float[Array, "A M"]:
    """Intersection over union of every `a` with every `b`; 0 where both are empty."""
    return paired_iou(a[:, None], b[None, :])


def giou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
    """Generalised IoU of each `a` with its `b`, in [-1, 1] (Rezatofighi et al. 2019, algorithm 1).

    IoU minus the share of the enclosing box that neither covers. Value and gradient are finite for
    empty boxes too.
    """
    top_left = jnp.minimum(a[..., :2], b[..., :2])
    bottom_right = jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return _ratio(shared, union) - _ratio(hull - union, hull)


def clip(
    boxes: Float[Array, "*batch 4"], height: ArrayLike, width: ArrayLike
) -> Float[Array, "*batch 4"]:
    """Cuts boxes to a picture of `height` x `width` pixels; outside ones become empty."""
    limit = jnp.array([height, width, height, width], boxes.dtype)
    return jnp.clip(boxes, 0, limit)


def encode(
    boxes: Float[Array, "*batch 4"], anchors: Float[Array, "*batch 4"]
) -> Float[Array, "*batch 4"]:
    """Deltas (dy, dx, dh, dw) that lead from anchors to boxes (Girshick 2014, appendix C).

    The centre's shift in units of the anchor's sides, and the log of the sides' ratio. Both must
    have positive sides.
    """
    box_centre, box_size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    shift = (box_centre - anchor_centre) / anchor_size
    return jnp.concatenate([shift, jnp.log(box_size / anchor_size)], axis=-1)


def decode(
    deltas: Float[Array, "*batch 4"], anchors: Float[Array, "*batch 4"]
) -> Float[Array, "*batch 4"]:
    """Boxes that deltas (dy, dx, dh, dw) make of anchors: the inverse of `encode`.

    dh and dw are cut at MAX_LOG_SIZE. Half-precision deltas are computed in the anchors' precision.
    """
    deltas = deltas.astype(jnp.result_type(deltas, anchors))
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + deltas[..., :2] * anchor_size
    half_size = anchor_size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SIZE)) / 2
    return jnp.concatenate([centre - half_size, centre + half_size], axis=-1)


# The conversions below leave numpy's arrays numpy's: off the device, and nothing is compiled.


def yxyx_to_xyxy(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """To (xmin, ymin, xmax, ymax): torchvision, Pascal VOC."""
    ymin, xmin, ymax, xmax = _columns(boxes)
    return boxes.__array_namespace__().stack([xmin, ymin, xmax, ymax], axis=-1)


def xyxy_to_yxyx(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """From (xmin, ymin, xmax, ymax): torchvision, Pascal VOC."""
    xmin, ymin, xmax, ymax = _columns(boxes)
    return boxes.__array_namespace__().stack([ymin, xmin, ymax, xmax], axis=-1)


def yxyx_to_xywh(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """To (xmin, ymin, width, height): COCO."""
    ymin, xmin, ymax, xmax = _columns(boxes)
    return boxes.__array_namespace__().stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)


def xywh_to_yxyx(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """From (xmin, ymin, width, height): COCO."""
    xmin, ymin, width, height = _columns(boxes)
    return boxes.__array_namespace__().stack([ymin, xmin, ymin + height, xmin + width], axis=-1)


def _columns(boxes: Float[Array, "*batch 4"]) -> tuple[Array, ...]:
    return tuple(boxes[..., column] for column in range(4))


def _centre_and_size(boxes: Float[Array, "*batch 4"]) -> tuple[Array, Array]:
    """(y, x) of the centres and (height, width), each "*batch 2"."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where whole is 0: the inner `where` keeps the gradient finite there."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
