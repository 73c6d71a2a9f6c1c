"""The metrics of a run: metrics.jsonl, TensorBoard files, and progress lines on the console."""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from typing import TypeVar

import jax
import numpy as np
import tensorboardX
from jaxtyping import UInt8

from retinanet_jax.utils.files import write_atomically
from retinanet_jax.utils.mirror import GrowingFiles
from retinanet_jax.utils.progress import CLOCK, format_count, format_duration

T = TypeVar("T")
METRICS = "metrics.jsonl"
NUM_INTERVALS = 20  # latest lines, from which the time left is predicted


class MetricWriter:
    """Writes the metrics of a run, and measures its speed and how long its devices are idle.

    Only the first host writes and prints. A resumed run first removes the lines of steps after
    `start_step` from metrics.jsonl, so that the file contains each step once.

    Args:
        workdir: The run's working directory, to which metrics.jsonl and tensorboard/ are written.
        start_step: Number of steps that were done before this run started or resumed.
        total_steps: Number of steps after which the run ends.
        evaluate_every: Number of steps between evaluations, of which one is after the last step;
            None if there are none.
        writes: Whether this host writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        total_steps: int,
        evaluate_every: int | None = None,
        writes: bool,
    ) -> None:
        self._writes = writes
        self._total_steps, self._evaluate_every = total_steps, evaluate_every
        self._last_step, self._last_time = start_step, CLOCK.now()
        # The steps and seconds between logged steps, and the seconds of the latest evaluation.
        self._intervals = collections.deque[tuple[int, float]](maxlen=NUM_INTERVALS)
        self._evaluation_seconds: float | None = None
        self._watcher = futures.ThreadPoolExecutor(1)
        self._step_end: futures.Future[float] | None = None  # when the latest step ends
        self._idle_seconds = 0.0  # since _last_time
        if writes:
            self._growing_files = GrowingFiles(workdir, METRICS)
            path = self._growing_files.folder / METRICS
            remove_lines_after(path, start_step)
            self._file = path.open("a", encoding="utf-8")
            self._tensorboard = tensorboardX.SummaryWriter(
                str(path.parent / "tensorboard"), purge_step=start_step + 1
            )

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown()
        if self._writes:
            self._file.close()
            self._tensorboard.close()
            self._growing_files.close()

    def update_files(self) -> None:
        """Let a remote working directory have all that was written; OSError if that fails."""
        if self._writes:
            self._growing_files.update()

    @contextlib.contextmanager
    def measure_evaluation(self) -> Iterator[None]:
        """Measure how long an evaluation takes, and exclude it from the speed of the steps."""
        start = CLOCK.now()
        yield
        self._evaluation_seconds = CLOCK.now() - start
        self._last_time += self._evaluation_seconds

    def measure_idle_time(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and measure how long the devices are idle until each arrives."""
        requested = time.monotonic()
        for batch in batches:
            if self._step_end is None:
                self._last_time = CLOCK.now()  # the first batch waited for the loader to start
            # While a step still runs, no device is idle, however long the next batch takes.
            elif self._step_end.done():
                self._idle_seconds += time.monotonic() - max(requested, self._step_end.result())
            yield batch
            requested = time.monotonic()

    def watch_step(self, result: jax.Array) -> None:
        """Record when the step that was just started ends, that is, when `result` is ready."""

        def wait_for_end() -> float:
            result.block_until_ready()
            return time.monotonic()

        self._step_end = self._watcher.submit(wait_for_end)

    def write_step(self, step: int, metrics: Mapping[str, float], batch_size: int) -> None:
        """Write the metrics of one training step, with its speed, and print a progress line.

        Args:
            step: Number of steps done.
            metrics: The metrics that the train step returns, as numbers.
            batch_size: Images per step, over all hosts.
        """
        now = CLOCK.now()
        num_steps, elapsed = step - self._last_step, now - self._last_time
        metrics = {
            **metrics,
            "images_per_second": batch_size * num_steps / elapsed if elapsed else 0.0,
            "data_wait": self._idle_seconds / elapsed if elapsed else 0.0,
        }
        self._intervals.append((num_steps, elapsed))
        self._last_step, self._last_time, self._idle_seconds = step, now, 0.0
        if not self._writes:
            return
        self.write_scalars(step, metrics)
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
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
        if self._evaluation_seconds is not None:
            return format_duration(left + evaluations * self._evaluation_seconds)
        more = f" and {format_count(evaluations, 'evaluation')}" if evaluations else ""
        return f"{format_duration(left)}{more}"

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars to TensorBoard only."""
        if self._writes:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image to TensorBoard under `name`, as an image of step `step`."""
        if self._writes:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")
            self._tensorboard.flush()


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
