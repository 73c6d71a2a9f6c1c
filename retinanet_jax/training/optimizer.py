"""The optimizer and its learning rate schedule."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from retinanet_jax.config import unknown_choice
from retinanet_jax.models import is_frozen, stage_of
from retinanet_jax.stored_config import differences, flag_of

SCHEDULES = ("step", "cosine")
OPTIMIZERS = ("sgd", "adamw")
# If the norm of a gradient is finite, its numbers are below 2e19. At up to this rate its update is
# finite, too: SGD's momentum is a sum of a few gradients, and AdamW divides by at least 1e-8.
MAX_RATE = 1e6
# The fields of a schedule besides its peak and its length.
SHAPE_FIELDS = ("schedule", "warmup_steps", "warmup_factor", "drops", "drop_factor")


def scaled_learning_rate(config: ConfigDict) -> float:
    """Return the peak learning rate, linear in the batch size.

    The linear scaling rule is that of https://arxiv.org/abs/1706.02677, section 2.1.
    """
    optimizer = config.optimizer
    return optimizer.learning_rate * config.data.batch_size / optimizer.reference_batch_size


def schedule_steps(config: ConfigDict) -> int:
    """Return the length of the schedule in steps: optimizer.schedule_steps, or else total_steps."""
    return config.optimizer.schedule_steps or config.total_steps


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Return `number of steps done -> learning rate`: a linear warm-up, then drops or a cosine.

    As in Detectron, detectron2 and torchvision's reference, the first step has `warmup_factor`
    times the peak, and a drop after n steps is in effect from step n + 1 on. The rate stays at its
    last value after the end of the schedule.

    Args:
        config: A run's config; its `optimizer`, `total_steps` and `data.batch_size` are used.

    Raises:
        ValueError: If optimizer.schedule is none of SCHEDULES, a number of steps is negative, or
            a cosine ends before the run does.
    """
    check_schedule(config)
    optimizer, length = config.optimizer, schedule_steps(config)
    peak = scaled_learning_rate(config)
    if optimizer.schedule == "cosine":
        after_warmup = optax.cosine_decay_schedule(peak, length)
    else:
        drops = [round(fraction * length) for fraction in optimizer.drops]
        after_warmup = step_decay_schedule(peak, optimizer.drop_factor, drops)

    def schedule(step: ArrayLike) -> ArrayLike:
        progress = step / max(optimizer.warmup_steps, 1)
        warmup = optimizer.warmup_factor + (1 - optimizer.warmup_factor) * progress
        return after_warmup(step) * jnp.where(step < optimizer.warmup_steps, warmup, 1.0)

    return schedule


def step_decay_schedule(peak: float, factor: float, drops: Sequence[int]) -> optax.Schedule:
    """Return `number of steps done -> learning rate`, multiplied by `factor` at each of `drops`.

    Args:
        peak: The learning rate before the first drop.
        factor: The factor of one drop.
        drops: The number of steps before each drop, in any order.
    """
    return lambda step: peak * factor ** sum(jnp.asarray(step) >= drop for drop in drops)


def check_schedule(config: ConfigDict) -> None:
    """Raise ValueError if the schedule is unknown, or one of its numbers is out of range.

    Args:
        config: A run's config.
    """
    optimizer, length = config.optimizer, schedule_steps(config)
    if optimizer.schedule not in SCHEDULES:
        raise unknown_choice("optimizer.schedule", optimizer.schedule, SCHEDULES)
    for name in ("schedule_steps", "warmup_steps"):
        if optimizer[name] < 0:
            raise ValueError(f"optimizer.{name}={optimizer[name]} must be at least 0.")
    largest = abs(scaled_learning_rate(config)) * max(1, abs(optimizer.warmup_factor))
    if not largest <= MAX_RATE:
        raise ValueError(
            f"optimizer.learning_rate={optimizer.learning_rate:g} becomes a rate of {largest:g} "
            f"with data.batch_size, reference_batch_size and warmup_factor; it must be at most "
            f"{MAX_RATE:g}."
        )
    if optimizer.schedule == "cosine" and length < config.total_steps:
        raise ValueError(
            f"optimizer.schedule_steps={length} ends the cosine at a learning rate of zero, but "
            f"the run has total_steps={config.total_steps}; give at least that many "
            "schedule_steps, 0 for the length of the run, or optimizer.schedule=step."
        )


def print_rate_change(saved: ConfigDict, config: ConfigDict, step: int) -> None:
    """Print in one line if a resumed run's next step has another learning rate than before.

    Args:
        saved: The config of the checkpoint that the run resumes from.
        config: The config of the resumed run.
        step: Number of steps done.
    """
    before, now = (float(jnp.asarray(make_schedule(x)(step))) for x in (saved, config))
    if math.isclose(before, now, rel_tol=1e-5):
        return
    line = (
        f"the learning rate of step {step + 1} becomes {now:g}; with the checkpoint's config it is "
        f"{before:g}"
    )
    if before:  # otherwise a cosine has ended
        line += f"; to keep it, give {' '.join(flags_of_schedule(saved, config))}"
    print(line, flush=True)


def flags_of_schedule(saved: ConfigDict, config: ConfigDict) -> list[str]:
    """Return the flags with which a run of `config` has the learning rates of `saved`.

    Args:
        saved: The config of a checkpoint; its schedule has not ended at zero.
        config: The config of the run that resumes from it.
    """
    values = {
        name: value
        for name, value, _ in differences(saved, config)
        if name in {f"optimizer.{field}" for field in SHAPE_FIELDS}
    }
    length, peak = schedule_steps(saved), scaled_learning_rate(saved)
    if length != schedule_steps(config):
        # A cosine cannot end before the run does.
        too_short = saved.optimizer.schedule == "cosine" and length < config.total_steps
        values["total_steps" if too_short else "optimizer.schedule_steps"] = length
    if not math.isclose(peak, scaled_learning_rate(config)):
        rate = peak * config.optimizer.reference_batch_size / config.data.batch_size
        values["optimizer.learning_rate"] = f"{rate:g}"
    return [flag_of(name, value) for name, value in values.items()]


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimizer: SGD with momentum or AdamW, on clipped gradients.

    Weight decay applies to kernels and, with optimizer.decay_biases, to the biases of convolutions.
    Frozen parameters have no optimizer state and never change; their gradients are not part of the
    norm that is clipped. With optimizer.layer_decay, the learning rate of each stage of the
    backbone is multiplied by its `rate_factor`.

    Args:
        config: A run's config; its `optimizer`, `model`, `total_steps` and `data.batch_size` are
            used.

    Raises:
        ValueError: If optimizer.name is unknown, or `make_schedule` rejects the schedule.
    """
    optimizer, schedule = config.optimizer, make_schedule(config)
    decay, mask = optimizer.weight_decay, make_decay_mask(biases=optimizer.decay_biases)
    match optimizer.name:
        case "sgd":
            update = optax.chain(
                optax.add_decayed_weights(decay, mask=mask),
                optax.sgd(schedule, momentum=optimizer.momentum),
            )
        case "adamw":
            update = optax.adamw(schedule, weight_decay=decay, mask=mask)
        case name:
            raise unknown_choice("optimizer.name", name, OPTIMIZERS)
    clip = (
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    )

    def label(path: KeyPath, _: Any) -> str:
        model = config.model
        is_constant = is_frozen(names_of(path), model.frozen_stages, model.frozen_parts)
        return "frozen" if is_constant else "trained"

    whole = optax.multi_transform(
        {"trained": optax.chain(clip, update), "frozen": optax.set_to_zero()},
        functools.partial(jax.tree_util.tree_map_with_path, label),
    )
    return whole if optimizer.layer_decay == 1 else scale_rates(whole, optimizer.layer_decay)


def scale_rates(
    optimizer: optax.GradientTransformation, layer_decay: float
) -> optax.GradientTransformation:
    """Return an optimizer with the same state, but with a learning rate for each backbone stage.

    Args:
        optimizer: The optimizer.
        layer_decay: As in `rate_factor`.
    """

    def scale(path: KeyPath, update: Any) -> Any:
        part, module, *_ = names_of(path)
        return update * rate_factor(stage_of(module), layer_decay) if part == "backbone" else update

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def rate_factor(stage: int, layer_decay: float) -> float:
    """Return the factor of the learning rate of a backbone stage.

    It is layer_decay for the last stage, that of C5, and layer_decay^5 for the stem; the pyramid
    and the heads have none. Layers that are nearer to the input are more general, and have to
    change less (https://arxiv.org/abs/1801.06146, section 3.2, "discriminative fine-tuning").

    Args:
        stage: The stage: 1 for the stem, 2 for that of C2, and so on.
        layer_decay: The factor between a stage and the one above it.
    """
    return layer_decay ** (6 - stage)


def names_of(path: KeyPath) -> tuple[str, ...]:
    """Return the names in the path of a parameter."""
    return tuple(key.key for key in path)  # pyright: ignore[reportAttributeAccessIssue]


def make_decay_mask(*, biases: bool) -> Callable[[Any], Any]:
    """Return `params -> tree with True for the arrays that weight decay applies to`.

    Args:
        biases: Whether these are the biases of convolutions too, not only their kernels. Scales
            and biases of norms never are.
    """
    names = {"kernel", "bias"} if biases else {"kernel"}

    def mask(params: Any) -> Any:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        convolutions = {path[:-1] for path, _ in leaves if path[-1].key == "kernel"}
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in names and path[:-1] in convolutions, params
        )

    return mask
