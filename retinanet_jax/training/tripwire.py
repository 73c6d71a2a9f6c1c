"""The tripwire of a run: it finds each step that is not finite, names the cause, and stores it."""

import collections
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Source
from retinanet_jax.modeling import build_model
from retinanet_jax.training import replay
from retinanet_jax.training.diagnosis import Diagnosis, ImageName, make_diagnose, shorten
from retinanet_jax.training.metrics import remove_lines_after
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, count_steps
from retinanet_jax.utils.files import write_atomically, write_json
from retinanet_jax.utils.progress import one_line

MAX_STEPS_AHEAD = 2  # the devices compute one step while the next one waits
MAX_SKIPPED = 20  # steps in a row; then the state, and not a batch, is the cause
SKIPPED = "skipped_steps.jsonl"


class StartedStep(NamedTuple):
    """A step that was started on the devices."""

    step: int  # number of steps done after it
    host_batch: Batch
    metrics: dict[str, Array]


class Tripwire:
    """Waits for the steps in flight, and checks that each is finite.

    The first step that is not ends the run or, where steps are skipped, MAX_SKIPPED in a row do.

    Args:
        examiner: Finds the causes, and records them.
        check_void: Called for a step that is not finite; it raises an exception if the step is
            void, which means that it was started to stop the run, and without its data.

    Attributes:
        last_finite: The latest step that is known to be finite; -1 if none is.
        finite_batch: This host's part of its batch; None if there is none.
    """

    def __init__(
        self, examiner: "Examiner", check_void: Callable[[int], None] = lambda step: None
    ) -> None:
        self.last_finite = -1
        self.finite_batch: Batch | None = None
        self._examiner, self._check_void, self._num_in_a_row = examiner, check_void, 0
        self._running: collections.deque[StartedStep] = collections.deque()
        self._state: Any = None  # the TrainState after the latest step

    @property
    def num_skipped(self) -> int | None:
        """The number of steps skipped since the first start of the run; None if none may be."""
        return self._examiner.num_skipped if self._examiner.skips else None

    def watch(
        self, step: int, host_batch: Batch, state: TrainState, metrics: dict[str, Array]
    ) -> None:
        """Add a step that was just started, and wait until at most MAX_STEPS_AHEAD are running.

        Each of them has a batch in the devices' memory.

        Args:
            step: Number of steps done after it.
            host_batch: This host's part of its batch.
            state: The state after it.
            metrics: The metrics that the train step returns.

        Raises:
            FloatingPointError: If a step is not finite and ends the run.
        """
        self._state = state
        self._running.append(StartedStep(step, host_batch, metrics))
        # Where a step may be skipped, the next one changes the state in which it was taken.
        while len(self._running) > (0 if self._examiner.skips else MAX_STEPS_AHEAD):
            self._check(self._running.popleft())

    def finish(self) -> None:
        """Wait for all steps, and check each.

        Raises:
            FloatingPointError: If one of them is not finite and ends the run.
        """
        while self._running:
            self._check(self._running.popleft())

    def drop_after(self, step: int, state: TrainState) -> None:
        """Drop the steps that are void.

        Args:
            step: Number of steps done after the last one that is not.
            state: The state after that step.
        """
        self._state = state
        self._running = collections.deque(x for x in self._running if x.step <= step)

    def _check(self, started: StartedStep) -> None:
        if started.metrics["is_finite"]:
            self.last_finite, self.finite_batch = started.step, started.host_batch
            self._num_in_a_row = 0
            return
        self._check_void(started.step)
        summary, images = self._examiner.examine(started, self._state)
        self._num_in_a_row += 1
        if not self._examiner.skips:
            raise FloatingPointError(summary)
        if self._num_in_a_row == MAX_SKIPPED:
            raise FloatingPointError(f"{MAX_SKIPPED} steps in a row are not finite: {summary}")
        self._examiner.record_skipped(started.step, summary, images)


class Examiner:
    """Finds the cause of a step that is not finite, and stores the step for a replay.

    Only the first such step of a process is stored. The steps that are skipped are recorded in
    WORKDIR/skipped_steps.jsonl.

    Args:
        config: The run's config.
        train_data: The training data, for the names of images.
        workdir: The run's working directory.
        mesh: The devices.
        start_step: Number of steps that were done before this run started or resumed.

    Attributes:
        skips: Whether steps that are not finite are skipped.
    """

    def __init__(
        self,
        config: ConfigDict,
        train_data: Source,
        workdir: pathlib.Path,
        mesh: jax.sharding.Mesh,
        start_step: int,
    ) -> None:
        self.skips = config.nonfinite == "skip"
        self._config, self._train_data, self._workdir = config, train_data, workdir
        self._shardings = sharding.batch_shardings(mesh)
        self._writes, self._has_stored = jax.process_index() == 0, False
        model = build_model(config, len(train_data.categories))
        self._diagnose = make_diagnose(model, make_optimizer(config), config, mesh)
        self._record, self._skipped = workdir / SKIPPED, ""  # lines of JSON
        if self._writes and self._record.exists():
            remove_lines_after(self._record, start_step)
            self._skipped = self._record.read_text(encoding="utf-8")

    @property
    def num_skipped(self) -> int:
        """The number of steps that were skipped since the run's first start."""
        return self._skipped.count("\n")

    def examine(self, started: StartedStep, state: TrainState) -> tuple[str, list[ImageName]]:
        """Store a step that is not finite, if it is the first, and find the cause.

        All hosts must call this.

        Args:
            started: The step.
            state: The state after it, in which it has changed only the counters of skipped steps.

        Returns:
            One line about it, and the images that are the cause.
        """
        before = count_steps(state, -1) if self.skips else state
        batch = sharding.put_batch(started.host_batch, self._shardings)
        images = tuple(
            ImageName(self._train_data.image_ids[index], self._train_data.file_name(index))
            for index in replay.to_host(batch.index).tolist()
        )
        stores, self._has_stored = not self._has_stored, True
        outcome = self._store(started.step, batch, before, images) if stores else ""
        try:
            diagnosis = self._diagnose(before, batch, started.step, started.metrics, images)
        except jax.errors.JaxRuntimeError as error:  # the devices' memory is too small for it
            cause = shorten(one_line(error))
            return f"step {started.step} is not finite; no cause was found ({cause}){outcome}", []
        if stores:
            self._write_diagnosis(diagnosis)
        return diagnosis.summary() + outcome, diagnosis.images

    def record_skipped(self, step: int, summary: str, images: Sequence[ImageName]) -> None:
        """Print and record a step that is skipped.

        Args:
            step: Number of steps done after it.
            summary: One line about it.
            images: The images that are the cause.
        """
        line = {"step": step, "summary": summary, "images": [x._asdict() for x in images]}
        self._skipped += json.dumps(line) + "\n"
        print(f"skipped ({self.num_skipped} so far): {summary}", flush=True)
        if self._writes:
            write_atomically(self._record, self._skipped)

    def _store(
        self, step: int, batch: Batch, state: TrainState, images: tuple[ImageName, ...]
    ) -> str:
        """Write the file of a step for --replay, and return how to use it."""
        file = replay.path_of(self._workdir, step)
        arrays = replay.to_host((batch, state))
        stored = replay.StoredStep(step, self._config, self._train_data.categories, images, *arrays)
        if self._writes:
            try:
                replay.write_step(file, stored)
            except OSError as error:
                return f"; {file} could not be written ({error.strerror or error})"
        return f"; to repeat the step: python -m retinanet_jax.main --replay={file}"

    def _write_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Write all that is known of a step next to its file, if that is possible."""
        file = replay.path_of(self._workdir, diagnosis.step).with_suffix(".json")
        if self._writes:
            try:
                file.parent.mkdir(exist_ok=True)
                write_json(file, diagnosis.to_json())
            except OSError as error:
                print(f"warning: {file} could not be written ({error.strerror})", flush=True)
