"""Detection in images of any size: what depends on the size is computed by the exported program.

The shapes of such a program contain symbolic dimensions
(https://docs.jax.dev/en/latest/export/shape_poly.html). Height and width are multiples of the
stride of the coarsest level, so that every level has exactly half the size of the one before.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from retinanet_jax.config import anchors_per_cell
from retinanet_jax.core.structures import Array
from retinanet_jax.data.sizes import SIZE_MULTIPLE
from retinanet_jax.modeling import image_anchors
from retinanet_jax.models.retinanet import Outputs


def size_multiple(config: ConfigDict) -> int:
    """Return the number of pixels of which height and width of such an image are multiples."""
    return max(2**config.anchors.max_level, SIZE_MULTIPLE)


def known_shape(shape: Sequence[Any]) -> list[int | None]:
    """Return a shape with None for each symbolic dimension."""
    return [size if isinstance(size, int) else None for size in shape]


def anchors_of(image_size: tuple[Any, Any], config: ConfigDict) -> tuple[Array, ...]:
    """Return the anchors of an image size that may be symbolic, as `modeling.image_anchors`.

    Args:
        image_size: Height and width; symbolic ones are multiples of `size_multiple`.
        config: A run's config; its section `anchors` is used.
    """
    if None not in known_shape(image_size):
        return image_anchors(image_size, config)
    levels = range(config.anchors.min_level, config.anchors.max_level + 1)
    num_anchors = anchors_per_cell(config)
    side = size_multiple(config)
    smallest = image_anchors((side, side), config)
    anchors = []
    for level, of_smallest in zip(levels, smallest, strict=True):
        first_cell = of_smallest[:num_anchors]
        y, x = (jnp.arange(side // 2**level, dtype=jnp.float32) * 2**level for side in image_size)
        corner = jnp.stack(jnp.broadcast_arrays(y[:, None], x[None, :]), axis=-1)  # h w 2
        shifted = jnp.concatenate([corner, corner], axis=-1)[:, :, None] + first_cell  # h w a 4
        anchors.append(shifted.reshape(-1, 4))
    return tuple(anchors)


def with_more_anchors(
    outputs: Outputs, anchors: tuple[Array, ...], count: int
) -> tuple[Outputs, tuple[Array, ...]]:
    """Return outputs and anchors with `count` more anchors per level, which have the lowest logits.

    With at least `top_k` more anchors, the number of a level's candidates is not symbolic.

    Args:
        outputs: The network's outputs.
        anchors: The anchors of each level.
        count: The number of additional anchors per level.
    """

    def padded(array: Array, value: float) -> jax.Array:
        widths = [(0, 0)] * array.ndim
        widths[-2] = (0, count)
        return jnp.pad(array, widths, constant_values=value)

    logits = tuple(padded(level, -jnp.inf) for level in outputs.logits)
    deltas = tuple(padded(level, 0.0) for level in outputs.deltas)
    return Outputs(logits, deltas), tuple(padded(level, 0.0) for level in anchors)
