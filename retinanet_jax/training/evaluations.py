"""The evaluations of a training run: the AP of a step is computed while training continues."""

import json
import pathlib
from concurrent import futures
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from retinanet_jax.checkpoint import FOLDER, NOT_MEASURED, CheckpointManager, read_config
from retinanet_jax.checkpoint.reading import step_of_first_host
from retinanet_jax.evaluation import records
from retinanet_jax.evaluation.category_table import category_scalars, category_table
from retinanet_jax.evaluation.evaluator import Evaluation, Evaluator, write_evaluation
from retinanet_jax.stopping import Stopped, Stopping
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.patience import last_better_step
from retinanet_jax.utils.progress import format_count
from retinanet_jax.utils.threads import POLL_SECONDS, in_daemon_thread


class PendingEvaluation(NamedTuple):
    """An evaluation with an AP that is being computed."""

    step: int
    outcome: "Future[Evaluation]"


class TrainingEvaluations:
    """The evaluations of a training run.

    All hosts compute the detections of a step. A thread of the first host computes their AP, one
    evaluation at a time, while training continues; then the AP is logged and added to the
    checkpoint of its step. At the end of a `with` statement this waits for the last AP, unless an
    error or a signal ends the run; the next start then computes it.

    Args:
        config: The run's config.
        evaluator: The compiled detector and its dataset.
        workdir: The run's working directory.
        checkpoints: The run's checkpoints.
        writer: The writer of the run's metrics.
        stopping: Ends an evaluation or the wait for an AP, after a signal.
    """

    def __init__(
        self,
        config: ConfigDict,
        evaluator: Evaluator,
        workdir: pathlib.Path,
        checkpoints: CheckpointManager,
        writer: MetricWriter,
        stopping: Stopping,
    ) -> None:
        self._config, self._evaluator = config, evaluator
        self._workdir, self._folder = workdir, workdir / records.FOLDER
        self._checkpoints, self._writer, self._stopping = checkpoints, writer, stopping
        self._pending: PendingEvaluation | None = None
        self._interrupted: int | None = None  # the step of an evaluation that is not complete
        self._ends_early = False
        self._is_first_host = jax.process_index() == 0
        if self._is_first_host:
            self._description = records.describe(config, evaluator.source)
            self._finish_earlier_run()

    def __enter__(self) -> "TrainingEvaluations":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._finish()
            if self._ends_early:
                self._print_early_end()

    def evaluate(self, variables: dict[str, Any], step: int) -> None:
        """Compute the detections after a step, write them, and start to compute their AP.

        The checkpoint of the step is saved afterwards. Thus a run that is killed before the AP is
        known has the detections of every checkpoint that awaits one.

        Args:
            variables: The network's variables, replicated over the mesh.
            step: Number of steps done.

        Raises:
            Exception: The error of an earlier evaluation.
            Stopped: After a signal.
        """
        self._interrupted = step
        results = self._evaluator.run(variables, step)
        self._interrupted = None
        self._finish()
        if self._is_first_host:
            records.write_detections(results, step, self._folder)
            records.interruption_file(self._workdir, step).unlink(missing_ok=True)
            self._start(results, step)

    def resume(self, variables: dict[str, Any], step: int) -> None:
        """Do the evaluation of the step that the run starts from, if a stop has interrupted it.

        Args:
            variables: As in `evaluate`.
            step: Number of steps done.
        """
        if records.interruption_file(self._workdir, step).exists():
            self.evaluate(variables, step)
            self._finish()  # while the checkpoint is there

    def complete_stop(self, variables: dict[str, Any]) -> None:
        """Do as `Evaluator.complete_stop`."""
        self._evaluator.complete_stop(variables)

    def record_interruption(self) -> None:
        """Let the next start do the evaluation that a stop has interrupted, if any."""
        if self._interrupted is not None and self._is_first_host:
            self._folder.mkdir(exist_ok=True)
            records.interruption_file(self._workdir, self._interrupted).touch()

    def report(self) -> None:
        """Log the AP that is being computed, if it is known and its checkpoint is complete.

        Raises:
            Exception: The error that ended the computation.
        """
        pending = self._pending
        if pending and pending.outcome.done() and self._checkpoints.is_complete(pending.step):
            self._finish()

    def check_patience(self, step: int) -> None:
        """End the run if its AP has not become better for `config.patience` evaluations.

        For this, it waits for the AP that is being computed. Whether a run ends after a step thus
        depends neither on the time that this takes nor on where the run was stopped and resumed.
        All hosts must call this.

        Args:
            step: Number of steps done; the latest evaluation is that of this step or an earlier
                one.

        Raises:
            Stopped: If the run ends.
        """
        if not self._config.patience or step >= self._config.total_steps:
            return
        if step_of_first_host(lambda: self._last_better_step(step)) is not None:
            self._ends_early = True
            raise Stopped

    def _last_better_step(self, step: int) -> int | None:
        """Return the step that the run ends because of, or None; after a signal it is None."""
        if self._pending and not self._is_known(self._pending.outcome):
            return None  # the next start, which computes the AP, decides
        return last_better_step(self._config, self._workdir, self._description, step)

    def _print_early_end(self) -> None:
        """Print that the run has ended early, and its best checkpoint; only the first host does."""
        if best := self._checkpoints.best():
            evaluations = format_count(self._config.patience, "evaluation")
            print(
                f"the run ends early: {evaluations} without a better AP "
                f"(config.patience={self._config.patience}); the best checkpoint is that of step "
                f"{best[0]}, AP {best[1]:.3f}",
                flush=True,
            )

    def _is_known(self, outcome: "Future[Evaluation]") -> bool:
        """Wait for an AP, and return True, or False if a signal leaves it to the next start."""
        while futures.wait([outcome], POLL_SECONDS).not_done:
            if self._stopping.drops_ap():
                return False
        return True

    def _start(self, results: list[dict[str, Any]], step: int) -> None:
        print(f"computing AP from {format_count(len(results), 'detection')}", flush=True)
        outcome = in_daemon_thread(
            lambda: write_evaluation(
                results,
                self._evaluator.source,
                step,
                self._folder,
                self._config,
                self._description,
            )
        )
        self._pending = PendingEvaluation(step, outcome)

    def _finish(self) -> None:
        """Wait for the AP that is being computed, if any, log it, and add it to its checkpoint.

        After a signal it is left to the next start, which has the detections.
        """
        if not self._pending:
            return
        step, outcome = self._pending
        self._pending = None
        if not self._is_known(outcome):
            return
        evaluation = outcome.result()
        print(evaluation.summary, flush=True)
        log_evaluation(step, evaluation, self._writer)
        self._checkpoints.record_ap(step, evaluation.ap)
        if best := self._checkpoints.best():
            print(f"best so far: step {best[0]}, AP {best[1]:.3f}", flush=True)

    def _finish_earlier_run(self) -> None:
        """Compute the AP of detections that a killed run has left."""
        for step in records.steps_without_ap(self._workdir):
            saved = read_config(self._workdir / FOLDER / str(step))
            results = json.loads(records.detections_file(self._folder, step).read_text())
            image_ids = set(self._evaluator.source.image_ids)
            has_same_images = image_ids.issuperset(result["image_id"] for result in results)
            if records.same_evaluation(saved, self._config) and has_same_images:
                self._start(results, step)
                self._finish()
            else:  # of other data or settings than this run's, or the data has changed
                self._checkpoints.record_ap(step, NOT_MEASURED)


def log_evaluation(step: int, evaluation: Evaluation, writer: MetricWriter) -> None:
    """Write the metrics of an evaluation after `step`, and some images with their detections.

    Metrics that are undefined because there are no such objects are left out.
    """
    values = {
        f"eval/{name}": value
        for name, value in evaluation.metrics.items()
        if isinstance(value, float)
    }
    categories = evaluation.metrics["categories"]
    writer.write_scalars(step, {**values, **category_scalars(categories)})
    if table := category_table(categories):
        writer.write_text(step, "AP_by_category", table)
    writer.write_image(step, "ground_truth_and_detections", np.asarray(evaluation.comparison))
