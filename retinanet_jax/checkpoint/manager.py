"""Writing of checkpoints during training, and the choice of those that are kept."""

import contextlib
import heapq
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from retinanet_jax import stored_config
from retinanet_jax.checkpoint import integrity
from retinanet_jax.checkpoint.checks import (
    check_averages,
    check_categories,
    check_model,
    check_resumable,
    check_shapes,
    check_split,
    print_differences,
)
from retinanet_jax.checkpoint.failures import save_error, silence_orbax
from retinanet_jax.checkpoint.finite import not_finite
from retinanet_jax.checkpoint.reading import (
    AP_FILE,
    FOLDER,
    NOT_MEASURED,
    item_handlers,
    read_categories,
    read_config,
    saved_ap,
    step_folders,
    step_of_first_host,
)
from retinanet_jax.checkpoint.saving import Saving
from retinanet_jax.data.sources.base import Category
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.paths import is_remote
from retinanet_jax.utils.progress import join_first
from retinanet_jax.utils.threads import DaemonThreads


class CheckpointManager:
    """The checkpoints of a working directory, saved in the background during training.

    A checkpoint counts when the digests of its files are written. That is when it is confirmed: the
    loss of the next step is finite. It keeps the newest of these checkpoints, the one with the
    highest AP, and those that await their AP. The first host confirms and deletes checkpoints; only
    it must know the AP.

    Args:
        workdir: The working directory; its folder `checkpoints` is created if necessary. `recover`
            has left only checkpoints of earlier runs that can be used.
        config: The run's config, stored with each checkpoint.
        categories: The dataset's categories, stored with each checkpoint.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, categories: Sequence[Category]
    ) -> None:
        self.workdir = workdir
        self._config = config
        self._categories = tuple(categories)
        self._folder = workdir / FOLDER
        self._saving: Saving | None = None  # the latest one
        self._is_first_host = jax.process_index() == 0
        # AP by step, of the complete checkpoints; None while it is awaited. Two threads change it.
        self._aps: dict[int, float | None] = {}
        self._aps_lock = threading.Lock()
        if self._is_first_host:
            self._folder.mkdir(parents=True, exist_ok=True)
            steps = step_folders(self._folder)
            self._aps.update({int(folder.name): saved_ap(folder) for folder in steps})
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**item_handlers())
        )
        self._thread = DaemonThreads(1)  # completes the checkpoints
        silence_orbax()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        try:
            if self._saving:
                self._saving.decide(is_good=False)  # unless it is confirmed
                self._saving.outcome.exception()  # wait for it
            # An error that ends the run is not replaced by others that follow from it.
            with contextlib.suppress(Exception) if error_type else contextlib.nullcontext():
                self._wait()
                self._checkpointer.close()
        finally:
            self._thread.close()

    def save(self, step: int, variables: Any, training: Any, *, awaits_ap: bool = False) -> None:
        """Start to save a checkpoint, which is complete some time after `confirm`.

        Earlier checkpoints are confirmed, because the loss of this step must be finite.

        Args:
            step: The number of steps done.
            variables: The network's parameters and batch statistics.
            training: The rest of the training state, for resuming.
            awaits_ap: Whether the AP of this step is being computed, and `record_ap` follows. Until
                then the checkpoint is preserved.

        Raises:
            FloatingPointError: If an array is not finite.
            OSError: If this checkpoint, or the one before, cannot be written.
        """
        categories: Any = [category._asdict() for category in self._categories]
        if names := [*not_finite(training), *not_finite(variables)]:
            raise FloatingPointError(
                f"the checkpoint of step {step} is not saved, because these arrays are not finite: "
                f"{join_first(names)}."
            )
        self.confirm(step - 1)
        self._wait()
        num_bytes = sum(x.nbytes for x in jax.tree.leaves((variables, training)))
        saving = Saving(step, awaits_ap, num_bytes)
        try:
            if self._is_first_host and not is_remote(self._folder) and not self._folder.exists():
                raise FileNotFoundError("the working directory was removed")
            self._checkpointer.save(
                self._folder / str(step),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    training=ocp.args.StandardSave(training),
                    config=ocp.args.JsonSave(stored_config.config_to_json(self._config)),
                    categories=ocp.args.JsonSave(categories),
                ),
            )
        except Exception as error:
            raise self._error(saving, error) from None
        saving.outcome = self._thread.submit(self._complete, saving)
        self._saving = saving

    def _complete(self, saving: Saving) -> None:
        """Wait until a checkpoint is written and confirmed, then write its digests, in a thread."""
        folder = self._folder / str(saving.step)
        try:
            self._checkpointer.wait_until_finished()
            if not self._is_first_host:
                return
            digests = integrity.compute_digests(folder)
            if saving.is_good():
                integrity.write_digests(folder, digests)
                self._add_ap(saving.step, None if saving.awaits_ap else NOT_MEASURED)
            else:
                integrity.remove(folder)
                print(f"{folder}: removed, no finite step has followed", flush=True)
        except Exception as error:
            raise self._error(saving, error) from None

    def _wait(self) -> None:
        """Wait for the checkpoint that is being saved, if any."""
        if self._saving:
            self._saving.outcome.result()

    def _error(self, saving: Saving, error: Exception) -> OSError:
        """Return the error of a checkpoint that cannot be saved, and remove what was written."""
        folder = self._folder / str(saving.step)
        newest = max(filter(self.is_complete, self._aps), default=None)
        if self._is_first_host:
            for partial in self._folder.glob(f"{saving.step}{TMP_DIR_SUFFIX}*"):
                with contextlib.suppress(OSError):  # then the next start of a run removes it
                    integrity.remove(partial)
        return save_error(folder, error, num_bytes=saving.num_bytes, newest=newest)

    def confirm(self, step: int) -> None:
        """Confirm the checkpoints up to a step: the losses of the steps after them are finite."""
        if self._saving and self._saving.step <= step:
            self._saving.decide(is_good=True)

    def check_for_errors(self) -> None:
        """Raise OSError if a checkpoint that is being saved could not be written."""
        if self._saving and self._saving.outcome.done():
            self._saving.outcome.result()

    def is_complete(self, step: int) -> bool:
        """Return whether the checkpoint of a step is completely written and confirmed."""
        return integrity.is_complete(self._folder / str(step))

    def record_ap(self, step: int, ap: float) -> None:
        """Add the AP to the checkpoint of a step, and delete the checkpoints that it supersedes.

        It is called on the first host only.

        Args:
            step: A step that was saved with `awaits_ap` and confirmed, or in an earlier run.
            ap: COCO AP; NOT_MEASURED if it is undefined. The checkpoint with the highest is best.

        Raises:
            FloatingPointError: If the checkpoint is not confirmed.
            OSError: If it cannot be written, or the checkpoint could not be.
        """
        if self._saving and self._saving.step == step:
            if not self._saving.is_decided():  # waiting for it would never end
                raise FloatingPointError(
                    f"no finite step has followed the evaluation of step {step}."
                )
            self._wait()
        folder = self._folder / str(step)
        file = folder / AP_FILE
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"AP": ap})
        digests = integrity.read_digests(folder)
        if digests is not None:  # as in all versions since 0.5.0
            integrity.write_digests(folder, {**digests, AP_FILE: integrity.digest(file)})
        self._add_ap(step, ap)

    def _add_ap(self, step: int, ap: float | None) -> None:
        """Set the AP of a complete checkpoint, and delete those that it supersedes."""
        with self._aps_lock:
            self._aps[step] = ap
            preserved = steps_to_preserve(self._aps, self._config.keep_checkpoints)
            for superseded in self._aps.keys() - preserved:
                integrity.remove(self._folder / str(superseded))
                del self._aps[superseded]

    def best(self) -> tuple[int, float] | None:
        """Return the step and the AP of the best checkpoint; None if no AP is defined.

        It is called on the first host only.
        """
        with self._aps_lock:
            aps = {k: ap for k, ap in self._aps.items() if ap is not None and ap != NOT_MEASURED}
        return next(((step, aps[step]) for step in best_steps(aps)), None)

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None if there is none."""
        return step_of_first_host(lambda: max(self._aps, default=None))

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
        handlers = item_handlers()
        saved = {name: handlers[name].metadata(folder / name) for name in ("variables", "training")}
        check_resumable(folder, saved["training"])
        check_categories(folder, read_categories(folder), self._categories)
        saved_config = self.saved_config(step)
        check_model(folder, saved_config, self._config)
        check_split(folder, saved_config, self._config)
        print_differences(folder, saved_config, self._config)
        check_shapes(folder, saved["variables"], variables, "weights of another network")
        check_averages(folder, saved["training"], training, self._config.data.batch_size)
        check_shapes(folder, saved["training"], training, "state of another optimizer")
        restored = self._checkpointer.restore(
            folder,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(variables),
                training=ocp.args.StandardRestore(training),
            ),
        )
        return restored["variables"], restored["training"]


def steps_to_preserve(aps: Mapping[int, float | None], num_newest: int) -> set[int]:
    """Return the steps of the newest checkpoints, of the best one, and of those that await an AP.

    Args:
        aps: The AP of each checkpoint, by step; None while it is awaited.
        num_newest: The number of newest checkpoints.
    """
    awaited = {step for step, ap in aps.items() if ap is None}
    return {*heapq.nlargest(num_newest, aps), *awaited, *best_steps(aps)}


def best_steps(aps: Mapping[int, float | None]) -> list[int]:
    """Return the step of the highest AP, of equal ones the latest; [] if no AP is known.

    Args:
        aps: As in `steps_to_preserve`.
    """
    known = {step: ap for step, ap in aps.items() if ap is not None}
    return heapq.nlargest(1, known, key=lambda step: (known[step], step))


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

    Raises:
        FloatingPointError: If an array is not finite.
        OSError: If the checkpoint cannot be written.
    """
    with CheckpointManager(workdir, config, categories) as checkpoints:
        checkpoints.save(0, variables, {"step": np.zeros((), np.int32)})
        checkpoints.confirm(0)
