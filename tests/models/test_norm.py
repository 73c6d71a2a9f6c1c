"""Norms have the right values, statistics, initial values and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax.models import FrozenBatchNorm, make_norm

KEY = jax.random.key(0)


def norm(name, channels, *, train=False, dtype=None, zero_scale=False):
    return make_norm(
        name, channels=channels, train=train, epsilon=1e-5, dtype=dtype, zero_scale=zero_scale
    )


def frozen_variables(scale, bias, mean, var):
    arrays = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    return {
        "batch_stats": {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
    }


def test_frozen_batch_norm_by_hand():
    variables = frozen_variables(scale=[10, 1], bias=[5, 0], mean=[1, 0], var=[3.75, 0])
    y = FrozenBatchNorm(epsilon=0.25).apply(variables, jnp.full((1, 1, 1, 2), 3.0))
    # (3 - 1) / sqrt(4) * 10 + 5, and (3 - 0) / sqrt(0.25)
    np.testing.assert_allclose(y.ravel(), [15, 6], rtol=1e-6)


def test_frozen_batch_norm_has_no_parameters():
    variables = FrozenBatchNorm(epsilon=1e-5).init(KEY, jnp.ones((1, 1, 1, 3)))
    assert set(variables) == {"batch_stats"}
    assert set(variables["batch_stats"]) == {"scale", "bias", "mean", "var"}


def test_a_new_frozen_batch_norm_is_the_identity():
    x = jax.random.normal(KEY, (1, 2, 2, 3))
    y, _ = FrozenBatchNorm(epsilon=0.0).init_with_output(KEY, x)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("name", ["frozen_batch", "batch", "group"])
def test_bfloat16_is_rounded_once(name):
    x = (100 + jax.random.normal(KEY, (2, 4, 4, 32))).astype(jnp.bfloat16)
    half = norm(name, 32, train=True, dtype=jnp.bfloat16)
    variables = half.init(KEY, x)
    full = norm(name, 32, train=True, dtype=jnp.float32)
    y, _ = half.apply(variables, x, mutable=["batch_stats"])
    expected, _ = full.apply(variables, x.astype(jnp.float32), mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))


def test_batch_norm_uses_the_batch_and_updates_a_tenth_of_its_statistics():
    x = jnp.array([0.0, 2.0]).reshape(2, 1, 1, 1)
    layer = norm("batch", 1, train=True)
    y, updated = layer.apply(layer.init(KEY, x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel(), [-1, 1], rtol=1e-4)
    stats = updated["batch_stats"]
    np.testing.assert_allclose([*stats["mean"], *stats["var"]], [0.1, 0.9 + 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 8), (24, 8), (32, 32), (48, 16), (64, 32), (256, 32)]
)
def test_group_norm_has_32_groups_or_the_largest_power_of_two_that_divides(channels, groups):
    assert norm("group", channels).num_groups == groups


def test_group_norm_normalizes_each_image_by_itself():
    x = jax.random.normal(KEY, (2, 4, 4, 64))
    layer = norm("group", 64)
    variables = layer.init(KEY, x)
    both, first = layer.apply(variables, x), layer.apply(variables, x[:1])
    np.testing.assert_allclose(both[:1], first, rtol=1e-5, atol=1e-6)
    grouped = both.reshape(2, 16, 32, 2)  # two channels per group
    np.testing.assert_allclose(grouped.mean((1, 3)), 0, atol=1e-5)


@pytest.mark.parametrize(("name", "start"), [("batch", 0.0), ("group", 0.0), ("frozen_batch", 1.0)])
def test_only_a_trained_scale_can_start_at_zero(name, start):
    variables = norm(name, 4, zero_scale=True).init(KEY, jnp.ones((1, 1, 1, 4)))
    collection = "batch_stats" if name == "frozen_batch" else "params"
    np.testing.assert_array_equal(variables[collection]["scale"], start)


def test_an_unknown_norm_is_refused_with_those_that_exist():
    with pytest.raises(
        ValueError, match="norm='layer' is unknown; use one of frozen_batch, batch, group"
    ):
        norm("layer", 4)
