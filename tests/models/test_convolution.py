"""The CPU's convolutions: the same function and gradients as XLA's, and no more rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from retinanet_jax.models import convolution

DIMENSIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
ONE_AROUND = ((1, 1), (1, 1))


def plain(images, kernel, strides=(1, 1), padding=ONE_AROUND, **options):
    return lax.conv_general_dilated(images, kernel, strides, padding, **DIMENSIONS, **options)


def fast(images, kernel, strides=(1, 1), padding=ONE_AROUND, **options):
    return convolution.conv_general_dilated(
        images, kernel, strides, padding, **DIMENSIONS, **options
    )


def drawn(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


winograd = jax.jit(convolution.winograd)


@functools.partial(jax.jit, static_argnums=0)
def gradients(function, images, kernel, cotangent):
    result, pull_back = jax.vjp(function, images, kernel)
    return result, *pull_back(cotangent)


def is_winograd(images, kernel, strides=(1, 1), padding=ONE_AROUND):
    return convolution.fits_winograd(images, kernel, strides, padding)


def test_winograd_of_one_impulse_is_the_kernel_turned_around():
    images = np.zeros((1, 5, 6, 1), np.float32)
    images[0, 2, 3, 0] = 1
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    result = winograd(images, kernel)[0, :, :, 0]
    expected = np.zeros((5, 6), np.float32)
    expected[1:4, 2:5] = [[8, 7, 6], [5, 4, 3], [2, 1, 0]]
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 5), (2, 9)])
def test_winograd_and_its_gradients_are_the_plain_ones(size):
    with jax.enable_x64(True):
        arguments = drawn((2, *size, 3), (3, 3, 3, 5), (2, *size, 5), dtype=float)
        ours, theirs = (gradients(f, *arguments) for f in (convolution.winograd, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, theirs)


def test_winograd_under_vmap():
    images, kernel = drawn((3, 1, 6, 6, 2), (3, 3, 2, 4))
    together = jax.jit(jax.vmap(convolution.winograd, in_axes=(0, None)))(images, kernel)
    for one, expected in zip(images, together, strict=True):
        np.testing.assert_allclose(winograd(one, kernel), expected, atol=1e-5)


def test_winograd_rounds_little_more_than_a_float32_sum():
    images, kernel = drawn((1, 16, 16, 256), (3, 3, 256, 8))
    kernel /= np.sqrt(9 * 256).astype(np.float32)  # results of size 1
    with jax.enable_x64(True):
        exact = np.asarray(plain(images.astype(float), kernel.astype(float)))
    assert np.abs(np.asarray(winograd(images, kernel)) - exact).max() < 2e-5


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_one_by_one_kernels(strides):
    def one_by_one(function):
        return functools.partial(function, strides=strides, padding=((0, 0), (0, 0)))

    rows, columns = 6 // strides[0], 8 // strides[1]
    arguments = drawn((2, 6, 8, 3), (1, 1, 3, 4), (2, rows, columns, 4))
    ours, theirs = (gradients(one_by_one(f), *arguments) for f in (fast, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


def test_winograd_is_for_wide_kernels_on_large_maps_in_full_precision():
    large = jax.ShapeDtypeStruct((2, 32, 32, 128), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    assert is_winograd(large, kernel)
    assert is_winograd(large.update(shape=(2, 31, 16, 128)), kernel)
    assert not is_winograd(large.update(shape=(2, 28, 16, 128)), kernel)  # 56 tiles
    assert not is_winograd(large, kernel.update(shape=(3, 3, 128, 127)))
    assert not is_winograd(large, kernel.update(shape=(3, 3, 32, 128)))  # four groups
    assert not is_winograd(large, kernel.update(shape=(1, 1, 128, 128)))
    assert not is_winograd(large.update(dtype=jnp.bfloat16), kernel)
    assert not is_winograd(large, kernel, strides=(2, 2))
    assert not is_winograd(large, kernel, padding=((0, 0), (0, 0)))


def test_the_door_takes_winograd_where_it_pays(monkeypatch):
    monkeypatch.setattr(convolution, "winograd", lambda images, kernel: "winograd")
    images, kernel = drawn((1, 64, 32, 128), (3, 3, 128, 128))
    assert isinstance(fast(images, kernel), str)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [((3, 3, 4, 8), {}), ((3, 3, 2, 8), {"feature_group_count": 2})],
)
def test_what_is_left_is_plain(kernel, options):
    images, kernel = drawn((1, 6, 7, 4), kernel)
    np.testing.assert_array_equal(
        fast(images, kernel, (2, 2), **options), plain(images, kernel, (2, 2), **options)
    )


def test_grouped_one_by_one_kernels_are_plain():
    images, kernel = drawn((1, 6, 7, 4), (1, 1, 2, 8))
    options = {"feature_group_count": 2}
    np.testing.assert_array_equal(fast(images, kernel, **options), plain(images, kernel, **options))


def test_products_are_a_quarter():
    """36 products of matrices make what 144 did, and as many again for each gradient."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 64, 128), (3, 3, 128, 128))]

    def flops(function):
        def loss(*arguments):
            return jnp.sum(function(*arguments) ** 2)

        return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).cost_analysis()["flops"]

    assert flops(convolution.winograd) < 0.45 * flops(plain)
