"""The ReLUs have the values and gradients of `jax.nn.relu`, and store less for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retinanet_jax.models.relu import relu, relu_of_sum

MAP = (1, 64, 64, 128)
MASK = jnp.array([[True, False]])[..., None, None]  # one image, two rows, one column


def plain_relu_of_sum(x, shortcut):
    return jax.nn.relu(x + shortcut)


@jax.jit
def both_with_gradients(x, shortcut):
    """Return (ours, plain) of a sum's ReLU and its gradients, weighted by 1, 2, 3, ..."""
    weights = jnp.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape)
    pairs = []
    for function in (relu_of_sum, plain_relu_of_sum):
        result, pull_back = jax.vjp(function, x, shortcut)
        pairs.append((result, *pull_back(weights)))
    return pairs


def maps(dtype):
    numbers = st.floats(-(2.0**100), 2.0**100, width=32)
    return arrays(dtype, (1, 2, 3, 2), elements=numbers)


@given(maps(np.float32), maps(np.float32), st.booleans())
def test_relu_of_a_sum_is_exactly_that_of_jax(x, shortcut, is_opposite):
    shortcut = -x if is_opposite else shortcut  # sums of 0 have no gradient
    ours, expected = both_with_gradients(x, shortcut)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_relu_of_a_sum_is_exactly_that_of_jax_in_half_precision(dtype):
    rng = np.random.default_rng(0)
    x, shortcut = (jnp.asarray(rng.normal(size=(1, 8, 8, 16)), dtype) for _ in range(2))
    ours, expected = both_with_gradients(x, shortcut)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_relu_and_its_gradient_by_hand():
    x = jnp.array([-2.0, 0.0, 3.0]).reshape(1, 1, 1, 3)
    result, pull_back = jax.vjp(relu, x)
    np.testing.assert_array_equal(result.ravel(), [0, 0, 3])
    (gradient,) = pull_back(jnp.array([5.0, 6, 7]).reshape(x.shape))
    np.testing.assert_array_equal(gradient.ravel(), [0, 0, 7])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_padding_is_zero_and_has_no_gradient(transform):
    masks = {(2, 1): MASK}
    x = jnp.array([-2.0, 3.0, 4.0, 5.0]).reshape(1, 2, 1, 2)
    result, pull_back = jax.vjp(transform(lambda x: relu(x, masks)), x)
    np.testing.assert_array_equal(result.ravel(), [0, 3, 0, 0])
    (gradient,) = pull_back(jnp.ones_like(x))
    np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])


def test_under_vmap():
    x = jnp.linspace(-1, 1, 12).reshape(2, 3, 2, 1)
    both = jax.vmap(lambda x: jax.grad(lambda x: relu_of_sum(relu(x[None]), x[None]).sum())(x))(x)
    np.testing.assert_array_equal(both, jnp.where(x > 0, 2, 0))


def temporaries(num_blocks, function):
    """Return the bytes of the gradient of a chain of residual blocks, besides its operands."""

    def total(kernels, x):
        for kernel in kernels:
            x = function(x @ kernel, x)
        return x.sum()

    kernels = [jax.ShapeDtypeStruct((128, 128), jnp.float32)] * num_blocks
    x = jax.ShapeDtypeStruct(MAP, jnp.float32)
    program = jax.jit(jax.grad(total)).lower(kernels, x).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_the_backward_pass_stores_one_map_for_each_block():
    def stored(function):
        return (temporaries(6, function) - temporaries(4, function)) / 2 / (4 * np.prod(MAP))

    assert stored(relu_of_sum) <= 1.05
    assert stored(plain_relu_of_sum) > 1.9  # if not, `jax.nn.relu` is as good
