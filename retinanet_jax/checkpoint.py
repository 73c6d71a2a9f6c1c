"""CheckpointManager: WORKDIR/checkpoints/STEP, written by Orbax, complete or absent.

Each holds four items: `variables` (params and batch statistics: all that prediction needs),
`training` (what resuming needs beside them), `config` and `categories`. Of weights that were
imported and not trained here, `training` holds the step alone, which is 0.
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

from retinanet_jax.config import DEFINING, check_fields, differences, plain
from retinanet_jax.data.sources.base import Category

FOLDER = "checkpoints"
NOT_MEASURED = -1.0  # AP of a checkpoint that was not evaluated: below all others


class CheckpointManager:
    """The checkpoints of a working directory, saved in the background while training goes on."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: ConfigDict,
        categories: Sequence[Category],
    ) -> None:
        self._config = config
        self._categories = tuple(categories)
        if jax.process_index() == 0:
            remove_half_written(workdir / FOLDER)
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
                best_fn=by_ap,  # the policy above decides; without this no metric is written
            ),
        )

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, variables: Any, training: Any, ap: float | None) -> None:
        """Starts to save; `ap` (if evaluated at this step) decides which checkpoint is the best."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                training=ocp.args.StandardSave(training),
                config=ocp.args.JsonSave(plain(self._config)),
                categories=ocp.args.JsonSave([one._asdict() for one in self._categories]),
            ),
            metrics={"AP": NOT_MEASURED if ap is None else ap},
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, variables: Any, training: Any) -> tuple[Any, Any]:
        """(variables, training) of `step`, in the shapes, types and places of those given.

        Raises ValueError where the checkpoint is of another model or of other categories, or holds
        imported weights; what else differs between its config and this run's is printed.
        """
        folder = pathlib.Path(self._manager.directory) / str(step)
        metadata = self._manager.item_metadata(step)
        check_resumable(folder, metadata["training"])
        saved = self._manager.restore(
            step,
            args=ocp.args.Composite(
                config=ocp.args.JsonRestore(), categories=ocp.args.JsonRestore()
            ),
        )
        check_categories(folder, to_categories(saved["categories"]), self._categories)
        saved_config = ConfigDict(saved["config"])
        check_model(folder, saved_config, self._config)
        print_differences(folder, saved_config, self._config)
        check_shapes(folder, metadata["variables"], variables, what="weights of another model")
        check_shapes(folder, metadata["training"], training, what="state of another optimizer")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(variables),
                training=ocp.args.StandardRestore(training),
            ),
        )
        return restored["variables"], restored["training"]


def remove_half_written(folder: pathlib.Path) -> None:
    """Removes what a killed run left of a checkpoint.

    Orbax would do it in a thread that outlives its manager, and that the next manager meets.
    """
    for partial in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(partial)


def item_handlers() -> dict[str, ocp.CheckpointHandler]:
    """How each item is stored; unless told, Orbax cannot look into what another process wrote."""
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "categories": ocp.JsonCheckpointHandler(),
    }


class Checkpoint(NamedTuple):
    """All that prediction and evaluation need to know of a training run."""

    variables: dict[str, Any]  # numpy arrays
    config: ConfigDict
    categories: tuple[Category, ...]
    step: int
    folder: pathlib.Path


def load(path: str | pathlib.Path) -> Checkpoint:
    """Reads a checkpoint: a working directory's best by AP (else its newest), or a step's folder.

    The arrays come to the host, whatever devices they were saved on, and wherever the folder was
    copied to. Raises FileNotFoundError where there is none, and ValueError where another version
    of this package wrote it, whose configs had other fields.
    """
    folder = find(pathlib.Path(path).expanduser().absolute())
    # Unlike the standard handler, this one reads a part of an item.
    handlers = {**item_handlers(), "training": ocp.PyTreeCheckpointHandler()}
    shapes = handlers["variables"].metadata(folder / "variables").tree
    step = {"step": np.zeros((), np.int32)}
    handler = ocp.CompositeCheckpointHandler(**handlers)
    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        saved = checkpointer.restore(
            folder,
            args=ocp.args.Composite(
                # Without a target Orbax wants the very devices that the arrays were saved on.
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
    config = ConfigDict(saved["config"])
    try:
        check_fields(config)
    except ValueError as error:
        raise ValueError(f"{folder}: written by another version of this program: {error}") from None
    return Checkpoint(
        variables={"batch_stats": {}, **saved["variables"]},
        config=config,
        categories=to_categories(saved["categories"]),
        step=int(saved["training"]["step"]),
        folder=folder,
    )


def find(path: pathlib.Path) -> pathlib.Path:
    """The folder of one step's checkpoint in or at `path`."""
    if (path / "variables").is_dir():
        return path
    folder = path if path.name == FOLDER else path / FOLDER
    steps = [p for p in folder.glob("*") if p.name.isdigit() and (p / "variables").is_dir()]
    if not steps:
        raise FileNotFoundError(
            f"{path}: no checkpoint here; give a --workdir that training wrote, or one of its "
            f"{FOLDER}/STEP folders."
        )
    return max(steps, key=lambda step: (saved_ap(step), int(step.name)))


def saved_ap(folder: pathlib.Path) -> float:
    """AP that was measured when this checkpoint was saved, or NOT_MEASURED."""
    file = folder / "metrics" / "metrics"
    return by_ap(json.loads(file.read_text())) if file.exists() else NOT_MEASURED


def by_ap(metrics: Mapping[str, float]) -> float:
    """What the best checkpoint is best by."""
    return metrics["AP"]


def to_categories(saved: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Categories from their JSON."""
    return tuple(Category(**category) for category in saved)


def write_imported(
    workdir: pathlib.Path, variables: Any, config: ConfigDict, categories: Sequence[Category]
) -> None:
    """Writes weights that were not trained here as the only checkpoint of a working directory.

    They predict, are evaluated and start other runs; there is nothing that could be resumed.
    """
    with CheckpointManager(workdir, config, categories) as checkpoints:
        checkpoints.save(0, variables, {"step": np.zeros((), np.int32)}, ap=None)


def check_resumable(where: pathlib.Path, training: Any) -> None:
    """Raises ValueError where `training` (metadata) is that of imported weights."""
    if set(getattr(training, "tree", training)) == {"step"}:
        raise ValueError(
            f"{where}: imported weights, which no training can be resumed from; start one from "
            f"them with --config.init.source=checkpoint --config.init.path={where.parent.parent} "
            "and another --workdir."
        )


def check_shapes(where: pathlib.Path | str, saved: Any, wanted: Any, *, what: str) -> None:
    """Raises ValueError saying `what` is there, and the first differing arrays of two trees."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
            for path, x in leaves
        }

    have, want = shapes(getattr(saved, "tree", saved)), shapes(wanted)
    differing = [k for k in sorted({*have, *want}) if have.get(k) != want.get(k)]
    if differing:
        listed = ", ".join(f"{k} {have.get(k)} (config: {want.get(k)})" for k in differing[:3])
        raise ValueError(
            f"{where}: {what}; {len(differing)} arrays differ: {listed}. "
            "Use the config it was trained with, or another --workdir."
        )


def check_model(where: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Raises ValueError where `config` describes another network than the `saved` one."""
    for name, have, want in differences(plain(saved), plain(config)):
        if name.partition(".")[0] in DEFINING:
            raise ValueError(
                f"{where}: trained with config.{name}={have}, this run has {want}; "
                "use the config it was trained with, or another --workdir."
            )


def print_differences(where: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Prints in one line what a resumed run does otherwise than before."""
    differing = differences(plain(saved), plain(config))
    told = [f"config.{name}={want} (was {have})" for name, have, want in differing]
    if told:
        print(f"{where}: goes on with {', '.join(told)}", flush=True)


def check_categories(
    where: pathlib.Path, saved: Sequence[Category], data: Sequence[Category]
) -> None:
    """Raises ValueError where the data's categories are not those the checkpoint was trained on."""
    if tuple(saved) != tuple(data):
        differing = [c for c in saved if c not in data] + [c for c in data if c not in saved]
        raise ValueError(
            f"{where}: trained on {len(saved)} categories, the data has {len(data)}; they differ "
            f"first in {differing[0] if differing else 'their order'}. "
            "Use the data it was trained on, or another --workdir."
        )
