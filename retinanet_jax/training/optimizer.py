"""The optimizer and its learning rate schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax.config import choose
from retinanet_jax.models import is_frozen


def scaled_learning_rate(config: ConfigDict) -> float:
    """The peak learning rate: linear in the batch (Goyal et al. 2017)."""
    optimizer = config.optimizer
    return optimizer.learning_rate * config.data.batch_size / optimizer.reference_batch_size


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Steps done -> learning rate: linear warm-up, then drops or a cosine to zero."""
    optimizer, total = config.optimizer, config.total_steps
    peak = scaled_learning_rate(config)
    after_warmup = choose(
        "optimizer.schedule",
        optimizer.schedule,
        {
            "step": optax.piecewise_constant_schedule(
                peak, {round(share * total): optimizer.drop_factor for share in optimizer.drops}
            ),
            "cosine": optax.cosine_decay_schedule(peak, total),
        },
    )

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        progress = jnp.minimum((step + 1) / max(optimizer.warmup_steps, 1), 1.0)
        warmup = optimizer.warmup_factor + (1 - optimizer.warmup_factor) * progress
        return after_warmup(step) * warmup

    return schedule


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping, then SGD with momentum or AdamW; frozen stages have no state and never move."""
    optimizer, schedule = config.optimizer, make_schedule(config)

    def kernels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def labels(params: Any) -> Any:
        def label(path, _):
            names = tuple(key.key for key in path)
            return "frozen" if is_frozen(names, config.model.frozen_stages) else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    decay = optimizer.weight_decay
    update = choose(
        "optimizer.name",
        optimizer.name,
        {
            "sgd": optax.chain(
                optax.add_decayed_weights(decay, mask=kernels),
                optax.sgd(schedule, momentum=optimizer.momentum),
            ),
            "adamw": optax.adamw(schedule, weight_decay=decay, mask=kernels),
        },
    )
    clip = (
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    )
    return optax.multi_transform(
        {"trained": optax.chain(clip, update), "frozen": optax.set_to_zero()}, labels
    )
