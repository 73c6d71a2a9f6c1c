"""What a run tells: metrics.jsonl, TensorBoard files and a progress line."""

import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from typing import TypeVar

import jax
import numpy as np
import tensorboardX

from retinanet_jax.utils.files import write_atomically
from retinanet_jax.utils.progress import format_duration

T = TypeVar("T")


class MetricWriter:
    """Writes the metrics of WORKDIR. Only the first host does; elsewhere every call is silent.

    A resumed run cuts its earlier lines back to `start_step`, so that each step stands once.
    """

    def __init__(
        self, workdir: pathlib.Path, *, start_step: int, total_steps: int, writes: bool
    ) -> None:
        self._writes = writes
        self._total = total_steps
        self._start, self._began = start_step, time.monotonic()
        self._last_step, self._last_time = start_step, self._began
        self._watcher = futures.ThreadPoolExecutor(1)
        self._running: futures.Future[float] | None = None  # when the latest step was done
        self._waited = 0.0  # seconds since _last_time
        if writes:
            path = workdir / "metrics.jsonl"
            keep_until(path, start_step)
            self._lines = path.open("a", encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start_step + 1
            )

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown()
        if self._writes:
            self._lines.close()
            self._board.close()

    def restart_clock(self, step: int) -> None:
        """Leaves out what came before `step` (compiling, an evaluation) of the speed."""
        self._last_step, self._last_time = step, time.monotonic()
        self._waited = 0.0

    def arriving(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; counts how long the device had nothing to do until each came."""
        asked = time.monotonic()
        for batch in batches:
            # A step that still runs waits for nothing, however long the next batch took.
            if self._running is not None and self._running.done():
                self._waited += time.monotonic() - max(asked, self._running.result())
            yield batch
            asked = time.monotonic()

    def running(self, result: jax.Array) -> None:
        """Tells that a step was begun which ends with `result`."""

        def finish() -> float:
            result.block_until_ready()
            return time.monotonic()

        self._running = self._watcher.submit(finish)

    def train_step(self, step: int, metrics: Mapping[str, float], batch_size: int) -> None:
        """Records one logged step and prints the progress line."""
        now = time.monotonic()
        elapsed = now - self._last_time
        seconds = elapsed / max(step - self._last_step, 1)
        metrics = {
            **metrics,
            "images_per_second": batch_size / seconds if seconds else 0.0,
            "data_wait": self._waited / elapsed if elapsed else 0.0,
        }
        self._last_step, self._last_time, self._waited = step, now, 0.0
        if not self._writes:
            return
        self.scalars(step, metrics)
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        print(
            f"step {step}/{self._total} ({step / self._total:.0%})  loss {metrics['loss']:.4f} = "
            f"classification {metrics['loss/classification']:.4f} + box {metrics['loss/box']:.4f}  "
            f"lr {metrics['learning_rate']:.2g}  {metrics['images_per_second']:.1f} images/s  "
            f"{metrics['data_wait']:.0%} waiting for data  "
            f"{format_duration(seconds * (self._total - step))} left",
            flush=True,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """To TensorBoard alone."""
        if self._writes:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An H x W x 3 uint8 picture to TensorBoard."""
        if self._writes:
            self._board.add_image(name, image, step, dataformats="HWC")
            self._board.flush()


def keep_until(path: pathlib.Path, step: int) -> None:
    """Drops the lines after `step` and any half-written last line, atomically."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the run was killed while it wrote this line
            break
        if record["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
