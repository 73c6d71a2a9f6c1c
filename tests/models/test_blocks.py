"""The stem's convolution on blocks of 2 x 2 pixels is XLA's convolution, except for rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from retinanet_jax.modeling import build_model
from retinanet_jax.models import convolution
from retinanet_jax.models.blocks import to_blocks

PADDING = ((3, 3), (3, 3))
DIMENSIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
CONVOLUTIONS = pytest.mark.parametrize(
    "convolve", [convolution.conv_general_dilated, convolution.conv_general_dilated_on_tpu]
)


def random_arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize("by_products", [False, True])
def test_a_block_has_the_channels_of_its_first_row_and_then_of_its_second(by_products):
    image = jnp.arange(8.0).reshape(1, 2, 4, 1)  # two blocks: 0 1 | 2 3 and 4 5 | 6 7
    expected = [[[[0, 1, 4, 5], [2, 3, 6, 7]]]]
    np.testing.assert_array_equal(to_blocks(image, by_products=by_products), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_change_no_bit_of_a_pixel(dtype):
    (images,) = random_arrays((2, 4, 6, 3))
    images = jnp.array(images, dtype)
    moved = to_blocks(images, by_products=False)
    by_products = functools.partial(to_blocks, by_products=True)
    np.testing.assert_array_equal(by_products(images), moved)
    assert "Precision.HIGHEST" in str(
        jax.make_jaxpr(by_products)(images)
    )  # a TPU's default is 8 bits


@CONVOLUTIONS
def test_result_and_gradients_are_those_of_single_pixels(convolve):
    @functools.partial(jax.jit, static_argnums=0)
    def gradients(function, images, kernel, cotangent):
        pixels = functools.partial(
            function, window_strides=(2, 2), padding=PADDING, feature_group_count=1, **DIMENSIONS
        )
        result, pull_back = jax.vjp(pixels, images, kernel)
        return result, *pull_back(cotangent)

    with jax.enable_x64(True):
        arrays = random_arrays((2, 10, 12, 3), (7, 7, 3, 4), (2, 5, 6, 4))
        traced = str(jax.make_jaxpr(functools.partial(gradients, convolve))(*arrays))
        assert "f64[2,5,6,12]" in traced  # the blocks
        ours, expected = (gradients(f, *arrays) for f in (convolve, lax.conv_general_dilated))
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


OTHERS = {
    "odd height": ((1, 9, 8, 3), (7, 7, 3, 4), (2, 2), PADDING, {}),
    "odd width": ((1, 8, 9, 3), (7, 7, 3, 4), (2, 2), PADDING, {}),
    "stride 1": ((1, 8, 8, 3), (7, 7, 3, 4), (1, 1), PADDING, {}),
    "other padding": ((1, 8, 8, 3), (7, 7, 3, 4), (2, 2), ((2, 3), (2, 3)), {}),
    "named padding": ((1, 8, 8, 3), (7, 7, 3, 4), (2, 2), "SAME", {}),
    "other kernel": ((1, 8, 8, 3), (5, 5, 3, 4), (2, 2), PADDING, {}),
    "other channels": ((1, 8, 8, 4), (7, 7, 4, 4), (2, 2), PADDING, {}),
    "dilation": ((1, 16, 16, 3), (7, 7, 3, 4), (2, 2), PADDING, {"rhs_dilation": (2, 2)}),
}


@CONVOLUTIONS
@pytest.mark.parametrize("case", OTHERS)
def test_other_convolutions_have_no_blocks(convolve, case):
    images, kernel, strides, padding, options = OTHERS[case]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (images, kernel)]

    def program(function):
        arguments = {"window_strides": strides, "padding": padding, **DIMENSIONS, **options}
        return str(jax.make_jaxpr(functools.partial(function, **arguments))(*shapes))

    assert program(convolve) == program(lax.conv_general_dilated)


@pytest.mark.parametrize(
    ("platform", "space", "convolve"),
    [
        ("cpu", 1, convolution.conv_general_dilated),
        ("tpu", 1, convolution.conv_general_dilated_on_tpu),
        ("tpu", 2, None),
        ("gpu", 1, None),
        ("any", 1, None),
    ],
)
def test_a_platform_has_its_convolutions_if_images_are_not_split(
    toy_config, platform, space, convolve
):
    config = toy_config.copy_and_resolve_references().unlock()
    config.space = space
    assert build_model(config, 3, platform=platform).convolve is convolve
