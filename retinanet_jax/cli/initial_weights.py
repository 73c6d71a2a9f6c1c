"""The flag --weights of `retinanet-jax train`: the weights that a new run starts from."""

import importlib
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from retinanet_jax import checkpoint
from retinanet_jax.config import CONFIGS
from retinanet_jax.stored_config import NETWORK_SECTIONS
from retinanet_jax.training.initialization import start_from
from retinanet_jax.weights import cached, named

FINETUNE = CONFIGS / "finetune.py"


def define_initial_weights(values: flags.FlagValues) -> None:
    """Define --weights."""
    flags.DEFINE_string(
        "weights",
        None,
        "The weights that a new run starts from, instead of config.init: the name of published "
        f"ones (detectors: {', '.join(named.DETECTORS)}; ImageNet backbones: "
        f"{', '.join(named.BACKBONES)}), which are downloaded once; a working directory; or the "
        "file of a detector of another library. The config is then configs/finetune.py with the "
        "network of these weights, if no other --config is given. An evaluation accepts the flag "
        "of its run; in a workdir without a checkpoint, it evaluates the weights themselves.",
        flag_values=values,
    )


def with_weights(values: Any) -> ConfigDict:
    """Return the config, which starts from --weights if they are given.

    Raises:
        OSError: If there are no such weights, or they cannot be downloaded.
        ValueError: If they require another network than that of the config, or --config.init is
            given, too.
    """
    if not values.weights:
        return values.config
    config, flag = values.config, values["config"]
    for field in ("init.source", "init.path"):
        if field in config_flags.get_override_values(flag):
            raise ValueError(f"--weights and --config.{field} both name weights; give one of them.")
    spec = config_flags.get_config_filename(flag)
    if flag.using_default_value or pathlib.Path(spec).absolute() == FINETUNE.absolute():
        config = finetune_config(values.weights)
        config.update_from_flattened_dict(config_flags.get_override_values(flag))
    start_from(config, values.weights)
    return config


def finetune_config(weights: str) -> ConfigDict:
    """Return configs/finetune.py with the network that weights require."""
    # In a checkout the configs are next to the package, where a type checker does not look.
    finetune = importlib.import_module("retinanet_jax.configs.finetune")
    config, name = finetune.base_config(), cached.name_of(weights)
    if name:
        finetune.start_from_name(config, name)
    else:
        trained_with = checkpoint.best_config(cached.checkpoint_folder(weights))
        network = {section: trained_with[section].to_dict() for section in NETWORK_SECTIONS}
        finetune.start_from_detector(config, weights, network)
    return config.lock()
