"""The metrics of a run: metrics.jsonl, TensorBoard and other loggers, and progress lines."""

import collections
import json
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from retinanet_jax.training.loggers import RECORDS, Logger
from retinanet_jax.training.observation import Observation
from retinanet_jax.training.tensorboard import TensorBoard
from retinanet_jax.utils.files import errors_name, write_atomically
from retinanet_jax.utils.mirror import GrowingFiles
from retinanet_jax.utils.progress import format_count, format_duration

METRICS = "metrics.jsonl"
NUM_INTERVALS = 20  # latest lines, from which the time left is predicted


class MetricWriter:
    """Writes the metrics of a run.

    Only the first host writes and prints. A resumed run first removes the lines of steps after
    `start_step` from metrics.jsonl, so that the file contains each step once.

    Args:
        workdir: The run's working directory, to which metrics.jsonl and tensorboard/ are written.
        observation: What the run measures of itself.
        start_step: Number of steps that were done before this run started or resumed.
        total_steps: Number of steps after which the run ends.
        evaluate_every: Number of steps between evaluations, of which one is after the last step;
            None if there are none.
        open_loggers: Returns the loggers besides TensorBoard, for the folder of their records and
            `start_step`; called on the host that writes.
        writes: Whether this host writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        observation: Observation,
        *,
        start_step: int,
        total_steps: int,
        evaluate_every: int | None = None,
        open_loggers: Callable[[pathlib.Path, int], list[Logger]] = lambda *_: [],
        writes: bool,
    ) -> None:
        self._writes, self._observation = writes, observation
        self._total_steps, self._evaluate_every = total_steps, evaluate_every
        self._last_step = start_step
        # The steps and seconds between logged steps.
        self._intervals = collections.deque[tuple[int, float]](maxlen=NUM_INTERVALS)
        self._loggers: list[Logger] = []
        if writes:
            self._growing_files = GrowingFiles(workdir, METRICS, *RECORDS.values())
            self._path = self._growing_files.folder / METRICS
            remove_lines_after(self._path, start_step)
            self._file = self._path.open("a", encoding="utf-8")
            folder = self._path.parent
            tensorboard = TensorBoard(folder / "tensorboard", start_step)
            self._loggers = [tensorboard, *open_loggers(folder, start_step)]

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._writes:
            with errors_name(self._path):
                self._file.close()
            for logger in self._loggers:
                logger.close(failed=error is not None)
            self._growing_files.close()

    def update_files(self) -> None:
        """Let a remote working directory have all that was written; OSError if that fails."""
        if self._writes:
            self._growing_files.update()

    def write_step(self, step: int, metrics: Mapping[str, float], batch_size: int) -> None:
        """Write the metrics of one training step, with its speed, and print a progress line.

        Args:
            step: Number of steps done.
            metrics: The metrics that the train step returns, as numbers.
            batch_size: Images per step, over all hosts.
        """
        num_steps, times = step - self._last_step, self._observation.take_times()
        metrics = {
            **metrics,
            "images_per_second": batch_size * num_steps / times.loop if times.loop else 0.0,
            "data_wait": times.data / times.loop if times.loop else 0.0,
            **times.per_step(num_steps),
            **self._observation.totals(),
        }
        self._intervals.append((num_steps, times.loop))
        self._last_step = step
        if not self._writes:
            return
        # JSON has no NaN; a step that is skipped may have it.
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        with errors_name(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        self.write_scalars(step, metrics)
        total = self._total_steps
        print(
            f"step {step}/{total} ({step / total:.0%})  loss {metrics['loss']:.4f} = "
            f"classification {metrics['loss/classification']:.4f} + box {metrics['loss/box']:.4f}  "
            f"lr {metrics['learning_rate']:.2g}  {metrics['images_per_second']:.1f} images/s  "
            f"{metrics['data_wait']:.0%} waiting for data  "
            f"{self._time_left(step)} left",
            flush=True,
        )

    def _time_left(self, step: int) -> str:
        """Return the time that the steps and evaluations after the metrics of `step` will take.

        Until an evaluation has been measured, the text has the number of evaluations instead.
        """
        steps, seconds = map(sum, zip(*self._intervals, strict=True))
        left = (self._total_steps - step) * seconds / steps
        every = self._evaluate_every
        # One after each multiple of `every`, including `step` itself, and one after the last step.
        evaluations = -(-self._total_steps // every) - (step - 1) // every if every else 0
        if (each := self._observation.evaluation_seconds) is not None:
            return format_duration(left + evaluations * each)
        more = f" and {format_count(evaluations, 'evaluation')}" if evaluations else ""
        return f"{format_duration(left)}{more}"

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars to TensorBoard and the other loggers only."""
        for logger in self._loggers:
            logger.write_scalars(step, values)

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image to the loggers under `name`, as an image of step `step`."""
        for logger in self._loggers:
            logger.write_image(step, name, image)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text of several lines to the loggers under `name`, as a text of step `step`."""
        for logger in self._loggers:
            logger.write_text(step, name, text)


def check_metrics(workdir: pathlib.Path) -> None:
    """Check that a run may write to the metrics.jsonl in its working directory.

    Raises:
        FileExistsError: If there is a file of this name that no run of this package wrote.
    """
    path = workdir / METRICS
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline()
    # A run that was killed while it wrote its first line has left the beginning of it, or nothing.
    begins, is_partial = first.startswith(b'{"step": '[: len(first)]), not first.endswith(b"\n")
    if not (begins and (is_partial or b'"loss/box": ' in first)):
        raise FileExistsError(
            f"--workdir={workdir} contains a {METRICS} that no run of retinanet_jax wrote; give "
            "another folder."
        )


def remove_lines_after(path: pathlib.Path, step: int) -> None:
    """Remove the lines of a metrics.jsonl after `step`, and an incomplete last line, atomically.

    A file that does not exist stays absent.
    """
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the run was killed while it wrote this line
            break
        if record["step"] <= step:
            lines.append(line + "\n")
    write_atomically(path, "".join(lines))
