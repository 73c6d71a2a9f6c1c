"""The types of the training step; tests/test_sharding.py checks its results on several devices."""

import jax
import jax.numpy as jnp
from random_batches import NUM_CLASSES, SIZE, make_batch

from retinanet_jax import modeling
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, make_train_step


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
