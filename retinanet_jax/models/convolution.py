"""Convolutions for CPUs and TPUs that are faster than XLA's own.

XLA's CPU backend takes 3 to 15 times as long for the gradient of a kernel as for the convolution,
and has no fast algorithm for 3x3 kernels. Matrix products are fast, and they solve both problems:
1x1 convolutions are matrix products, and Winograd's algorithm reduces 3x3 convolutions to them. For
convolutions in groups or with a stride see `models.taps`. On GPUs and TPUs XLA's convolutions are
fast, except for the stem's on TPUs: see `models.blocks`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from retinanet_jax.models.blocks import convolve_blocks, fits_blocks
from retinanet_jax.models.taps import convolve_taps

Convolve = Callable[..., Array]  # with the signature of jax.lax.conv_general_dilated

# Images are B H W C, and kernels i j C D.
CHANNELS_LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# Winograd's minimal filtering F(4x4, 3x3) (https://arxiv.org/abs/1509.09308): a tile of 4 x 4
# results is computed from 6 x 6 pixels, with 36 products instead of 144.
TILE, TAPS = 4, 3
SPAN = TILE + TAPS - 1
# Polynomials are multiplied by their values at these points and at infinity. Of the sets tried,
# these have the smallest rounding error: twice that of XLA's own convolution.
POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
# The transforms cost more than they save if the images or the results have fewer channels than
# this, or if there is less than one tile for this many channels (the geometric mean of the numbers
# of both). Kernel gradients by `models.taps` take longer than XLA's with fewer channels, too.
# Measured on two cores in float32.
MIN_CHANNELS, MIN_FEATURES, CHANNELS_PER_TILE = 128, 32, 16


def conv_general_dilated(
    lhs: Shaped[Array, "..."],
    rhs: Shaped[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Shaped[Array, "..."]:
    """Convolve like `jax.lax.conv_general_dilated`, faster on CPUs and equal except for rounding.

    Pass it as `conv_general_dilated` to `flax.linen.Conv`. Convolutions that matrix products cannot
    compute, such as those with dilation, are left to XLA.

    Args:
        lhs: Images or feature maps.
        rhs: The kernel.
        window_strides: Vertical and horizontal stride.
        padding: As in `jax.lax.conv_general_dilated`: (before, after) for rows and columns, in
            pixels, or a name.
        **options: Further arguments of `jax.lax.conv_general_dilated`.
    """
    if not isinstance(padding, str) and is_plain(lhs, rhs, window_strides, options):
        groups = options.get("feature_group_count") or 1
        if fits_winograd(lhs, rhs, window_strides, padding):
            return winograd(lhs, rhs)
        if fits_blocks(lhs, rhs, window_strides, padding):
            return convolve_blocks(lhs, rhs, by_products=False, **options)
        is_padded = [tuple(sides) for sides in padding] != [(0, 0), (0, 0)]
        if rhs.shape[:2] == (1, 1) and not is_padded and groups == 1:
            row_stride, column_stride = window_strides
            return multiply_pixels(lhs[:, ::row_stride, ::column_stride], rhs[0, 0])
        if groups > 1 or lhs.shape[3] >= MIN_CHANNELS:
            others = {k: value for k, value in options.items() if k != "feature_group_count"}
            return convolve_taps(lhs, rhs, window_strides, padding, groups=groups, **others)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def conv_general_dilated_on_tpu(
    lhs: Shaped[Array, "..."],
    rhs: Shaped[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Shaped[Array, "..."]:
    """Convolve like `jax.lax.conv_general_dilated`, faster on TPUs and equal except for rounding.

    Only the convolution of the stem differs from XLA's.

    Args:
        lhs: As in `conv_general_dilated`.
        rhs: As in `conv_general_dilated`.
        window_strides: As in `conv_general_dilated`.
        padding: As in `conv_general_dilated`.
        **options: As in `conv_general_dilated`.
    """
    if (
        not isinstance(padding, str)
        and is_plain(lhs, rhs, window_strides, options)
        and fits_blocks(lhs, rhs, window_strides, padding)
    ):
        return convolve_blocks(lhs, rhs, by_products=True, **options)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


# By the platform of the devices. On GPUs XLA's own convolutions are used.
CONVOLUTIONS: Mapping[str, Convolve] = {
    "cpu": conv_general_dilated,
    "tpu": conv_general_dilated_on_tpu,
}


def multiply_pixels(
    images: Float[Array, "B h w C"], matrix: Float[Array, "C D"]
) -> Float[Array, "B h w D"]:
    """Return the product of each pixel and the matrix.

    Args:
        images: Images or feature maps.
        matrix: The matrix.
    """
    # As a matrix: for the gradient of a product of four axes XLA transposes a copy of the images.
    return jnp.dot(images.reshape(-1, len(matrix)), matrix).reshape(*images.shape[:3], -1)


def is_plain(
    lhs: Shaped[Array, "..."],
    rhs: Shaped[Array, "..."],
    window_strides: Sequence[int],
    options: Mapping[str, Any],
) -> bool:
    """Return whether a convolution is of channels-last images, and has no options but groups.

    Args:
        lhs: As in `conv_general_dilated`.
        rhs: As in `conv_general_dilated`.
        window_strides: As in `conv_general_dilated`.
        options: As in `conv_general_dilated`.
    """
    others = {name: value for name, value in options.items() if value is not None}
    dimensions = others.pop("dimension_numbers", None)
    dilations = [others.pop(name, (1, 1)) for name in ("lhs_dilation", "rhs_dilation")]
    groups, batch_groups = (others.pop(f"{axis}_group_count", 1) for axis in ("feature", "batch"))
    result_type = others.pop("preferred_element_type", lhs.dtype)
    return (
        not others
        and lhs.ndim == rhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimensions) == CHANNELS_LAST
        and lhs.shape[3] == rhs.shape[2] * groups
        and batch_groups == 1
        and all(tuple(dilation) == (1, 1) for dilation in dilations)
        and len(window_strides) == 2
        and min(window_strides) > 0
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.dtype == rhs.dtype == jnp.dtype(result_type)
    )


def fits_winograd(
    images: Float[Array, "B H W C"] | jax.ShapeDtypeStruct,
    kernel: Float[Array, "i j c D"] | jax.ShapeDtypeStruct,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Return whether `winograd` can compute a convolution, accurately, and is faster than XLA.

    Args:
        images: Images or feature maps, or their shape and dtype.
        kernel: The kernel, or its shape and dtype; c is C divided by the number of groups.
        strides: Vertical and horizontal stride.
        padding: (before, after) for rows and columns, in pixels.
    """
    batch, height, width, channels = images.shape
    is_possible = (
        kernel.shape[:3] == (TAPS, TAPS, channels)  # with groups the kernel has fewer channels
        and tuple(strides) == (1, 1)
        and [tuple(sides) for sides in padding] == [(1, 1), (1, 1)]
        and jnp.finfo(images.dtype).bits >= 32
    )
    features = kernel.shape[3]
    num_tiles = batch * math.prod(_count_tiles(height, width))
    return (
        is_possible
        and channels >= MIN_CHANNELS
        and features >= MIN_FEATURES
        and num_tiles >= math.sqrt(channels * features) / CHANNELS_PER_TILE
    )


@jax.custom_vjp
def winograd(
    images: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B H W D"]:
    """Convolve with a 3x3 kernel, stride 1 and zero padding of 1 by Winograd's algorithm.

    See https://arxiv.org/abs/1509.09308, section 4. The gradients are two further products in the
    transformed space, with the transformed gradient of the results in both.

    Args:
        images: Images or feature maps.
        kernel: The kernel.
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
    batch, height, width, channels = images.shape
    cotangents = _transform(RESULTS.T, _tiles(cotangent, before=0, extra=0))
    # Otherwise XLA would store the transformed pixels of the forward pass, which are 2.25 times as
    # large as the images, and the transformed kernels, four times as large as the kernels.
    pixels = _transform(PIXELS, _pixels_of_tiles(_computed_after(cotangent, images)))
    products = jnp.einsum("ptc,ptd->pcd", pixels, cotangents)
    kernel_gradient = _transform(KERNEL.T, products.reshape(SPAN, SPAN, *kernel.shape[2:]))
    kernel_gradient = kernel_gradient.reshape(kernel.shape)
    transposed_kernel = _computed_after(kernel_gradient, kernel).swapaxes(2, 3)
    # The transpose of the algorithm: from the results of a tile to the pixels that it depends on.
    tiles = _transform(PIXELS.T, cotangents @ _transform(KERNEL, transposed_kernel))
    tiles = tiles.reshape(SPAN, SPAN, batch, *_count_tiles(height, width), channels)
    (image_gradient,) = jax.linear_transpose(_pixels_of_tiles, images)(tiles)
    return image_gradient, kernel_gradient


winograd.defvjp(_winograd_forward, _winograd_backward)


def _computed_after(other: Float[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `value`, which is then computed after `other` is.

    XLA's CPU backend removes `lax.optimization_barrier` before it orders operations. It does not
    recognize that this factor is 1.
    """
    number = other.ravel()[0]
    is_any = (number == number) | (number != number)
    return value * is_any.astype(value.dtype)


def _count_tiles(height: int, width: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of tiles that cover an image."""
    return -(-height // TILE), -(-width // TILE)


def _tiles(
    images: Float[Array, "B H W C"], *, before: int, extra: int
) -> Float[Array, "4 4 B rows columns C"]:
    """Divide images into tiles; the first two axes are the position in the tile.

    The first tile starts `before` pixels before the image, and `extra` rows and columns of tiles
    are added at the end as padding.
    """
    batch, height, width, channels = images.shape
    rows, columns = (count + extra for count in _count_tiles(height, width))
    after = TILE * rows - height - before, TILE * columns - width - before
    images = jnp.pad(images, ((0, 0), (before, after[0]), (before, after[1]), (0, 0)))
    tiles = images.reshape(batch, rows, TILE, columns, TILE, channels)
    return tiles.transpose(2, 4, 0, 1, 3, 5)


def _pixels_of_tiles(images: Float[Array, "B H W C"]) -> Float[Array, "6 6 B rows columns C"]:
    """Return the 6 x 6 pixels that each tile depends on; those of adjacent tiles overlap by 2."""
    tiles, overlap = _tiles(images, before=1, extra=1), SPAN - TILE
    tiles = jnp.concatenate([tiles[:, :, :, :-1], tiles[:overlap, :, :, 1:]], axis=0)
    return jnp.concatenate([tiles[:, :, ..., :-1, :], tiles[:, :overlap, ..., 1:, :]], axis=1)


def _transform(matrix: np.ndarray, grid: Float[Array, "i j *rest C"]) -> Float[Array, "p T C"]:
    """Return matrix @ x @ matrix.T for each x of shape (i, j), by one product, which is fastest."""
    size = matrix.shape[1] ** 2
    both = np.kron(matrix, matrix).astype(grid.dtype)
    return jnp.dot(both, grid.reshape(size, -1)).reshape(len(both), -1, grid.shape[-1])


def _make_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the transforms of pixels (SPAN SPAN), kernel (SPAN TAPS) and results (TILE SPAN).

    Sliding a kernel over pixels is the transpose of multiplying two polynomials, which are
    multiplied by their values at SPAN points. Computed in float64.
    """

    def values(num_coefficients: int) -> np.ndarray:
        at_infinity = np.eye(num_coefficients)[-1:]
        return np.vstack([np.vander(POINTS, num_coefficients, increasing=True), at_infinity])

    pixels, kernel = np.linalg.inv(values(SPAN)).T, values(TAPS)
    # Multiplying a row of one matrix and dividing that of the other changes no result. Rounding
    # errors are least if the rows are of similar size; powers of two add no rounding themselves.
    sizes = np.linalg.norm(kernel, axis=1) / np.linalg.norm(pixels, axis=1)
    balance = 2.0 ** np.round(np.log2(sizes) / 2)[:, None]
    return pixels * balance, kernel / balance, values(TILE).T


PIXELS, KERNEL, RESULTS = _make_matrices()
