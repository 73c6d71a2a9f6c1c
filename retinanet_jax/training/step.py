"""The training step: one update of the parameters from one batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import network_input, valid_sizes
from retinanet_jax.models import RetinaNet
from retinanet_jax.training.objective import batch_loss
from retinanet_jax.training.optimizer import make_schedule


class TrainState(NamedTuple):
    """Everything that one step passes to the next."""

    step: Int[Array, ""]  # number of steps done
    params: optax.Params
    batch_stats: dict[str, Any]  # statistics of batch norms; all arrays of frozen norms
    opt_state: optax.OptState
    normalizer: Float[Array, "*groups"]  # moving averages of num_foreground, for "ema"

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the network: the checkpoint's item `variables`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, Any]:
        """The rest of the state, which resuming needs: the checkpoint's item `training`."""
        return {"step": self.step, "opt_state": self.opt_state, "normalizer": self.normalizer}


def make_train_step(
    model: RetinaNet, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Return the pure function `(state, batch) -> (state, metrics)`, to be jitted by the caller.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        config: A run's config.

    Returns:
        A function that returns the next state and, as scalars, the losses, the gradient's norm, the
        learning rate, the number of foreground anchors, and the number of boxes that cropping
        dropped.
    """
    schedule = make_schedule(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        def objective(params):
            outputs, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                network_input(batch, config, train=True),
                train=True,
                sizes=valid_sizes(batch),
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
            "gradient_norm": optax.tree.norm(gradients),
        }
        params = optax.apply_updates(state.params, updates)
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, terms.normalizer)
        return new_state, metrics

    return train_step
