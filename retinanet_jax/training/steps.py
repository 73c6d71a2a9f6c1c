"""The loop over the steps of a run: training, logging, evaluations, checkpoints, and the stop."""

from collections.abc import Iterable

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.checkpoint import CheckpointManager
from retinanet_jax.compilation import CompiledByShape
from retinanet_jax.data.batch import Batch
from retinanet_jax.evaluation import records
from retinanet_jax.stopping import Stopped, Stopping
from retinanet_jax.training.evaluations import TrainingEvaluations
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.step import TrainState
from retinanet_jax.training.tripwire import Tripwire


class StepLoop:
    """Trains step by step, and does what is due after each step.

    Args:
        config: The run's config.
        compiled_step: The training step.
        mesh: The devices.
        checkpoints: The run's checkpoints.
        writer: The writer of the run's metrics.
        evaluations: The run's evaluations; None if there are none.
        stopping: Raises where the run may stop, after a signal.
    """

    def __init__(
        self,
        config: ConfigDict,
        compiled_step: CompiledByShape,
        mesh: jax.sharding.Mesh,
        checkpoints: CheckpointManager,
        writer: MetricWriter,
        evaluations: TrainingEvaluations | None,
        stopping: Stopping,
    ) -> None:
        self._config, self._compiled_step = config, compiled_step
        self._shardings = sharding.batch_shardings(mesh)
        self._checkpoints, self._writer, self._evaluations = checkpoints, writer, evaluations
        self._stopping, self._tripwire = stopping, Tripwire()

    def run(self, state: TrainState, host_batches: Iterable[Batch]) -> None:
        """Train from `state` on this host's batches, to the last one or to a signal.

        At a signal, the state of the latest step is saved.

        Args:
            state: The state that the run starts from. The steps reuse its memory.
            host_batches: This host's part of each batch.

        Raises:
            FloatingPointError: If a step is not finite.
            OSError: If a checkpoint cannot be saved.
        """
        step = saved = int(state.step)
        batch = None
        try:
            for batch in self._writer.measure_idle_time(host_batches):
                self._stopping.check()
                state, metrics = self._step(state, batch)
                step += 1
                self._after_step(step, batch, metrics)
                if self._evaluations and self._evaluates_after(step):
                    self._tripwire.finish()
                    with self._writer.measure_evaluation():
                        self._evaluations.evaluate(state.variables, step)
                if self._saves_after(step):
                    self._save(state, step, awaits_ap=self._evaluates_after(step))
                    saved = step
                if self._evaluations:
                    self._evaluations.report()
        except Stopped:
            if step > saved:
                self._save(state, step, awaits_ap=False)
        if batch is not None:
            self._confirm_last(state, batch)

    def _step(self, state: TrainState, host_batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Start a step, and return the next state and the metrics, which are being computed."""
        return self._compiled_step(state, sharding.put_batch(host_batch, self._shardings))

    def _after_step(self, step: int, host_batch: Batch, metrics: dict[str, Array]) -> None:
        """Check the earlier steps, and log this one if it is due."""
        self._writer.watch_step(metrics["loss"])
        self._tripwire.watch(step, host_batch, metrics)
        # A checkpoint is confirmed by the finite loss of the step after it.
        self._checkpoints.confirm(self._tripwire.last_finite - 1)
        if self._is_due("log_every", step):
            self._tripwire.finish()
            values = {name: float(x) for name, x in metrics.items() if name != "is_finite"}
            self._writer.write_step(step, values, self._config.data.batch_size)
            self._checkpoints.check_for_errors()

    def _evaluates_after(self, step: int) -> bool:
        """Return whether an evaluation is due after a step."""
        return self._evaluations is not None and self._is_due("evaluate_every", step)

    def _saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step: those of evaluations are saved, too."""
        return self._evaluates_after(step) or self._is_due("checkpoint_every", step)

    def _save(self, state: TrainState, step: int, *, awaits_ap: bool) -> None:
        """Start to save a checkpoint."""
        self._tripwire.finish()
        if not awaits_ap:
            records.remove_evaluation(self._checkpoints.workdir, step)
        self._checkpoints.save(step, state.variables, state.training, awaits_ap=awaits_ap)

    def _confirm_last(self, state: TrainState, host_batch: Batch) -> None:
        """Confirm the last checkpoint by a step that is not part of the run."""
        self._tripwire.finish()
        step = int(state.step)
        _, metrics = self._step(state, host_batch)
        self._tripwire.watch(step + 1, host_batch, metrics)
        self._tripwire.finish()
        self._checkpoints.confirm(step)

    def _is_due(self, interval: str, step: int) -> bool:
        """Return whether `step` is a multiple of a config field, or the last step."""
        return is_due(step, self._config[interval], self._config.total_steps)


def is_due(step: int, every: int, total: int) -> bool:
    """Return whether `step` is a multiple of `every` or the last of `total` steps."""
    return step % every == 0 or step == total
