"""What a run prints before its first step, on one screen: what it will do, with what and where."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.augmentation_presets import augmented_data
from retinanet_jax.config import default_config, flatten
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.anchor_choice import anchor_sides
from retinanet_jax.training.optimizer import rate_factor, scaled_learning_rate
from retinanet_jax.training.step import TrainState

# The fields and sections of config.data that change images, or how often they occur.
AUGMENTATION = (
    *("flip", "rot90", "scale_jitter", "crop_size", "affine", "mosaic", "mixup", "copy_paste"),
    *("color_jitter", "gray", "blur", "jpeg", "cutout", "repeat_threshold"),
)
LABEL_WIDTH = 14


def print_summary(
    config: ConfigDict,
    workdir: pathlib.Path,
    train_data: Source,
    eval_data: Source | None,
    plan: TrainPlan,
    state: TrainState,
    mesh: jax.sharding.Mesh,
) -> None:
    """Print the devices, network, data, augmentation, length and results of a run.

    Args:
        config: The run's config.
        workdir: The run's working directory.
        train_data: The training data.
        eval_data: The evaluation data; None if there is no evaluation.
        plan: The plan of the training batches.
        state: The state that the run starts from.
        mesh: The devices.
    """
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    rows = {
        "devices": f"{mesh.shape['data']} x {mesh.shape['space']} devices (data x space), "
        f"{jax.devices()[0].device_kind}; {config.dtype}",
        "network": f"{config.model.backbone}, {num_parameters:,} parameters{average_text(config)}",
        "data": f"{len(train_data)} training and {len(eval_data or ())} evaluation images of "
        f"{len(train_data.categories)} categories",
        "images": images_text(config, plan),
        "augmentation": augmentation_text(config),
        "anchors": anchors_text(config),
        "batch": f"{batch_text(config)}, learning rate {scaled_learning_rate(config):g} "
        f"({config.optimizer.learning_rate:g} for {config.optimizer.reference_batch_size} images)"
        f"{stage_rates_text(config)}",
        "length": length_text(config, plan, evaluates=eval_data is not None),
        "results": f"{workdir}: metrics, evaluations, and the best and the newest "
        f"{config.keep_checkpoints} checkpoints",
    }
    for label, text in rows.items():
        print(f"{label:<{LABEL_WIDTH}}{text}")
    print(
        f"training from step {int(state.step)} to {config.total_steps}, starting from "
        f"{starting_point(config, state)}",
        flush=True,
    )
    warn_of_few_images(config, mesh)
    warn_of_long_warmup(config)


def average_text(config: ConfigDict) -> str:
    """Return that the average of the variables is evaluated, or "" if there is none."""
    decay = config.optimizer.ema_decay
    return f", evaluated as their average with decay {decay:g}" if decay else ""


def batch_text(config: ConfigDict) -> str:
    """Return the number of images of a batch, and of the parts that are computed one by one."""
    num_parts = config.optimizer.accumulate
    return f"{config.data.batch_size} images" + (f" in {num_parts} parts" if num_parts > 1 else "")


def stage_rates_text(config: ConfigDict) -> str:
    """Return the learning rates of the backbone's trained stages, or "" if they are equal."""
    layer_decay, frozen = config.optimizer.layer_decay, config.model.frozen_stages
    if layer_decay == 1:
        return ""
    names = {1: "stem"} | {stage: f"c{stage}" for stage in range(2, 6)}
    rates = [
        f"{names[stage]} {rate_factor(stage, layer_decay):.3g}" for stage in range(5, frozen, -1)
    ]
    return f", times {', '.join(rates)}" if rates else ""


def images_text(config: ConfigDict, plan: TrainPlan) -> str:
    """Return the sizes of the images that the network sees.

    Args:
        config: The run's config.
        plan: The plan of the training batches.
    """
    sides = sorted({min(config.data.short_sides), max(config.data.short_sides)})
    height, width = plan.largest_bucket
    return (
        f"{' to '.join(map(str, sides))} pixels on the short side, at most "
        f"{config.data.long_side} on the long one; padded to at most {height} x {width}"
    )


def augmentation_text(config: ConfigDict) -> str:
    """Return the fields of augmentation that are not off, with those that its preset sets."""
    off = dict(flatten(default_config().data)) | {"flip": False}
    texts = [
        name if value is True else f"{name} {value}"
        for name, value in flatten(augmented_data(config))
        if name.partition(".")[0] in AUGMENTATION and not np.array_equal(value, off[name])
    ]
    preset = f"{config.data.augmentation}: " if config.data.augmentation else ""
    return preset + (", ".join(texts) or "none")


def anchors_text(config: ConfigDict) -> str:
    """Return the number of the anchors of a cell, and their sizes."""
    anchors, sides = config.anchors, anchor_sides(config)
    return (
        f"{len(anchors.scales)} scales x {len(anchors.ratios)} ratios, {sides[0]:.0f} to "
        f"{sides[-1]:.0f} pixels"
    )


def length_text(config: ConfigDict, plan: TrainPlan, *, evaluates: bool) -> str:
    """Return the number of epochs and steps, and when the run evaluates.

    Args:
        config: The run's config.
        plan: The plan of the training batches.
        evaluates: Whether the run evaluates.
    """
    evaluations = f", an evaluation every {config.evaluate_every}" if evaluates else ""
    if evaluates and config.patience:
        evaluations += f", to the end after {config.patience} without a better AP"
    epochs = config.total_steps / plan.steps_per_epoch
    return (
        f"{config.total_steps} steps: {epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}, "
        f"{plan.steps_per_epoch} steps per epoch{evaluations}"
    )


def starting_point(config: ConfigDict, state: TrainState) -> str:
    """Return a description of the parameters that this run starts from."""
    if state.step:
        return f"checkpoint {int(state.step)}"
    return config.init.path or "random parameters"


def warn_of_few_images(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Print a warning if TPUs are slow with the number of images a chip."""
    platform = mesh.devices.flat[0].platform
    field, parts = "data.batch_size", config.optimizer.accumulate
    warning = sharding.images_warning(field, config.data.batch_size, mesh, parts, platform)
    if warning:
        print(f"warning: {warning}", flush=True)


def warn_of_long_warmup(config: ConfigDict) -> None:
    """Print a warning if the learning rate is below its peak during most of the run."""
    if config.optimizer.warmup_steps > config.total_steps / 2:
        print(
            f"warning: the learning rate rises for {config.optimizer.warmup_steps} of "
            f"{config.total_steps} steps; lower --config.optimizer.warmup_steps or train longer.",
            flush=True,
        )
