"""The metrics of a run: metrics.jsonl, TensorBoard files, and progress lines on the console."""

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
from retinanet_jax.utils.progress import format_duration

T = TypeVar("T")


class MetricWriter:
    """Writes the metrics of a run, and measures its speed and how long its devices are idle.

    Only the first host writes and prints. A resumed run first removes the lines of steps after
    `start_step` from metrics.jsonl, so that the file contains each step once.

    Args:
        workdir: The run's working directory, to which metrics.jsonl and tensorboard/ are written.
        start_step: Number of steps that were done before this run started or resumed.
        total_steps: Number of steps after which the run ends.
        writes: Whether this host writes.
    """

    def __init__(
        self, workdir: pathlib.Path, *, start_step: int, total_steps: int, writes: bool
    ) -> None:
        self._writes = writes
        self._total_steps = total_steps
        self._last_step, self._last_time = start_step, time.monotonic()
        self._watcher = futures.ThreadPoolExecutor(1)
        self._step_end: futures.Future[float] | None = None  # when the latest step ends
        self._idle_seconds = 0.0  # since _last_time
        if writes:
            path = workdir / "metrics.jsonl"
            remove_lines_after(path, start_step)
            self._file = path.open("a", encoding="utf-8")
            self._tensorboard = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start_step + 1
            )

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown()
        if self._writes:
            self._file.close()
            self._tensorboard.close()

    def restart_clock(self, step: int) -> None:
        """Exclude the time before `step` (compiling, an evaluation) from the measured speed."""
        self._last_step, self._last_time = step, time.monotonic()
        self._idle_seconds = 0.0

    def measure_idle_time(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and measure how long the devices are idle until each arrives."""
        requested = time.monotonic()
        for batch in batches:
            # While a step still runs, no device is idle, however long the next batch takes.
            if self._step_end is not None and self._step_end.done():
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
        now = time.monotonic()
        elapsed = now - self._last_time
        seconds = elapsed / max(step - self._last_step, 1)
        metrics = {
            **metrics,
            "images_per_second": batch_size / seconds if seconds else 0.0,
            "data_wait": self._idle_seconds / elapsed if elapsed else 0.0,
        }
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
            f"{format_duration(seconds * (total - step))} left",
            flush=True,
        )

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
