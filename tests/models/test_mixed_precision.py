"""Gradients of kernels in float32: those of XLA for the rounded operands, without rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from retinanet_jax.models.mixed_precision import Float32Gradients

CASES = {  # the shapes of images and kernel, the strides, the padding and the groups
    "3x3": ((2, 9, 7, 4), (3, 3, 4, 6), (1, 1), ((1, 1), (1, 1)), 1),
    "stride": ((2, 9, 8, 4), (3, 3, 4, 6), (2, 2), ((1, 1), (1, 1)), 1),
    "1x1 with a stride": ((2, 9, 8, 4), (1, 1, 4, 6), (2, 2), ((0, 0), (0, 0)), 1),
    "stem": ((1, 16, 12, 3), (7, 7, 3, 5), (2, 2), ((3, 3), (3, 3)), 1),
    "groups": ((2, 8, 9, 8), (3, 3, 2, 12), (2, 1), ((1, 1), (1, 1)), 4),
    "uneven": ((1, 6, 5, 2), (2, 3, 2, 3), (3, 2), ((0, 2), (1, 0)), 1),
}


def pull_back(function, images, kernel, cotangent):
    result, pull = jax.vjp(function, images, kernel)
    return result, *pull(cotangent.astype(result.dtype))


@pytest.mark.parametrize("case", CASES)
def test_only_the_gradient_of_the_kernel_is_not_rounded(case):
    images_shape, kernel_shape, strides, padding, groups = CASES[case]
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=images_shape), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)
    rounded = kernel.astype(jnp.bfloat16)

    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}

    def plain(images, kernel):
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)

    def with_float32_gradients(images, kernel):
        convolve = Float32Gradients(lax.conv_general_dilated)
        return convolve(images, kernel, strides, padding, **options)

    shape = jax.eval_shape(plain, images, rounded).shape
    cotangent = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    result, of_images, of_kernel = jax.jit(lambda *x: pull_back(with_float32_gradients, *x))(
        images, kernel, cotangent
    )
    expected, expected_of_images, _ = jax.jit(lambda *x: pull_back(plain, *x))(
        images, rounded, cotangent
    )
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(of_images, expected_of_images)
    with jax.enable_x64(True):
        operands = (np.asarray(x, np.float64) for x in (images, rounded, cotangent))
        _, _, exact = pull_back(plain, *map(jnp.asarray, operands))
    assert of_kernel.dtype == jnp.float32
    np.testing.assert_allclose(of_kernel, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
