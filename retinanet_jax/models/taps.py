"""The gradient of the kernel of a convolution, as matrix products: one for each tap.

XLA's CPU backend takes about 200 times as long for it as for the convolution if that is in groups.
Without groups, these products take .6 to 1.0 of XLA's time on all but the smallest maps. The
convolution itself is fast.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# So many channels are multiplied at once, though the products of different groups are not used:
# many products of few channels would take longer.
CHANNELS = 64


def convolve_taps(
    images: Float[Array, "B H W C"],
    kernel: Float[Array, "i j c D"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    groups: int,
    **options: Any,
) -> Float[Array, "B h w D"]:
    """Convolve like `jax.lax.conv_general_dilated`, with a faster gradient of the kernel.

    Args:
        images: Images or feature maps.
        kernel: The kernel; c is C / groups.
        strides: Vertical and horizontal stride.
        padding: (before, after) for rows and columns, in pixels.
        groups: The number of groups of channels, which divides C and D.
        **options: Further arguments of `jax.lax.conv_general_dilated`.
    """
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        feature_group_count=groups,
        **options,
    )

    def kernel_gradient(images, cotangent):
        taps = shifted_images(images, kernel.shape[:2], cotangent.shape, strides, padding)
        blocks = [product_within_groups(x, cotangent, groups) for x in taps]
        return jnp.stack(blocks).reshape(kernel.shape)

    return with_kernel_gradient(convolve, kernel_gradient)(images, kernel)


def with_kernel_gradient(
    convolve: Callable[[Array, Array], Array], kernel_gradient: Callable[[Array, Array], Array]
) -> Callable[[Array, Array], Array]:
    """Return a convolution with another gradient of its kernel.

    Args:
        convolve: From images and a kernel to results. The gradient of the images is its own.
        kernel_gradient: From images and the gradient of the results to that of the kernel.
    """

    def backward(operands, cotangent):
        images, kernel = operands
        (image_gradient,) = jax.vjp(lambda x: convolve(x, kernel), images)[1](cotangent)
        return image_gradient, kernel_gradient(images, cotangent).astype(kernel.dtype)

    convolution = jax.custom_vjp(convolve)
    convolution.defvjp(lambda *operands: (convolve(*operands), operands), backward)
    return convolution


def shifted_images(
    images: Float[Array, "B H W C"],
    kernel_size: Sequence[int],
    result_shape: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[Float[Array, "B h w C"]]:
    """Return, for each tap of the kernel by row and column, the pixel that each result has there.

    Args:
        images: Images or feature maps.
        kernel_size: Rows and columns of the kernel.
        result_shape: B h w D.
        strides: As in `convolve_taps`.
        padding: As in `convolve_taps`.
    """
    # Padding may be negative.
    sides = [(0, 0), *padding, (0, 0)]
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(*side, 0) for side in sides])
    (row_stride, column_stride), (_, height, width, _) = strides, result_shape
    return [
        padded[
            :,
            row : row + row_stride * (height - 1) + 1 : row_stride,
            column : column + column_stride * (width - 1) + 1 : column_stride,
        ]
        for row in range(kernel_size[0])
        for column in range(kernel_size[1])
    ]


def product_within_groups(
    x: Float[Array, "B h w C"], y: Float[Array, "B h w D"], groups: int
) -> Float[Array, "c D"]:
    """Return the sums over all pixels of the products of x and y in the same group.

    Args:
        x: A feature map.
        y: Another one.
        groups: The number of groups, which divides C and D; c is C / groups.
    """
    inputs, outputs = x.shape[-1] // groups, y.shape[-1] // groups
    divisors = (n for n in range(1, groups + 1) if groups % n == 0)
    together = max((n for n in divisors if n * inputs <= CHANNELS), default=1)
    x = x.reshape(-1, groups // together, together * inputs)
    y = y.reshape(-1, groups // together, together * outputs)
    products = jnp.einsum("pgc,pgd->gcd", x, y)
    products = products.reshape(-1, together, inputs, together, outputs)
    within = jnp.einsum("gacad->cgad", products)  # the diagonal: the same group
    return within.reshape(inputs, -1)
