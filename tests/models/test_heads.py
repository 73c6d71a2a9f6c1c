"""Heads have outputs in the order of the anchors, and the initial values of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from retinanet_jax.models import Head

KEY = jax.random.key(0)


def test_channels_are_anchor_major():
    head = Head(outputs=2, num_anchors=3, depth=0)
    maps = (jnp.zeros((1, 2, 2, 4)),)
    variables = head.init(KEY, maps)
    variables["params"]["predict"]["bias"] = jnp.arange(6.0)
    (out,) = head.apply(variables, maps)
    assert out.tolist() == [[[0, 1], [2, 3], [4, 5]] * 4]  # four cells


def test_cells_are_row_major():
    head = Head(outputs=1, num_anchors=2, depth=0)
    cells = jnp.arange(6.0).reshape(1, 2, 3, 1)  # value = 3 * row + column
    kernel = jnp.zeros((3, 3, 1, 2)).at[1, 1, 0].set(jnp.array([1.0, 10.0]))
    variables = {"params": {"predict": {"kernel": kernel, "bias": jnp.zeros(2)}}}
    (out,) = head.apply(variables, (cells,))
    assert out[0, :, 0].tolist() == [0, 0, 1, 10, 2, 20, 3, 30, 4, 40, 5, 50]


@pytest.mark.parametrize("norm", ["none", "group"])
def test_all_levels_use_the_same_head(norm):
    head = Head(outputs=2, num_anchors=3, depth=2, channels=8, norm=norm)
    x, other = jax.random.normal(KEY, (2, 1, 4, 4, 8))
    variables = head.init(KEY, (x,))
    (one_level,) = head.apply(variables, (x,))
    _, second_level = head.apply(variables, (other, x))
    np.testing.assert_array_equal(second_level, one_level)


@pytest.mark.parametrize(("prior", "start"), [(0.01, 0.01), (0.3, 0.3), (None, 0.5)])
def test_outputs_start_at_the_prior_probability(prior, start):
    head = Head(outputs=2, num_anchors=3, depth=1, channels=8, prior_probability=prior)
    (out,), _ = head.init_with_output(KEY, (jnp.zeros((1, 2, 2, 8)),))
    np.testing.assert_allclose(jax.nn.sigmoid(out), start, rtol=1e-5)


def test_bfloat16_has_outputs_in_float32_and_gradients_of_bfloat16():
    """The final convolution rounds its operands, but neither its results nor its bias."""
    head = Head(outputs=9, num_anchors=2, depth=0, prior_probability=0.01, dtype=jnp.bfloat16)
    maps = (jax.random.normal(KEY, (1, 12, 12, 8), jnp.bfloat16),)
    variables = head.init(KEY, maps)
    params = variables["params"]["predict"]
    (out,) = head.apply(variables, maps)
    assert out.dtype == jnp.float32
    kernel = params["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    expected = nn.Conv(18, (3, 3), padding=1).apply(
        {"params": params | {"kernel": kernel}}, maps[0].astype(jnp.float32)
    )
    np.testing.assert_allclose(out.ravel(), expected.ravel(), rtol=1e-6, atol=1e-6)
    # The best 1,000 of 2,592 scores; their logits differ by 0.1 and lie near -4.6.
    assert len(np.unique(np.sort(jax.nn.sigmoid(out), axis=None)[-1000:])) > 990

    def loss(params, maps, head):
        return (head.apply({"params": params}, maps)[0] ** 2).mean()

    gradients = jax.grad(loss, (0, 1))(variables["params"], maps, head)
    kernel_gradient, (map_gradient,) = gradients[0]["predict"]["kernel"], gradients[1]
    assert kernel_gradient.dtype == jnp.float32
    assert map_gradient.dtype == jnp.bfloat16
    exact = jax.grad(loss, (0, 1))(variables["params"], maps, head.clone(dtype=None))
    for ours, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32), expected.astype(jnp.float32), atol=0.02 * scale
        )


def test_kernels_start_normal_with_a_standard_deviation_of_001():
    head = Head(outputs=80, num_anchors=9, depth=1, channels=32)
    params = head.init(KEY, (jnp.zeros((1, 2, 2, 32)),))["params"]
    for layer in ("conv0", "predict"):
        np.testing.assert_allclose(np.std(params[layer]["kernel"]), 0.01, rtol=0.03)
        np.testing.assert_array_equal(params[layer]["bias"], 0)


def test_depth_and_norm_determine_the_layers():
    def layers(**options):
        head = Head(outputs=4, num_anchors=9, channels=32, **options)
        params = jax.eval_shape(lambda: head.init(KEY, (jnp.zeros((1, 2, 2, 32)),)))["params"]
        return {name: set(leaves) for name, leaves in params.items()}

    affine = {"kernel", "bias"}
    assert layers(depth=2) == {"conv0": affine, "conv1": affine, "predict": affine}
    assert layers(depth=1, norm="group") == {
        "conv0": {"kernel"},
        "norm0": {"scale", "bias"},
        "predict": affine,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "head norm='batch' is unknown; use 'none' or 'group'"),
        ({"prior_probability": 0.0}, "prior_probability=0.0 must lie between 0 and 1"),
        ({"prior_probability": 1.0}, "prior_probability=1.0 must lie between 0 and 1"),
    ],
)
def test_invalid_options_are_refused_with_their_value(options, message):
    with pytest.raises(ValueError, match=message):
        Head(outputs=1, num_anchors=1, **options).init(KEY, (jnp.zeros((1, 2, 2, 8)),))
