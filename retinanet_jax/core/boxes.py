"""Boxes: areas, overlaps, clipping, the regression targets, and conversions of the format.

All functions but `pairwise_iou` work elementwise over the leading axes. `core.structures` defines
the format of boxes.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from retinanet_jax.core.structures import Array

# The sides of a decoded box are at most 1000 / 16 times its anchor's, as in detectron2 and
# torchvision: exp() of an untrained network's output stays finite.
MAX_LOG_SIZE = math.log(1000 / 16)


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Return the areas in square pixels; 0 for empty and inverted boxes."""
    ymin, xmin, ymax, xmax = jnp.unstack(boxes, axis=-1)
    return jnp.maximum(ymax - ymin, 0) * jnp.maximum(xmax - xmin, 0)


def intersection(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
    """Return the area of overlap of each box of `a` with its box of `b`, in square pixels.

    Args:
        a: Boxes.
        b: Boxes; the leading axes broadcast against those of `a`.
    """
    a_ymin, a_xmin, a_ymax, a_xmax = jnp.unstack(a, axis=-1)
    b_ymin, b_xmin, b_ymax, b_xmax = jnp.unstack(b, axis=-1)
    height = jnp.minimum(a_ymax, b_ymax) - jnp.maximum(a_ymin, b_ymin)
    width = jnp.minimum(a_xmax, b_xmax) - jnp.maximum(a_xmin, b_xmin)
    return jnp.maximum(height, 0) * jnp.maximum(width, 0)


def paired_iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
    """Return the intersection over union (IoU) of each box of `a` with its box of `b`.

    Args:
        a: Boxes.
        b: Boxes; the leading axes broadcast against those of `a`.

    Returns:
        The IoUs, in [0, 1]; 0 where both boxes are empty.
    """
    overlap = intersection(a, b)
    return _safe_ratio(overlap, area(a) + area(b) - overlap)


def pairwise_iou(a: Float[Array, "A 4"], b: Float[Array, "M 4"]) -> Float[Array, "A M"]:
    """Return the intersection over union (IoU) of every box of `a` with every box of `b`.

    Args:
        a: A boxes.
        b: M boxes.

    Returns:
        The IoUs, in [0, 1]; 0 where both boxes are empty.
    """
    return paired_iou(a[:, None], b[None, :])


def giou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
    """Return the generalized IoU of each box of `a` with its box of `b`, in [-1, 1].

    GIoU = IoU - (hull - union) / hull, where the hull is the smallest box that contains both
    (https://arxiv.org/abs/1902.09630, algorithm 1). Value and gradient are finite for empty boxes.

    Args:
        a: Boxes.
        b: Boxes; the leading axes broadcast against those of `a`.
    """
    top_left = jnp.minimum(a[..., :2], b[..., :2])
    bottom_right = jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    overlap = intersection(a, b)
    union = area(a) + area(b) - overlap
    return _safe_ratio(overlap, union) - _safe_ratio(hull - union, hull)


def clip(
    boxes: Float[Array, "*batch 4"], height: ArrayLike, width: ArrayLike
) -> Float[Array, "*batch 4"]:
    """Clip boxes to an image; boxes outside the image become empty.

    Args:
        boxes: Boxes in pixels of the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    limit = jnp.array([height, width, height, width], boxes.dtype)
    return jnp.clip(boxes, 0, limit)


def encode(
    boxes: Float[Array, "*batch 4"], anchors: Float[Array, "*batch 4"]
) -> Float[Array, "*batch 4"]:
    """Return the deltas (dy, dx, dh, dw) that transform anchors into boxes.

    (dy, dx) is the distance between the centers in units of the anchor's sides, and (dh, dw) is the
    logarithm of box side over anchor side (R-CNN, https://arxiv.org/abs/1311.2524, appendix C).

    Args:
        boxes: Boxes with positive sides.
        anchors: Anchors with positive sides, one per box.
    """
    box_center, box_size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    shift = (box_center - anchor_center) / anchor_size
    return jnp.concatenate([shift, jnp.log(box_size / anchor_size)], axis=-1)


def decode(
    deltas: Float[Array, "*batch 4"], anchors: Float[Array, "*batch 4"]
) -> Float[Array, "*batch 4"]:
    """Return the anchors transformed by deltas; this is the inverse of `encode`.

    Args:
        deltas: (dy, dx, dh, dw); dh and dw are capped at MAX_LOG_SIZE. Half-precision deltas are
            converted to the anchors' precision.
        anchors: One anchor per delta.
    """
    deltas = deltas.astype(jnp.result_type(deltas, anchors))
    anchor_center, anchor_size = _center_and_size(anchors)
    center = anchor_center + deltas[..., :2] * anchor_size
    half_size = anchor_size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SIZE)) / 2
    return jnp.concatenate([center - half_size, center + half_size], axis=-1)


# The conversions below convert numpy arrays with numpy: nothing is compiled or sent to a device.


def yxyx_to_xyxy(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Convert boxes to (xmin, ymin, xmax, ymax), the format of torchvision and Pascal VOC."""
    ymin, xmin, ymax, xmax = _columns(boxes)
    return boxes.__array_namespace__().stack([xmin, ymin, xmax, ymax], axis=-1)


def xyxy_to_yxyx(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Convert boxes from (xmin, ymin, xmax, ymax), the format of torchvision and Pascal VOC."""
    xmin, ymin, xmax, ymax = _columns(boxes)
    return boxes.__array_namespace__().stack([ymin, xmin, ymax, xmax], axis=-1)


def yxyx_to_xywh(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Convert boxes to (xmin, ymin, width, height), the format of COCO."""
    ymin, xmin, ymax, xmax = _columns(boxes)
    return boxes.__array_namespace__().stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)


def xywh_to_yxyx(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Convert boxes from (xmin, ymin, width, height), the format of COCO."""
    xmin, ymin, width, height = _columns(boxes)
    return boxes.__array_namespace__().stack([ymin, xmin, ymin + height, xmin + width], axis=-1)


def _columns(boxes: Float[Array, "*batch 4"]) -> tuple[Array, ...]:
    """Return the four coordinates, each of shape "*batch"."""
    return tuple(boxes[..., column] for column in range(4))


def _center_and_size(boxes: Float[Array, "*batch 4"]) -> tuple[Array, Array]:
    """Return the centers (y, x) and the sizes (height, width), each of shape "*batch 2"."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _safe_ratio(numerator: Array, denominator: Array) -> Array:
    """Return numerator / denominator, and 0 where the denominator is 0."""
    # The inner `where` keeps the gradient finite where the denominator is 0.
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)
