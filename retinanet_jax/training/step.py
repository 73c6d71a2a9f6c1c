"""The training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import network_input
from retinanet_jax.models import RetinaNet
from retinanet_jax.training.objective import batch_loss
from retinanet_jax.training.optimizer import make_schedule


class TrainState(NamedTuple):
    """All that one step passes to the next."""

    step: Int[Array, ""]  # steps done
    params: dict[str, Any]
    batch_stats: dict[str, Any]  # statistics of batch norms; all of frozen norms
    opt_state: optax.OptState
    normalizer: Float[Array, ""]  # moving count of foreground anchors, for loss.normalizer="ema"

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, Any]:
        """What resuming needs beside the variables."""
        return {"step": self.step, "opt_state": self.opt_state, "normalizer": self.normalizer}


def make_train_step(
    model: RetinaNet, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A pure `(state, batch) -> (state, metrics)`; the caller jits and shards it."""
    schedule = make_schedule(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        def objective(params):
            outputs, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                network_input(batch, config, train=True),
                train=True,
                mutable=["batch_stats"],
            )
            terms = batch_loss(outputs, batch, state.normalizer, config)
            return terms.total, (terms, updated.get("batch_stats", {}))

        gradients, (terms, batch_stats) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": terms.total,
            "loss/classification": terms.classification,
            "loss/box": terms.box,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "num_foreground": terms.num_foreground,
            "dropped_boxes": jnp.sum(batch.weights * batch.dropped),
            "gradient_norm": optax.global_norm(gradients),
        }
        params = optax.apply_updates(state.params, updates)
        done = TrainState(state.step + 1, params, batch_stats, opt_state, terms.normalizer)
        return done, metrics

    return train_step
