"""The pyramid has the sums computed by hand, and P6 has the configured input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax.models import FPN
from retinanet_jax.models.fpn import upsample

KEY = jax.random.key(0)


def constant_maps(*values, channels=1):
    """Return C3, C4 and C5 of an image of 128x128, each of one value."""
    return tuple(
        jnp.full((1, size, size, channels), value)
        for size, value in zip((16, 8, 4), values, strict=True)
    )


def identity_variables(module, maps):
    """Return variables with which every convolution copies the first channel."""
    shapes = jax.eval_shape(lambda: module.init(KEY, maps))

    def fill(x):
        x = np.zeros(x.shape, np.float32)
        if x.ndim == 4:
            x[x.shape[0] // 2, x.shape[1] // 2, 0, 0] = 1
        return x

    return jax.tree.map(fill, shapes)


def test_upsample_repeats_each_value():
    x = jnp.array([[1.0, 2.0]]).reshape(1, 1, 2, 1)
    assert upsample(x)[0, :, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_upsample_is_nearest_resizing():
    x = jax.random.normal(KEY, (2, 3, 5, 4))
    np.testing.assert_array_equal(upsample(x), jax.image.resize(x, (2, 6, 10, 4), "nearest"))


def test_each_level_adds_the_coarser_ones():
    fpn = FPN(channels=1)
    maps = constant_maps(1.0, 2.0, 4.0)
    pyramid = fpn.apply(identity_variables(fpn, maps), maps)
    assert [np.unique(p).tolist() for p in pyramid] == [[7], [6], [4], [4], [4]]


def test_p7_is_computed_from_relu_of_p6_and_p6_is_returned_without_relu():
    fpn = FPN(channels=1)
    maps = constant_maps(1.0, 2.0, -4.0)
    *_, p6, p7 = fpn.apply(identity_variables(fpn, maps), maps)
    assert np.unique(p6).tolist() == [-4]
    assert np.unique(p7).tolist() == [0]


@pytest.mark.parametrize(("p6_from", "expected"), [("c5", 4), ("p5", 40)])
def test_p6_is_computed_from_the_configured_map(p6_from, expected):
    fpn = FPN(channels=1, p6_from=p6_from)
    maps = constant_maps(1.0, 2.0, 4.0)
    variables = identity_variables(fpn, maps)
    variables["params"]["output5"]["kernel"] *= 10  # p5 = 40, p5 before its 3x3 = 4
    assert np.unique(fpn.apply(variables, maps)[3]).tolist() == [expected]


@pytest.mark.parametrize("max_level", [5, 6, 7])
def test_each_level_is_half_the_size_rounded_up(max_level):
    fpn = FPN(channels=8, max_level=max_level)
    maps = tuple(jnp.zeros((2, 100 // 2**i, 168 // 2**i, 4)) for i in (0, 1, 2))
    pyramid, _ = jax.eval_shape(lambda: fpn.init_with_output(KEY, maps))
    sizes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    assert [p.shape for p in pyramid] == [(2, *s, 8) for s in sizes[: max_level - 2]]


def test_kernels_start_uniform_with_variance_one_over_fan_in():
    maps = constant_maps(1.0, 1.0, 1.0, channels=16)
    params = FPN(channels=64).init(KEY, maps)["params"]
    kernel, bias = params["output3"]["kernel"], params["output3"]["bias"]
    bound = (3 / (3 * 3 * 64)) ** 0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.std(kernel), bound / 3**0.5, rtol=0.02)
    np.testing.assert_array_equal(bias, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p6_from": "p4"}, "p6_from='p4' is unknown; use 'c5' or 'p5'"),
        ({"max_level": 8}, "max_level=8 must be 5, 6 or 7"),
    ],
)
def test_unknown_options_are_refused_with_those_that_exist(options, message):
    with pytest.raises(ValueError, match=message):
        FPN(**options).init(KEY, constant_maps(1.0, 1.0, 1.0))
