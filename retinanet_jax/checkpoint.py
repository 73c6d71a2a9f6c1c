"""Checkpoints in WORKDIR/checkpoints/STEP, written by Orbax; each is complete or absent.

A checkpoint has four items: `variables` (parameters and batch statistics, all that prediction
needs), `training` (the rest of the training state, for resuming), `config` and `categories`. For
imported weights, which were not trained here, `training` is only the step, which is 0.

Later versions of this package can read a checkpoint: its item `config` contains the version of the
config's fields, and `stored_config.config_from_json` reads those of earlier versions.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from retinanet_jax import stored_config
from retinanet_jax.data.sources.base import Category

FOLDER = "checkpoints"
NOT_MEASURED = -1.0  # AP of a checkpoint that was not evaluated: lower than any other


class CheckpointManager:
    """The checkpoints of a working directory, saved in the background during training.

    Args:
        workdir: The working directory; its folder `checkpoints` is created if necessary.
        config: The run's config, stored with each checkpoint.
        categories: The dataset's categories, stored with each checkpoint.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, categories: Sequence[Category]
    ) -> None:
        self._config = config
        self._categories = tuple(categories)
        if jax.process_index() == 0:
            remove_partial_checkpoints(workdir / FOLDER)
        self._manager = ocp.CheckpointManager(
            (workdir / FOLDER).absolute(),
            item_handlers=item_handlers(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [
                        preservation_policy.LatestN(config.keep_checkpoints),
                        preservation_policy.BestN(
                            get_metric_fn=by_ap, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=by_ap,  # only so that the metrics are written; the policy above decides
            ),
        )

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, variables: Any, training: Any, ap: float | None) -> None:
        """Start to save a checkpoint; it is complete when the manager is closed.

        Args:
            step: The number of steps done.
            variables: The network's parameters and batch statistics.
            training: The rest of the training state, for resuming.
            ap: COCO AP, or None if it was not evaluated at this step. The checkpoint with the
                highest AP is the best.
        """
        categories: Any = [category._asdict() for category in self._categories]
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                training=ocp.args.StandardSave(training),
                config=ocp.args.JsonSave(stored_config.config_to_json(self._config)),
                categories=ocp.args.JsonSave(categories),
            ),
            metrics={"AP": NOT_MEASURED if ap is None else ap},
        )

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def saved_config(self, step: int) -> ConfigDict:
        """Return the config that the checkpoint of a step stores."""
        args = ocp.args.Composite(config=ocp.args.JsonRestore())
        stored = self._manager.restore(step, args=args)["config"]
        return read_config(pathlib.Path(self._manager.directory) / str(step), stored)

    def restore(self, step: int, variables: Any, training: Any) -> tuple[Any, Any]:
        """Return (variables, training) of a checkpoint, and print the config fields that differ.

        Args:
            step: The checkpoint's step.
            variables: Shapes, dtypes and shardings to restore the variables with.
            training: The same for the rest of the training state.

        Raises:
            ValueError: If the checkpoint was trained with another network, other categories,
                another optimizer or other moving averages, or contains imported weights.
        """
        folder = pathlib.Path(self._manager.directory) / str(step)
        metadata = self._manager.item_metadata(step)
        check_resumable(folder, metadata["training"])
        args = ocp.args.Composite(categories=ocp.args.JsonRestore())
        saved_categories = self._manager.restore(step, args=args)["categories"]
        check_categories(folder, to_categories(saved_categories), self._categories)
        saved_config = self.saved_config(step)
        check_model(folder, saved_config, self._config)
        print_differences(folder, saved_config, self._config)
        check_shapes(folder, metadata["variables"], variables, "weights of another network")
        check_averages(folder, metadata["training"], training, self._config.data.batch_size)
        check_shapes(folder, metadata["training"], training, "state of another optimizer")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(variables),
                training=ocp.args.StandardRestore(training),
            ),
        )
        return restored["variables"], restored["training"]


def remove_partial_checkpoints(folder: pathlib.Path) -> None:
    """Remove the incomplete checkpoints that a killed run left in `folder`.

    Orbax itself would do so in a thread that outlives its manager and interferes with the next one.
    """
    for partial in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(partial)


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
        config=read_config(folder, saved["config"]),
        categories=to_categories(saved["categories"]),
        step=int(saved["training"]["step"]),
        folder=folder,
    )


def read_config(folder: pathlib.Path, stored: Mapping[str, Any]) -> ConfigDict:
    """Return the config that a checkpoint's JSON stores; raise ValueError with its folder."""
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


def saved_ap(folder: pathlib.Path) -> float:
    """Return the AP that was measured when a checkpoint was saved, or NOT_MEASURED."""
    file = folder / "metrics" / "metrics"
    return by_ap(json.loads(file.read_text())) if file.exists() else NOT_MEASURED


def by_ap(metrics: Mapping[str, float]) -> float:
    """Return the AP among a checkpoint's metrics; the checkpoint with the highest is the best."""
    return metrics["AP"]


def to_categories(saved: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Return the categories that a checkpoint stores as JSON."""
    return tuple(Category(**category) for category in saved)


def write_imported(
    workdir: pathlib.Path, variables: Any, config: ConfigDict, categories: Sequence[Category]
) -> None:
    """Write weights that were not trained here as the only checkpoint of a working directory.

    It can be used for prediction, evaluation and as the start of other runs, but not resumed.

    Args:
        workdir: The working directory.
        variables: The network's parameters and batch statistics.
        config: The config that the weights were trained with.
        categories: The classes, in the order of the network's outputs.
    """
    with CheckpointManager(workdir, config, categories) as checkpoints:
        checkpoints.save(0, variables, {"step": np.zeros((), np.int32)}, ap=None)


def check_resumable(folder: pathlib.Path, training: Any) -> None:
    """Raise ValueError if `training` (Orbax metadata) is that of imported weights."""
    if set(getattr(training, "tree", training)) == {"step"}:
        raise ValueError(
            f"{folder}: imported weights, which training cannot resume from; to start from them "
            f"give --config.init.source=checkpoint --config.init.path={folder.parent.parent} "
            "and another --workdir."
        )


def check_averages(
    folder: pathlib.Path, saved: Any, expected: Mapping[str, Any], batch_size: int
) -> None:
    """Raise ValueError if a checkpoint has another number of moving averages of the foreground.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: Orbax metadata of the item `training`.
        expected: Shapes of the item `training`.
        batch_size: Images of a batch.
    """
    there = tuple(getattr(saved, "tree", saved)["normalizer"].shape)
    here = tuple(expected["normalizer"].shape)
    if there != here:
        fix = f"--config.loss.ema_images={batch_size // there[0] if there else 0}"
        if there and batch_size % there[0]:
            fix = f"a --config.data.batch_size that is a multiple of {there[0]}"
        raise ValueError(
            f"{folder}: moving averages of shape {there}, this run has {here}; to resume, give "
            f"{fix}."
        )


def check_shapes(path: pathlib.Path | str, saved: Any, expected: Any, description: str) -> None:
    """Check that two trees have arrays of the same names and shapes.

    Args:
        path: The file or folder that `saved` comes from.
        saved: A tree of arrays, or its Orbax metadata.
        expected: A tree of arrays or shapes.
        description: The content of `path` if the trees differ ("weights of another network").

    Raises:
        ValueError: If they differ; the message lists the first differing arrays.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape)
            for keys, leaf in leaves
        }

    there, here = shapes(getattr(saved, "tree", saved)), shapes(expected)
    differing = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if differing:
        listed = ", ".join(
            f"{name} {there.get(name)} (config: {here.get(name)})" for name in differing[:3]
        )
        raise ValueError(
            f"{path}: {description}; {len(differing)} arrays differ: {listed}. "
            "Use the config it was trained with, or another --workdir."
        )


def check_model(folder: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Raise ValueError if `config` describes another network than the config in a checkpoint.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: The checkpoint's config.
        config: The config of this run.
    """
    for name, before, now in stored_config.differences(saved, config):
        if name.partition(".")[0] in stored_config.NETWORK_SECTIONS:
            raise ValueError(
                f"{folder}: trained with config.{name}={before}, this run has {now}; "
                "use the config it was trained with, or another --workdir."
            )


def print_differences(folder: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Print in one line which config fields a resumed run changes."""
    changed = [
        f"config.{name}={now} (was {before})"
        for name, before, now in stored_config.differences(saved, config)
    ]
    if changed:
        print(f"{folder}: resuming with {', '.join(changed)}", flush=True)


def check_categories(
    folder: pathlib.Path, saved: Sequence[Category], categories: Sequence[Category]
) -> None:
    """Raise ValueError if a dataset has other categories than a checkpoint, or another order.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: The checkpoint's categories.
        categories: The dataset's categories.
    """
    if tuple(saved) != tuple(categories):
        differing = [c for c in saved if c not in categories]
        differing += [c for c in categories if c not in saved]
        raise ValueError(
            f"{folder}: trained on {len(saved)} categories, the dataset has {len(categories)}; "
            f"they differ first in {differing[0] if differing else 'their order'}. "
            "Give the --config and fields of its training, or another --workdir."
        )
