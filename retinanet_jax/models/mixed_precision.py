"""What is float32 in a network that computes in bfloat16: final results, and gradients on demand.

By default the gradient of a kernel has the compute dtype, and the devices add up their gradients in
it: in bfloat16, to 8 bits. In float32 they exchange twice as many bytes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.taps import with_kernel_gradient


@dataclasses.dataclass(frozen=True)
class Float32Gradients:
    """A convolution of a float32 kernel, which it rounds to the dtype of the images.

    The results, and the gradient of the images, are those of the rounded kernel. The gradient of
    the kernel is a float32 sum of products of the rounded operands.

    Attributes:
        convolve: The convolution of the rounded operands.
    """

    convolve: Convolve

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        kernel: Float[Array, "i j c D"],
        strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        **options: Any,
    ) -> Float[Array, "B h w D"]:
        """Convolve like `jax.lax.conv_general_dilated`, on images with channels last.

        Args:
            images: Images or feature maps.
            kernel: The kernel, in float32.
            strides: Vertical and horizontal stride.
            padding: (before, after) for rows and columns, in pixels.
            **options: Further arguments of `jax.lax.conv_general_dilated`; dilations must be 1.
        """
        groups = options.get("feature_group_count", 1)

        def convolve_rounded(images, kernel):
            rounded = kernel.astype(images.dtype)
            return self.convolve(images, rounded, strides, padding, **options)

        def gradient(images, cotangent):
            cotangent, sides = cotangent.astype(images.dtype), kernel.shape[:2]
            return kernel_gradient(images, cotangent, sides, strides, padding, groups=groups)

        return with_kernel_gradient(convolve_rounded, gradient)(images, kernel)


def kernel_gradient(
    images: Float[Array, "B H W C"],
    cotangent: Float[Array, "B h w D"],
    kernel_sides: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    groups: int,
) -> Float[Array, "i j c D"]:
    """Return the gradient of a convolution with respect to its kernel, in at least float32.

    Args:
        images: Images or feature maps.
        cotangent: The gradient with respect to the results.
        kernel_sides: Rows and columns of the kernel.
        strides: Vertical and horizontal stride.
        padding: (before, after) for rows and columns, in pixels.
        groups: The number of groups, which divides C and D; c is C / groups.
    """
    # It is a convolution of the images with the gradient: images are its channels, channels are its
    # images. The padding after the images is what results in a kernel of this size.
    sides = [
        (before, stride * (size - 1) + taps - side - before)
        for (before, _), stride, size, taps, side in zip(
            padding,
            strides,
            cotangent.shape[1:3],
            kernel_sides,
            images.shape[1:3],
            strict=True,
        )
    ]
    return lax.conv_general_dilated(
        images,
        cotangent,
        window_strides=(1, 1),
        padding=sides,
        rhs_dilation=strides,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=groups,
        preferred_element_type=jnp.promote_types(images.dtype, jnp.float32),
    )


def with_float32_results(convolve: Convolve | None, dtype: DTypeLike) -> Convolve:
    """Return a convolution of operands in `dtype` that does not round its results to `dtype`.

    Its gradients are those of `convolve`. JAX itself would convert their operands to float32.

    Args:
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
        dtype: The dtype of the operands, such as bfloat16; results are in at least float32.
    """
    if isinstance(convolve, Float32Gradients):
        return Float32Gradients(with_float32_results(convolve.convolve, dtype))
    convolve = convolve or lax.conv_general_dilated
    result_dtype = jnp.promote_types(dtype, jnp.float32)

    def convolve_with_float32_results(
        lhs: Float[Array, "..."], rhs: Float[Array, "..."], *arguments: Any, **options: Any
    ) -> Float[Array, "..."]:
        @jax.custom_vjp
        def accumulate(lhs, rhs):
            return convolve(lhs, rhs, *arguments, **options, preferred_element_type=result_dtype)

        def backward(operands, cotangent):
            _, pull_back = jax.vjp(lambda *pair: convolve(*pair, *arguments, **options), *operands)
            return pull_back(cotangent.astype(dtype))

        accumulate.defvjp(lambda *operands: (accumulate(*operands), operands), backward)
        return accumulate(lhs.astype(dtype), rhs.astype(dtype))

    return convolve_with_float32_results


def promotion(convolve: Convolve | None) -> Any:
    """Return what converts the operands of `flax.linen.Conv` before `convolve`.

    Args:
        convolve: The convolution function; a `Float32Gradients` rounds the kernel itself.
    """
    return _keep_kernel if isinstance(convolve, Float32Gradients) else promote_dtype


def _keep_kernel(images: Array, kernel: Array, *others: Any, dtype: DTypeLike | None) -> Any:
    """Convert all operands of a convolution to the compute dtype, except for the kernel."""
    images, *promoted = promote_dtype(images, *others, dtype=dtype)
    return images, kernel, *promoted
