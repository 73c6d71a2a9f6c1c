"""The optimizer and its learning rate schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from retinanet_jax.config import unknown_choice
from retinanet_jax.models import is_frozen

SCHEDULES = ("step", "cosine")
OPTIMIZERS = ("sgd", "adamw")


def scaled_learning_rate(config: ConfigDict) -> float:
    """Return the peak learning rate, linear in the batch size.

    The linear scaling rule is that of https://arxiv.org/abs/1706.02677, section 2.1.
    """
    optimizer = config.optimizer
    return optimizer.learning_rate * config.data.batch_size / optimizer.reference_batch_size


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Return `step -> learning rate`: a linear warm-up, then drops, or a cosine that ends at zero.

    Args:
        config: A run's config; its `optimizer`, `total_steps` and `data.batch_size` are used.

    Raises:
        ValueError: If optimizer.schedule is none of SCHEDULES.
    """
    optimizer, total = config.optimizer, config.total_steps
    peak = scaled_learning_rate(config)
    match optimizer.schedule:
        case "step":
            drops = {round(fraction * total): optimizer.drop_factor for fraction in optimizer.drops}
            after_warmup = optax.piecewise_constant_schedule(peak, drops)
        case "cosine":
            after_warmup = optax.cosine_decay_schedule(peak, total)
        case name:
            raise unknown_choice("optimizer.schedule", name, SCHEDULES)

    def schedule(step: ArrayLike) -> Array:
        progress = jnp.minimum((step + 1) / max(optimizer.warmup_steps, 1), 1.0)
        warmup = optimizer.warmup_factor + (1 - optimizer.warmup_factor) * progress
        return after_warmup(step) * warmup

    return schedule


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimizer: SGD with momentum or AdamW, on clipped gradients.

    Weight decay applies only to kernels. The parameters of frozen stages have no optimizer state
    and never change; their gradients are not part of the norm that is clipped.

    Args:
        config: A run's config; its `optimizer`, `model.frozen_stages`, `total_steps` and
            `data.batch_size` are used.

    Raises:
        ValueError: If optimizer.name or optimizer.schedule is unknown.
    """
    optimizer, schedule = config.optimizer, make_schedule(config)
    decay = optimizer.weight_decay
    match optimizer.name:
        case "sgd":
            update = optax.chain(
                optax.add_decayed_weights(decay, mask=kernel_mask),
                optax.sgd(schedule, momentum=optimizer.momentum),
            )
        case "adamw":
            update = optax.adamw(schedule, weight_decay=decay, mask=kernel_mask)
        case name:
            raise unknown_choice("optimizer.name", name, OPTIMIZERS)
    clip = (
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    )

    def labels(params: Any) -> Any:
        def label(path, _):
            names = tuple(key.key for key in path)
            return "frozen" if is_frozen(names, config.model.frozen_stages) else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform(
        {"trained": optax.chain(clip, update), "frozen": optax.set_to_zero()}, labels
    )


def kernel_mask(params: Any) -> Any:
    """Return a tree like `params` with True for the convolutions' kernels and False elsewhere."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
