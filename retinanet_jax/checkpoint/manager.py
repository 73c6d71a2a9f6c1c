"""Writing of checkpoints during training, and the choice of those that are kept."""

import heapq
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from retinanet_jax import stored_config
from retinanet_jax.checkpoint.checks import (
    check_averages,
    check_categories,
    check_model,
    check_resumable,
    check_shapes,
    check_split,
    print_differences,
)
from retinanet_jax.checkpoint.reading import (
    FOLDER,
    NOT_MEASURED,
    ap_file,
    item_handlers,
    read_config,
    saved_ap,
    step_folders,
    to_categories,
)
from retinanet_jax.data.sources.base import Category
from retinanet_jax.utils.files import write_json


class CheckpointManager:
    """The checkpoints of a working directory, saved in the background during training.

    It keeps the newest checkpoints, the one with the highest AP, and those that await their AP.
    Only the first host, which is the one that deletes checkpoints, must know the AP.

    Args:
        workdir: The working directory; its folder `checkpoints` is created if necessary.
        config: The run's config, stored with each checkpoint.
        categories: The dataset's categories, stored with each checkpoint.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, categories: Sequence[Category]
    ) -> None:
        self.workdir = workdir
        self._config = config
        self._categories = tuple(categories)
        self._folder = (workdir / FOLDER).absolute()
        if jax.process_index() == 0:
            remove_partial_checkpoints(self._folder)
        # AP by step; None while it is awaited.
        self._aps: dict[int, float | None] = {
            int(folder.name): saved_ap(folder) for folder in step_folders(self._folder)
        }
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=item_handlers(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_PreserveSteps(self._preserved_steps)
            ),
        )

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, variables: Any, training: Any, *, awaits_ap: bool = False) -> None:
        """Start to save a checkpoint; it is complete when the manager is closed.

        Args:
            step: The number of steps done.
            variables: The network's parameters and batch statistics.
            training: The rest of the training state, for resuming.
            awaits_ap: Whether the AP of this step is being computed, and `record_ap` follows. Until
                then the checkpoint is preserved.
        """
        self._aps[step] = None if awaits_ap else NOT_MEASURED
        categories: Any = [category._asdict() for category in self._categories]
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                training=ocp.args.StandardSave(training),
                config=ocp.args.JsonSave(stored_config.config_to_json(self._config)),
                categories=ocp.args.JsonSave(categories),
            ),
        )

    def confirm(self, step: int) -> None:
        """Confirm the checkpoints up to a step: the losses of the steps after them are finite."""

    def check_for_errors(self) -> None:
        """Raise OSError if a checkpoint that is being saved could not be written."""
        self._manager.check_for_errors()

    def is_complete(self, step: int) -> bool:
        """Return whether the checkpoint of a step is completely written."""
        return (self._folder / str(step)).is_dir()

    def record_ap(self, step: int, ap: float) -> None:
        """Add the AP to the checkpoint of a step, and delete the checkpoints that it supersedes.

        It is called on the first host only.

        Args:
            step: A step that was saved with `awaits_ap`, or in an earlier run.
            ap: COCO AP; NOT_MEASURED if it is undefined. The checkpoint with the highest is best.
        """
        self._manager.wait_until_finished()
        file = ap_file(self._folder / str(step))
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"AP": ap})
        self._aps[step] = ap
        for superseded in self._aps.keys() - self._preserved_steps():
            shutil.rmtree(self._folder / str(superseded), ignore_errors=True)
            del self._aps[superseded]
        self._manager.reload()

    def _preserved_steps(self) -> set[int]:
        return steps_to_preserve(self._aps, self._config.keep_checkpoints)

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def saved_config(self, step: int) -> ConfigDict:
        """Return the config that the checkpoint of a step stores."""
        return read_config(self._folder / str(step))

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
        folder = self._folder / str(step)
        metadata = self._manager.item_metadata(step)
        check_resumable(folder, metadata["training"])
        args = ocp.args.Composite(categories=ocp.args.JsonRestore())
        saved_categories = self._manager.restore(step, args=args)["categories"]
        check_categories(folder, to_categories(saved_categories), self._categories)
        saved_config = self.saved_config(step)
        check_model(folder, saved_config, self._config)
        check_split(folder, saved_config, self._config)
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


class _PreserveSteps(preservation_policy.PreservationPolicy):
    """Orbax's interface to a function that returns the steps to preserve."""

    def __init__(self, preserved_steps: Callable[[], set[int]]) -> None:
        self._preserved_steps = preserved_steps

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: preservation_policy.PreservationContext,
    ) -> list[bool]:
        preserved = self._preserved_steps()
        return [checkpoint.step in preserved for checkpoint in checkpoints]


def steps_to_preserve(aps: Mapping[int, float | None], num_newest: int) -> set[int]:
    """Return the steps of the newest checkpoints, of the best one, and of those that await an AP.

    Args:
        aps: The AP of each checkpoint, by step; None while it is awaited.
        num_newest: The number of newest checkpoints.
    """
    awaited = {step for step, ap in aps.items() if ap is None}
    measured = {step: ap for step, ap in aps.items() if ap is not None}
    best = heapq.nlargest(1, measured, key=lambda step: (measured[step], step))
    return {*heapq.nlargest(num_newest, aps), *best, *awaited}


def remove_partial_checkpoints(folder: pathlib.Path) -> None:
    """Remove the incomplete checkpoints that a killed run left in `folder`.

    Orbax itself would do so in a thread that outlives its manager and interferes with the next one.
    """
    for partial in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(partial)


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
        checkpoints.save(0, variables, {"step": np.zeros((), np.int32)})
