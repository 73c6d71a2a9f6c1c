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
from retinanet_jax.compilation import memory_options
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import Outputs, RetinaNet
from retinanet_jax.training.averaging import update_average
from retinanet_jax.training.gradients import make_gradient
from retinanet_jax.training.normalizers import LossTerms
from retinanet_jax.training.optimizer import make_schedule


class TrainState(NamedTuple):
    """Everything that one step passes to the next."""

    step: Int[Array, ""]  # number of steps done
    params: optax.Params
    batch_stats: dict[str, Any]  # statistics of batch norms; all arrays of frozen norms
    opt_state: optax.OptState
    normalizer: Float[Array, "*groups"]  # moving averages of num_foreground, for "ema"
    # False if steps change nothing in this state: with nonfinite="stop", after the first one that
    # was not finite, until the host has seen it.
    is_finite: Bool[Array, ""] | np.bool_ = np.True_
    average: dict[str, Any] | None = None  # of the variables over the steps; None without ema_decay

    @property
    def latest(self) -> dict[str, Any]:
        """The variables of the network that the next step changes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate: the checkpoint's item `variables`."""
        return self.latest if self.average is None else self.average

    @property
    def training(self) -> dict[str, Any]:
        """The rest of the state, which resuming needs: the checkpoint's item `training`."""
        rest = {"step": self.step, "opt_state": self.opt_state, "normalizer": self.normalizer}
        return rest if self.average is None else {**rest, **self.latest}

    @classmethod
    def of_checkpoint(cls, variables: dict[str, Any], training: dict[str, Any]) -> "TrainState":
        """Return the state with these `variables` and `training`."""
        if "params" in training:
            return cls(**training, average=variables)
        return cls(**variables, **training)


class Update(NamedTuple):
    """What a step computes from a state and a batch, before it is known to be finite."""

    outputs: Outputs
    terms: LossTerms
    gradients: optax.Params
    updates: optax.Updates  # what the optimizer adds to the parameters
    state: TrainState  # after the step


def make_update(
    model: RetinaNet, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Batch], Update]:
    """Return the pure function `(state, batch) -> Update`.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        config: A run's config.
    """
    gradient = make_gradient(model, config)

    def update(state: TrainState, batch: Batch) -> Update:
        gradients, outputs, terms, batch_stats = gradient(
            state.params, state.batch_stats, state.normalizer, batch
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        after = TrainState(
            state.step + 1, params, batch_stats, opt_state, terms.normalizer, state.is_finite
        )
        if state.average is not None:
            average = update_average(
                state.average, after.latest, state.step, config.optimizer.ema_decay
            )
            after = after._replace(average=average)
        return Update(outputs, terms, gradients, updates, after)

    return update


def make_train_step(
    model: RetinaNet, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Return the pure function `(state, batch) -> (state, metrics)` that `jit_train_step` compiles.

    A step is finite if its loss, the norm of its gradient, all arrays of its batch and of the state
    before it, and the statistics after it are. Then its parameters and the optimizer's state are
    finite, too: `check_schedule` limits the learning rate. They are not tested themselves, as the
    optimizer could then not write them to their place, and memory traffic would be double. Another
    step changes nothing but the counters of the steps; with nonfinite="stop" not even these, and
    the steps after it change nothing either.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        config: A run's config.

    Returns:
        A function that returns the next state and, as scalars, the losses, the gradient's norm, the
        learning rate, the number of foreground anchors, the number of boxes that cropping dropped,
        and whether the step is finite.
    """
    schedule, update = make_schedule(config), make_update(model, optimizer, config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        _, terms, gradients, _, updated = update(state, batch)
        gradient_norm = optax.tree.norm(gradients)
        # The ground truth is among them: a box that is not finite matches no anchor, which would
        # make its object background at a loss that is finite.
        statistics = updated.batch_stats, updated.normalizer
        is_finite = all_finite((terms.total, gradient_norm, batch, state, statistics))
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
        if config.nonfinite == "stop":
            unchanged = state._replace(is_finite=np.False_)
        else:
            unchanged = count_steps(state, 1)
        after = jax.tree.map(functools.partial(jnp.where, is_finite), updated, unchanged)
        # A step changes nothing in a state that has stopped.
        return jax.tree.map(functools.partial(jnp.where, state.is_finite), after, state), metrics

    return train_step


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Return whether all numbers of a tree of arrays are finite, and also each array's sum."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    # One pass over the memory. XLA's CPU backend would write an array of `isfinite` first.
    return jnp.stack([jnp.isfinite(jnp.sum(jnp.abs(x))) for x in floats]).all()


def count_steps(state: TrainState, steps: int) -> TrainState:
    """Return a state with its counters of the steps increased, and nothing else changed.

    Args:
        state: The state.
        steps: The number that is added.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    # The schedule has a counter of its own: the learning rate is that of the step's number.
    opt_state = jax.tree.map(
        lambda x: x._replace(count=x.count + steps) if is_schedule(x) else x,
        state.opt_state,
        is_leaf=is_schedule,
    )
    return state._replace(step=state.step + steps, opt_state=opt_state)


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

    def initial_opt_state() -> optax.OptState:
        image = jnp.zeros((1, 64, 64, 3))
        return optimizer.init(model.init(jax.random.key(0), image, train=False)["params"])

    of_state = state_shardings(jax.eval_shape(initial_opt_state), config, mesh)
    return jax.jit(
        make_train_step(model, optimizer, config),
        in_shardings=(of_state, sharding.batch_shardings(mesh)),
        out_shardings=(of_state, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=memory_options(mesh.devices.flat[0].platform),
    )


def state_shardings(
    opt_state: optax.OptState, config: ConfigDict, mesh: jax.sharding.Mesh
) -> TrainState:
    """Return the sharding of each field of a state: copies, except for a split optimizer state.

    Args:
        opt_state: The state of the optimizer, as arrays or shapes.
        config: A run's config; its `shard_optimizer` is used.
        mesh: The devices, with axes `data` and `space`.

    Returns:
        A `TrainState` with one sharding in each field, but with one for each array of `opt_state`.
    """
    copy: Any = sharding.replicated(mesh)
    copies = TrainState(*[copy] * len(TrainState._fields))
    if not config.shard_optimizer:
        return copies
    return copies._replace(opt_state=sharding.split_over_data(opt_state, mesh))
