"""What a command line leaves open: the variant of configs/finetune.py, and the batch size."""

import importlib
from typing import Any

import jax
from ml_collections import ConfigDict, config_flags

from retinanet_jax import checkpoint
from retinanet_jax.augmentation_presets import check_off_fields
from retinanet_jax.config import flatten
from retinanet_jax.stored_config import differences
from retinanet_jax.training.transfer import ANCHOR_FIELDS
from retinanet_jax.utils.paths import to_path


def use_device(values: Any, config: ConfigDict) -> None:
    """Let configs/finetune.py fit the device, and print how, if it is used without --config.

    Fields that are given keep their values. A run that resumes has the values of its checkpoint.

    Args:
        values: The flags.
        config: The config; it is changed.
    """
    weights = "weights" in values and values.weights
    if not (values["config"].using_default_value and (values.data or weights)):
        return
    # In a checkout the configs are next to the package, where a type checker does not look.
    devices = importlib.import_module("retinanet_jax.configs.finetune").DEVICES
    workdir = values.workdir if "workdir" in values else None
    saved = checkpoint.newest_config(to_path(workdir)) if workdir else None
    if saved:
        of_checkpoint, changed = dict(flatten(saved)), set()
        for use in devices.values():
            variant = config.copy_and_resolve_references()
            use(variant)
            changed |= {name for name, *_ in differences(config, variant)}
        config.update_from_flattened_dict({name: of_checkpoint[name] for name in changed})
        print("config: configs/finetune.py, for the images and the length of the checkpoint")
    else:
        device = jax.devices()[0]
        name, other = ("cpu", "gpu") if device.platform == "cpu" else ("gpu", "cpu")
        devices[name](config)
        print(
            f"config: configs/finetune.py:{name}, because the device is {device.device_kind}; "
            f"--config=configs/finetune.py:{other} is the other"
        )
    config.update_from_flattened_dict(config_flags.get_override_values(values["config"]))


def check_choices(values: Any, config: ConfigDict) -> None:
    """Let the fields that are given have their values, not those that a run would set.

    Args:
        values: The flags.
        config: The config; it is changed.

    Raises:
        ValueError: If both are asked for.
    """
    given = set(config_flags.get_override_values(values["config"]))
    check_off_fields(config, given)
    if "total_steps" in given:
        if "epochs" in given and config.epochs:
            raise ValueError(
                "--config.total_steps and --config.epochs are both the length of a run; give one."
            )
        config.epochs = 0
    for name in ANCHOR_FIELDS:
        if config.choose_anchors and name in given:
            raise ValueError(
                f"--config.anchors=auto chooses anchors, but --config.{name} is given; leave one "
                "of them out."
            )


def assume_batch_size(config: ConfigDict) -> None:
    """Let a command that does not train have the largest batch size that a run may set itself."""
    config.data.batch_size = config.data.batch_size or config.optimizer.reference_batch_size
