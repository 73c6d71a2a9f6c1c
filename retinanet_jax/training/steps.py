"""The loop over the steps of a run: training, logging, evaluations, checkpoints, and the stop."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.checkpoint import CheckpointManager, newest_step
from retinanet_jax.compilation import CompiledByShape
from retinanet_jax.data.batch import Batch
from retinanet_jax.evaluation import records
from retinanet_jax.stopping import Stopped, Stopping
from retinanet_jax.training.evaluations import TrainingEvaluations
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.observation import Observation
from retinanet_jax.training.step import TrainState, count_steps
from retinanet_jax.training.tripwire import Tripwire


class StepLoop:
    """Trains step by step, and does what is due after each step.

    Args:
        config: The run's config.
        compiled_step: The training step.
        mesh: The devices.
        checkpoints: The run's checkpoints.
        observation: What the run measures of itself.
        writer: The writer of the run's metrics.
        evaluations: The run's evaluations; None if there are none.
        tripwire: Checks that each step is finite.
        stopping: Raises where the run may stop, after a signal.
        void_batches: Returns this host's part of batches that change nothing, for some steps.
    """

    def __init__(
        self,
        config: ConfigDict,
        compiled_step: CompiledByShape,
        mesh: jax.sharding.Mesh,
        checkpoints: CheckpointManager,
        observation: Observation,
        writer: MetricWriter,
        evaluations: TrainingEvaluations | None,
        tripwire: Tripwire,
        stopping: Stopping,
        void_batches: Callable[[range], Iterable[Batch]],
    ) -> None:
        self._config, self._compiled_step = config, compiled_step
        self._shardings = sharding.batch_shardings(mesh)
        self._checkpoints, self._writer, self._evaluations = checkpoints, writer, evaluations
        self._observation, self._stopping, self._tripwire = observation, stopping, tripwire
        self._void_batches = void_batches

    def run(self, state: TrainState, host_batches: Iterable[Batch]) -> None:
        """Train from `state` on this host's batches, to the last one or to a signal.

        At a signal, and at an error of the data, the state of the latest step is saved.

        Args:
            state: The state that the run starts from. The steps reuse its memory.
            host_batches: This host's part of each batch.

        Raises:
            FloatingPointError: If a step is not finite.
            OSError: If a checkpoint cannot be saved, or data cannot be read.
            ValueError: If data is invalid.
        """
        first = step = saved = int(state.step)
        with contextlib.suppress(Stopped):
            self._stopping.begin(lambda: self._progress(first))
            if self._evaluations:
                self._evaluations.resume(state.variables, step)
                self._evaluations.check_patience(step)
            for batch in self._observation.batches(host_batches):
                with self._observation.step(step + 1):
                    state, metrics = self._step(state, batch)
                step += 1
                self._after_step(step, batch, state, metrics)
                if self._evaluations and self._evaluates_after(step):
                    self._finish_steps()
                    with self._observation.measure("evaluation"), self._saving_first():
                        self._evaluations.evaluate(state.variables, step)
                if self._saves_after(step):
                    self._save(state, step, awaits_ap=self._evaluates_after(step))
                    saved = step
                if self._evaluations:
                    if self._evaluates_after(step):
                        with self._observation.measure("evaluation", continues=True):
                            self._evaluations.check_patience(step)
                    self._evaluations.report()
            self._finish_steps()
        self._stopping.end()
        state, step = self._complete_stop(state, step)
        if step > saved:
            if self._stopping.error:
                print(f"an error of the data ends the run: saving step {step}", flush=True)
            self._save(state, step, awaits_ap=False)
        if self._evaluations:
            self._evaluations.record_interruption()
        self._confirm_last(state)
        self._stopping.raise_error()

    def _complete_stop(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Start what only other hosts have started when all stop, and drop the void steps.

        Args:
            state: The state after the latest step that this host has started.
            step: Its number.

        Returns:
            The state after the latest step that is not void, and its number.
        """
        name = self._compiled_step.name
        num_missing, num_valid = self._stopping.num_missing(name), self._stopping.num_valid(name)
        num_void = self._stopping.launched[name] + num_missing - num_valid
        if self._evaluations:
            self._evaluations.complete_stop(state.variables)
        for batch in self._void_batches(range(step, step + num_missing)):
            state, _ = self._step(state, batch)
        if num_void and self._config.nonfinite == "skip":  # they were counted
            state = count_steps(state, -num_void)
        step += num_missing - num_void
        self._tripwire.drop_after(step, state)
        return state, step

    @contextlib.contextmanager
    def _saving_first(self) -> Iterator[None]:
        """Let any error of an evaluation end the run like one of the data.

        On several hosts it is raised at once: the others may wait for this one.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            if jax.process_count() > 1:
                raise
            self._stopping.fail(error)

    def _progress(self, first: int) -> tuple[int, int]:
        """Return the numbers of steps that were started since `first`, and that are saved."""
        started = first + self._stopping.num_valid(self._compiled_step.name)
        return started, newest_step(self._checkpoints.workdir)

    def _step(self, state: TrainState, host_batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Start a step, and return the next state and the metrics, which are being computed."""
        return self._compiled_step(state, sharding.put_batch(host_batch, self._shardings))

    def _after_step(
        self, step: int, host_batch: Batch, state: TrainState, metrics: dict[str, Array]
    ) -> None:
        """Check the earlier steps, and log this one if it is due."""
        self._observation.watch_step(step, metrics["loss"])
        self._tripwire.watch(step, host_batch, state, metrics)
        self._confirm()
        if self._is_due("log_every", step):
            self._finish_steps()
            values = {name: float(x) for name, x in metrics.items() if name != "is_finite"}
            if self._tripwire.num_skipped is not None:
                values["skipped_steps"] = self._tripwire.num_skipped
            self._writer.write_step(step, values, self._config.data.batch_size)
            self._checkpoints.check_for_errors()

    def _finish_steps(self) -> None:
        """Wait for all steps, and check each."""
        self._tripwire.finish()
        self._confirm()

    def _confirm(self) -> None:
        """Confirm the checkpoints that a finite step has followed."""
        self._checkpoints.confirm(self._tripwire.last_finite - 1)

    def _evaluates_after(self, step: int) -> bool:
        """Return whether an evaluation is due after a step."""
        return self._evaluations is not None and self._is_due("evaluate_every", step)

    def _saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step: those of evaluations are saved, too."""
        return self._evaluates_after(step) or self._is_due("checkpoint_every", step)

    def _save(self, state: TrainState, step: int, *, awaits_ap: bool) -> None:
        """Start to save a checkpoint."""
        self._finish_steps()
        if not awaits_ap:
            records.remove_evaluation(self._checkpoints.workdir, step)
        self._writer.update_files()  # a run that resumes from the checkpoint finds its metrics
        with self._observation.measure("checkpoints"):
            self._checkpoints.save(step, state.variables, state.training, awaits_ap=awaits_ap)

    def _confirm_last(self, state: TrainState) -> None:
        """Confirm the last checkpoint by a step that is not part of the run."""
        self._finish_steps()
        host_batch = self._tripwire.finite_batch
        if host_batch is not None:
            step = int(state.step) + 1
            state, metrics = self._step(state, host_batch)
            self._tripwire.watch(step, host_batch, state, metrics)
            self._finish_steps()

    def _is_due(self, interval: str, step: int) -> bool:
        """Return whether `step` is a multiple of a config field, or the last step."""
        return is_due(step, self._config[interval], self._config.total_steps)


def is_due(step: int, every: int, total: int) -> bool:
    """Return whether `step` is a multiple of `every` or the last of `total` steps."""
    return step % every == 0 or step == total
