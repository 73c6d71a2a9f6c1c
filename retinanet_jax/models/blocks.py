"""The convolution of the stem, computed on blocks of 2 x 2 pixels instead of single ones.

Three channels fill 3 of the 128 lanes of a TPU, and few of a CPU's. A block has 12 channels, and
the 7x7 convolution of stride 2 is a 4x4 convolution of stride 1 of the blocks: its kernel is the
same, with a row and a column of zeros in front and its taps arranged in blocks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

TAPS, BLOCK = 7, 2  # rows and columns of the kernel, and of a block
CHANNELS = 3


def fits_blocks(
    images: Float[Array, "B H W C"] | jax.ShapeDtypeStruct,
    kernel: Float[Array, "i j c D"] | jax.ShapeDtypeStruct,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Return whether a convolution is that of the stem, of images that consist of whole blocks.

    Args:
        images: Images or feature maps, or their shape and dtype.
        kernel: The kernel, or its shape and dtype.
        strides: Vertical and horizontal stride.
        padding: (before, after) for rows and columns, in pixels.
    """
    return (
        images.shape[3] == CHANNELS  # as many as the kernel's: without groups
        and kernel.shape[:3] == (TAPS, TAPS, CHANNELS)
        and tuple(strides) == (BLOCK, BLOCK)
        and [tuple(sides) for sides in padding] == [(TAPS // 2, TAPS // 2)] * 2
        and all(side % BLOCK == 0 for side in images.shape[1:3])
    )


def convolve_blocks(
    images: Float[Array, "B H W 3"],
    kernel: Float[Array, "7 7 3 D"],
    *,
    by_products: bool,
    **options: Any,
) -> Float[Array, "B h w D"]:
    """Convolve with stride 2 and zero padding of 3, on blocks of 2 x 2 pixels.

    Args:
        images: Images of even height and width.
        kernel: The kernel.
        by_products: As in `to_blocks`.
        **options: Further arguments of `jax.lax.conv_general_dilated`.
    """
    # Results depend on the pixels from 3 before to 3 after them: on 2 blocks before and 1 after.
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    side, features = (TAPS + 1) // BLOCK, kernel.shape[3]
    taps = taps.reshape(side, BLOCK, side, BLOCK, CHANNELS, features)
    taps = taps.transpose(0, 2, 1, 3, 4, 5).reshape(side, side, -1, features)
    blocks = to_blocks(images, by_products=by_products)
    return lax.conv_general_dilated(blocks, taps, (1, 1), ((2, 1), (2, 1)), **options)


def to_blocks(images: Float[Array, "B H W C"], *, by_products: bool) -> Float[Array, "B h w K"]:
    """Return blocks of 2 x 2 pixels, with channels in the order (row, column, channel).

    Args:
        images: Images of even height and width.
        by_products: Whether to collect the even columns and the odd ones by a matrix product, which
            is exact. On a TPU, where columns are in the lanes, moving them takes 10 times as long.
    """
    batch, height, width, channels = images.shape
    if by_products:
        columns = jnp.eye(width, dtype=images.dtype).reshape(width // BLOCK, BLOCK, width)
        images = jnp.einsum("bhwc,jqw->bhjqc", images, columns, precision="highest")
    rows = images.reshape(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK, channels)
    blocks = rows.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height // BLOCK, width // BLOCK, -1)
