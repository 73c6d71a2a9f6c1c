"""Reading of checkpoints: which one of a working directory, its items and its AP."""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from retinanet_jax import stored_config
from retinanet_jax.data.sources.base import Category

FOLDER = "checkpoints"
NOT_MEASURED = -1.0  # AP of a checkpoint that was not evaluated: lower than any other


def item_handlers() -> dict[str, ocp.CheckpointHandler]:
    """Return each item's handler; without them Orbax cannot read what another process wrote."""
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "categories": ocp.JsonCheckpointHandler(),
    }


class Checkpoint(NamedTuple):
    """A checkpoint in memory: all that prediction, evaluation and exports need."""

    variables: dict[str, Any]  # numpy arrays
    config: ConfigDict
    categories: tuple[Category, ...]
    step: int
    folder: pathlib.Path


def load(path: str | pathlib.Path) -> Checkpoint:
    """Read a checkpoint to the host, whatever devices it was saved on.

    Args:
        path: A working directory, of which the checkpoint with the highest AP is read (the newest
            if none was evaluated), or the folder of one step.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If another version of this package wrote it, with fields that are unknown here.
    """
    folder = find(pathlib.Path(path).expanduser().absolute())
    # Unlike the standard handler, this handler can read a part of an item.
    handlers = {**item_handlers(), "training": ocp.PyTreeCheckpointHandler()}
    shapes = handlers["variables"].metadata(folder / "variables").tree
    step = {"step": np.zeros((), np.int32)}
    handler = ocp.CompositeCheckpointHandler(**handlers)
    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        saved = checkpointer.restore(
            folder,
            args=ocp.args.Composite(
                # Without a target Orbax requires the devices that the arrays were saved on.
                variables=ocp.args.StandardRestore(
                    jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
                ),
                training=ocp.args.PyTreeRestore(
                    step,
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), step),
                    partial_restore=True,
                ),
                config=ocp.args.JsonRestore(),
                categories=ocp.args.JsonRestore(),
            ),
        )
    return Checkpoint(
        variables={"batch_stats": {}, **saved["variables"]},
        config=_parse_config(folder, saved["config"]),
        categories=to_categories(saved["categories"]),
        step=int(saved["training"]["step"]),
        folder=folder,
    )


def read_config(folder: pathlib.Path) -> ConfigDict:
    """Return the config of the checkpoint in `folder`; a single host may call this.

    Raises:
        ValueError: If another version of this package wrote it, with fields that are unknown here.
    """
    # Not with Orbax, which waits for all hosts.
    return _parse_config(folder, json.loads((folder / "config" / "metadata").read_text()))


def _parse_config(folder: pathlib.Path, stored: Mapping[str, Any]) -> ConfigDict:
    """Return the config that a checkpoint stores as JSON; error messages begin with its folder."""
    try:
        return stored_config.config_from_json(stored)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def find(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of one step's checkpoint: `path` itself, or the best one in it.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    if (path / "variables").is_dir():
        return path
    folder = path if path.name == FOLDER else path / FOLDER
    steps = step_folders(folder)
    if not steps:
        raise FileNotFoundError(
            f"{path}: no checkpoint here; give the working directory of a training run, or one of "
            f"its {FOLDER}/STEP folders."
        )
    return max(steps, key=lambda step: (saved_ap(step), int(step.name)))


def newest_step(workdir: pathlib.Path) -> int:
    """Return the step of the newest checkpoint of a working directory; 0 if there is none."""
    return max((int(folder.name) for folder in step_folders(workdir / FOLDER)), default=0)


def step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints in a folder, in any order."""
    return [p for p in folder.glob("*") if p.name.isdigit() and (p / "variables").is_dir()]


def ap_file(folder: pathlib.Path) -> pathlib.Path:
    """Return the file with the AP of a checkpoint; it is absent until the AP is known."""
    return folder / "metrics" / "metrics"


def saved_ap(folder: pathlib.Path) -> float:
    """Return the AP of a checkpoint; NOT_MEASURED if it is undefined or not (yet) known."""
    file = ap_file(folder)
    return json.loads(file.read_text())["AP"] if file.exists() else NOT_MEASURED


def to_categories(saved: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Return the categories that a checkpoint stores as JSON."""
    return tuple(Category(**category) for category in saved)
