"""Convolution on CPUs, where XLA's own leaves a factor on the table.

XLA's CPU backend takes 3 to 15 times as long for the gradient of a kernel as for the convolution,
and has no fast algorithm for 3x3 kernels. Matrix products, which it does well, help both: 1x1
kernels are one already, and Winograd's algorithm makes 3x3 ones of them. On GPUs and TPUs the
libraries behind XLA see to all this.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Convolve = Callable[..., Array]  # called as jax.lax.conv_general_dilated is

# Winograd's minimal filtering, F(4x4, 3x3) (Lavin & Gray 2015, arXiv 1509.09308): a tile of 4 x 4
# results is made of 6 x 6 pixels, with 36 products instead of 144.
TILE, TAPS = 4, 3
SPAN = TILE + TAPS - 1
# Polynomials are multiplied by their values at these points and at infinity. Of the sets tried
# these lose least to rounding: twice what XLA's own convolution does.
POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
# Below these the transforms cost more than they save (measured on two cores in float32).
MIN_CHANNELS, MIN_TILES = 128, 64


def conv_general_dilated(
    lhs: Float[Array, "B H W C"],
    rhs: Float[Array, "i j c D"],
    window_strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "B h w D"]:
    """`jax.lax.conv_general_dilated` for CPUs: the same but for rounding.

    Made for `flax.linen.Conv`, which takes such a function; `options` are what it passes.
    """
    if fits_winograd(lhs, rhs, window_strides, padding):
        return winograd(lhs, rhs)
    if rhs.shape[:3] == (1, 1, lhs.shape[3]):
        rows, columns = window_strides
        return jnp.einsum("bhwc,cd->bhwd", lhs[:, ::rows, ::columns], rhs[0, 0])
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def fits_winograd(
    images: Float[Array, "B H W C"],
    kernel: Float[Array, "i j c D"],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Whether `winograd` can do this convolution, and does it faster and as well."""
    batch, height, width, channels = images.shape
    possible = (
        kernel.shape[:3] == (TAPS, TAPS, channels)  # in groups the kernel has fewer channels
        and tuple(strides) == (1, 1)
        and [tuple(sides) for sides in padding] == [(1, 1), (1, 1)]
        and jnp.finfo(images.dtype).bits >= 32
    )
    tiles = batch * math.prod(_count_tiles(height, width))
    return possible and min(kernel.shape[2:]) >= MIN_CHANNELS and tiles >= MIN_TILES


@jax.custom_vjp
def winograd(
    images: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B H W D"]:
    """Convolve with a 3x3 kernel, stride 1, a row and a column of zeros around the images.

    Its gradients are made of the same products; JAX's own, of the slices one by one, take longer.
    """
    batch, height, width, _ = images.shape
    rows, columns = _count_tiles(height, width)
    products = _transform(PIXELS, _pixels_of_tiles(images)) @ _transform(KERNEL, kernel)
    results = _transform(RESULTS, products.reshape(SPAN, SPAN, batch, rows, columns, -1))
    results = results.reshape(TILE, TILE, batch, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return results.reshape(batch, TILE * rows, TILE * columns, -1)[:, :height, :width]


def _winograd_forward(images, kernel):
    return winograd(images, kernel), (images, kernel)


def _winograd_backward(residuals, cotangent):
    images, kernel = residuals
    pixels = _transform(PIXELS, _pixels_of_tiles(images))
    shares = _transform(RESULTS.T, _tiles(cotangent, before=0, more=0))
    products = jnp.einsum("ptc,ptd->pcd", pixels, shares)
    kernel_gradient = _transform(KERNEL.T, products.reshape(SPAN, SPAN, *kernel.shape[2:]))
    # A pixel meets the kernel the other way round.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return winograd(cotangent, turned), kernel_gradient.reshape(kernel.shape)


winograd.defvjp(_winograd_forward, _winograd_backward)


def _count_tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // TILE), -(-width // TILE)


def _tiles(
    images: Float[Array, "B H W C"], *, before: int, more: int
) -> Float[Array, "4 4 B rows columns C"]:
    """The pixels by their place in their tile, which comes first; `more` tiles follow the last.

    The first tile begins `before` the first pixel.
    """
    batch, height, width, channels = images.shape
    rows, columns = (count + more for count in _count_tiles(height, width))
    after = TILE * rows - height - before, TILE * columns - width - before
    images = jnp.pad(images, ((0, 0), (before, after[0]), (before, after[1]), (0, 0)))
    tiles = images.reshape(batch, rows, TILE, columns, TILE, channels)
    return tiles.transpose(2, 4, 0, 1, 3, 5)


def _pixels_of_tiles(images: Float[Array, "B H W C"]) -> Float[Array, "6 6 B rows columns C"]:
    """The pixels that each tile of results is made of: the last two are the next tile's first."""
    tiles, overlap = _tiles(images, before=1, more=1), SPAN - TILE
    tiles = jnp.concatenate([tiles[:, :, :, :-1], tiles[:overlap, :, :, 1:]], axis=0)
    return jnp.concatenate([tiles[:, :, ..., :-1, :], tiles[:, :overlap, ..., 1:, :]], axis=1)


def _transform(matrix: np.ndarray, grid: Float[Array, "i j *rest C"]) -> Float[Array, "p T C"]:
    """matrix @ (i j) @ matrix.T for each of the T C; as one product, which is fastest."""
    size = matrix.shape[1] ** 2
    both = np.kron(matrix, matrix).astype(grid.dtype)
    return jnp.dot(both, grid.reshape(size, -1)).reshape(len(both), -1, grid.shape[-1])


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pixels (SPAN SPAN), kernel (SPAN TAPS) and results (TILE SPAN), in float64.

    Sliding a kernel over pixels is the transpose of multiplying polynomials, and those are
    multiplied by their values at SPAN points.
    """

    def values(coefficients: int) -> np.ndarray:
        at_infinity = np.eye(coefficients)[-1:]
        return np.vstack([np.vander(POINTS, coefficients, increasing=True), at_infinity])

    pixels, kernel = np.linalg.inv(values(SPAN)).T, values(TAPS)
    # What the one is multiplied by the other is divided by: alike in size they lose fewer digits.
    sizes = np.linalg.norm(kernel, axis=1) / np.linalg.norm(pixels, axis=1)
    balance = 2.0 ** np.round(np.log2(sizes) / 2)[:, None]
    return pixels * balance, kernel / balance, values(TILE).T


PIXELS, KERNEL, RESULTS = _matrices()
