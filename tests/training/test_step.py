"""The types and the states of a step; tests/test_sharding.py checks its results on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_batches import NUM_CLASSES, SIZE, make_batch

from retinanet_jax import modeling
from retinanet_jax.training import step
from retinanet_jax.training.normalizers import LossTerms
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, Update, make_train_step


def step_shapes(config):
    """The network's outputs and what one train step returns, as shapes and types."""
    model = modeling.build_model(config, NUM_CLASSES)
    optimizer = make_optimizer(config)

    def run(batch):
        image = jnp.zeros((1, *SIZE, 3))
        variables = model.init(jax.random.key(0), image, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        state = TrainState(
            jnp.int32(0), params, batch_stats, optimizer.init(params), jnp.float32(100)
        )
        outputs = model.apply(
            variables, modeling.network_input(batch, config, train=True), train=False
        )
        return outputs, make_train_step(model, optimizer, config)(state, batch)

    return jax.eval_shape(run, make_batch(2))


def test_bfloat16_computes_but_parameters_outputs_and_losses_stay_float32(toy_config):
    toy_config.dtype = "bfloat16"
    outputs, (state, metrics) = step_shapes(toy_config)
    assert metrics.pop("is_finite").dtype == bool
    in_float32 = (outputs, state.params, state.batch_stats, state.normalizer, metrics)
    assert {x.dtype for x in jax.tree.leaves(in_float32)} == {jnp.dtype("float32")}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_step_changes_nothing_in_a_state_that_has_stopped(toy_config, monkeypatch, nonfinite):
    """Not even a counter: the largest shape is run in this way before a run begins."""
    toy_config.nonfinite = nonfinite
    unit = np.float32(1)

    def update(state, batch):
        after = jax.tree.map(lambda x: x + unit, state._replace(is_finite=None))
        terms = LossTerms(unit, unit, unit, unit, unit)
        return Update(None, terms, {}, {}, after._replace(is_finite=state.is_finite))

    monkeypatch.setattr(step, "make_update", lambda *_: update)
    train_step = make_train_step(None, None, toy_config)
    counter = optax.ScaleByScheduleState(np.int32(5))
    state = TrainState(np.int32(5), {"kernel": unit}, {}, (counter,), unit, np.True_)
    changed, _ = train_step(state, make_batch(1))
    assert [float(x) for x in jax.tree.leaves(changed)] == [6, 2, 6, 2, True]
    stopped = state._replace(is_finite=np.False_)
    unchanged, _ = train_step(stopped, make_batch(1))
    assert jax.tree.leaves(unchanged) == jax.tree.leaves(stopped)


def kernel_gradients(config):
    """The gradients of all kernels, and the forward pass, with random cotangents of the outputs."""
    model = modeling.build_model(config, NUM_CLASSES)
    images = modeling.network_input(make_batch(1), config, train=True)
    variables = modeling.initialize(config, NUM_CLASSES, 0)

    @jax.jit
    def backward(params, images):
        def total(params):
            outputs = model.apply({**variables, "params": params}, images, train=False)
            flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(outputs)])
            return flat @ jax.random.normal(jax.random.key(1), flat.shape), outputs

        return jax.grad(total, has_aux=True)(params)

    gradients, outputs = backward(variables["params"], images)
    flat = jax.tree_util.tree_leaves_with_path(gradients)
    return {jax.tree_util.keystr(path): x for path, x in flat if path[-1].key == "kernel"}, outputs


def test_float32_gradients_are_those_of_bfloat16_before_they_are_rounded(toy_config):
    toy_config.dtype = "bfloat16"
    rounded, outputs = kernel_gradients(toy_config)
    toy_config.float32_gradients = True
    exact, same_outputs = kernel_gradients(toy_config)
    jax.tree.map(np.testing.assert_array_equal, outputs, same_outputs)
    assert exact.keys() == rounded.keys()
    for name, gradient in exact.items():
        assert gradient.dtype == jnp.float32
        if not gradient.any():  # a frozen stage
            continue
        assert (gradient != gradient.astype(jnp.bfloat16)).any(), name
        if "backbone" in name:  # the gradients of several levels may be added in float32
            np.testing.assert_array_equal(rounded[name], rounded[name].astype(jnp.bfloat16))
        largest = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(gradient, rounded[name], rtol=0.01, atol=0.01 * largest)
