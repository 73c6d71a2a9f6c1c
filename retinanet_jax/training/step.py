"""The training step: one update of the parameters from one batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from retinanet_jax import sharding
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
    # With nonfinite="stop": False after the first step that was not finite; the steps after it
    # change nothing either, until the host has seen it.
    is_finite: Bool[Array, ""] | np.bool_ = np.True_

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
    """Return the pure function `(state, batch) -> (state, metrics)` that `jit_train_step` compiles.

    A step with a loss, gradient or update that is not finite changes nothing.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        config: A run's config.

    Returns:
        A function that returns the next state and, as scalars, the losses, the gradient's norm, the
        learning rate, the number of foreground anchors, the number of boxes that cropping dropped,
        and whether the step is finite.
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
        gradient_norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(terms.total + gradient_norm + optax.tree.norm(updates))
        metrics = {
            "loss": terms.total,
            "loss/classification": terms.classification,
            "loss/box": terms.box,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "num_foreground": terms.num_foreground,
            "dropped_boxes": jnp.sum(batch.weights * batch.dropped),
            "gradient_norm": gradient_norm,
            "is_finite": is_finite,
        }
        params = optax.apply_updates(state.params, updates)
        updated = TrainState(
            state.step + 1, params, batch_stats, opt_state, terms.normalizer, state.is_finite
        )
        if config.nonfinite == "stop":
            unchanged, is_applied = state._replace(is_finite=np.False_), state.is_finite & is_finite
        else:
            unchanged, is_applied = state._replace(step=state.step + 1), is_finite
        select = functools.partial(jnp.where, is_applied)
        return jax.tree.map(select, updated, unchanged), metrics

    return train_step


def jit_train_step(
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
) -> Any:
    """Return the training step, jitted for the devices of `mesh`; it reuses the state's memory.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        config: A run's config.
        mesh: The devices, with axes `data` and `space`.
    """
    return jax.jit(
        make_train_step(model, optimizer, config),
        in_shardings=(sharding.replicated(mesh), sharding.batch_shardings(mesh)),
        out_shardings=sharding.replicated(mesh),
        donate_argnums=0,
    )
