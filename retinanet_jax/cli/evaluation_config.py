"""The config of commands that evaluate a checkpoint: its own, with the fields that are given."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict, config_flags

from retinanet_jax import checkpoint, datasets
from retinanet_jax.cli.initial_weights import with_weights
from retinanet_jax.utils.paths import to_path
from retinanet_jax.weights import cached


def evaluation_config(values: Any, workdir: pathlib.Path) -> ConfigDict:
    """Return the config with which the checkpoint of a working directory is evaluated.

    Without --config=FILE it is the checkpoint's own. The flags --config.FIELD and --data change it.

    Args:
        values: The flags.
        workdir: The working directory, or the folder of a checkpoint.

    Raises:
        FileNotFoundError: If there is no checkpoint, or no such dataset.
    """
    if values["config"].using_default_value:
        config = own_config(values, workdir)
    else:
        config = with_weights(values) if "weights" in values else values.config
        if config.choose_anchors:
            config.anchors.update(checkpoint.best_config(workdir).anchors)
    if values.data:
        use_evaluation_data(values, config, checkpoint.best_config(workdir))
    return config


def own_config(values: Any, path: pathlib.Path) -> ConfigDict:
    """Return the config of a checkpoint, with the fields that flags change.

    Args:
        values: The flags.
        path: A working directory, or the folder of a checkpoint.
    """
    config = checkpoint.best_config(path)
    config.update_from_flattened_dict(config_flags.get_override_values(values["config"]))
    return config.lock()


def use_weights(weights: str, workdir: pathlib.Path) -> None:
    """Import weights into a working directory without a checkpoint.

    In one with a checkpoint, check that its run started from them: the flags of a training are
    accepted by its evaluation.

    Args:
        weights: A name or a file, as `cached.checkpoint_folder` accepts it.
        workdir: The working directory.

    Raises:
        ValueError: If the run started from other weights, or the weights are a working directory.
    """
    try:
        start = checkpoint.best_config(workdir).init.path
    except FileNotFoundError:
        import_weights(weights, workdir)
        return
    if start != weights:
        raise ValueError(
            f"--weights={weights}, but the checkpoint in {workdir} was trained with "
            f"config.init.path={start!r}; leave --weights out to evaluate this checkpoint, or give "
            "another --workdir to evaluate the weights."
        )


def import_weights(weights: str, workdir: pathlib.Path) -> None:
    """Write weights as the checkpoint of a working directory, and print that.

    Raises:
        ValueError: If they are a working directory, which can be evaluated itself.
    """
    folder = cached.checkpoint_folder(weights)
    if folder == to_path(weights, absolute=False):
        raise ValueError(
            f"--weights={weights} is a run's own folder; evaluate it with --workdir={weights}."
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"--workdir={workdir} has no checkpoint; with --distributed, write it with "
            f"`retinanet-jax import-weights --input={weights} --output={workdir}` first."
        )
    imported = checkpoint.load(folder)
    config = imported.config.copy_and_resolve_references().unlock()
    config.init.update(source="checkpoint", path=weights)
    checkpoint.write_imported(workdir, imported.variables, config, imported.categories)
    print(f"{weights} is now the checkpoint in {workdir}", flush=True)


def use_evaluation_data(values: Any, config: ConfigDict, trained: ConfigDict | None) -> None:
    """Let an evaluation read --data, and print what was detected.

    Args:
        values: The flags.
        config: The config of the evaluation; its fields of `data` are set.
        trained: The config of the run, which may have held some of the images out of training;
            None if there is no run.
    """
    given = set(config_flags.get_override_values(values["config"]))
    line = datasets.use_evaluation_dataset(config, to_path(values.data), trained, given)
    print(line, flush=True)
