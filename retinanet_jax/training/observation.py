"""What a run measures of itself: where its time goes, and the memory of its devices."""

import collections
import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent import futures
from typing import NamedTuple, TypeVar

import jax

import retinanet_jax
from retinanet_jax.training.profiling import Profiler
from retinanet_jax.utils.progress import ACTIVITY, CLOCK, Phase, format_duration
from retinanet_jax.utils.threads import DaemonThreads

T = TypeVar("T")
LOOP = ("training", "data", "checkpoints")  # what steps need; evaluations have a time of their own


class Times(NamedTuple):
    """Seconds that a run has spent, without compiling."""

    loop: float = 0.0  # on steps, data and checkpoints
    data: float = 0.0  # while no step ran, waiting for a batch
    device: float = 0.0  # while the devices computed a step, or received its batch

    def per_step(self, num_steps: int) -> dict[str, float]:
        """Return the metrics `time/data`, `time/device` and `time/host`: seconds per step.

        Args:
            num_steps: The number of steps of these times.
        """
        parts = {"data": self.data, "device": self.device}
        parts["host"] = max(0.0, self.loop - self.data - self.device)
        return {f"time/{name}": seconds / num_steps for name, seconds in parts.items()}


class Observation:
    """Measures what the wall time of a run is spent on, and prints it at the end.

    It is printed at the end of a `with` statement, in which the run was started and ended.

    At any time it is spent on one of

    - start: until the first batch is there: reading the config, the datasets and a checkpoint;
    - compiling, while the run waits for it;
    - data: no step runs on the devices, and the run waits for a batch;
    - training: the rest of the loop over the steps;
    - evaluation: the detections, and the wait for an AP that is not known yet;
    - checkpoints: what the loop waits for when a checkpoint is saved;
    - end: after the last step.

    Of training, the devices compute in a part. A step begins when its batch is passed to the
    devices, or when the step before it ends if that is later, and ends when its loss is known; with
    several hosts, it includes the wait for the other ones.

    Args:
        profiler: Records a profile of some steps.
        age: The seconds that have passed since the program was started.

    Attributes:
        evaluation_seconds: How long the latest evaluation took; None before the first one.
    """

    def __init__(self, profiler: Profiler, age: float = 0.0) -> None:
        self._profiler = profiler
        self._seconds = collections.defaultdict[str, float](float, start=age)
        self._doing, self._mark = "start", CLOCK.now()
        self._compiled_before = CLOCK.stopped_seconds()
        self._device_seconds = 0.0
        self._watcher = DaemonThreads(1)
        self._step_start = 0.0
        self._step_end: futures.Future[float] | None = None  # when the latest step ends
        self._taken = Times()  # the times at the latest `take_times`
        self.evaluation_seconds: float | None = None

    def __enter__(self) -> "Observation":
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.close()
        self._watcher.close()
        if self._step_end is not None:
            print(self.summary(), flush=True)

    def batches(self, batches: Iterable[T]) -> Generator[T, None, None]:
        """Yield the batches of the steps, and measure how long the devices wait for each."""
        iterator = iter(batches)
        try:
            while True:
                requested = self._charge()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:  # also if a signal ends the wait
                    self._charge_wait(requested)
                self._doing = "training"
                yield batch
        finally:
            self._charge()
            self._doing = "end"

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Measure a step, which is started inside a `with` statement, from its batch on.

        Args:
            step: Number of steps done after the step of the batch.
        """
        ACTIVITY.begin(Phase(f"training step {step}"))
        self._step_start = CLOCK.now()
        with self._profiler.step(step):
            yield

    def watch_step(self, step: int, result: jax.Array) -> None:
        """Record when the step that was just started ends.

        Args:
            step: Number of steps done after it.
            result: An array that is ready when it ends.
        """
        start, earlier = self._step_start, self._step_end

        def wait_for_end() -> float:
            result.block_until_ready()
            end = CLOCK.now()
            self._device_seconds += end - max(start, earlier.result() if earlier else start)
            return end

        self._step_end = self._watcher.submit(wait_for_end)
        self._profiler.finish_step(step, result)

    @contextlib.contextmanager
    def measure(self, name: str, *, continues: bool = False) -> Iterator[None]:
        """Measure, inside a `with` statement, the time of "evaluation" or "checkpoints".

        Args:
            name: What the time is for.
            continues: Whether it is a further part of the latest evaluation: the wait for its AP.
        """
        before, start = self._doing, self._charge()
        self._doing = name
        try:
            with ACTIVITY.during(Phase(name)):
                yield
        finally:
            seconds, self._doing = self._charge() - start, before
        if name == "evaluation":
            earlier = self.evaluation_seconds if continues else None
            self.evaluation_seconds = (earlier or 0.0) + seconds

    def take_times(self) -> Times:
        """Return the times since the last call, when all steps that were started have ended."""
        if self._step_end is not None:
            self._step_end.result()
        self._charge()
        loop = sum(self._seconds[name] for name in LOOP)
        now = Times(loop, self._seconds["data"], self._device_seconds)
        taken, self._taken = self._taken, now
        return Times(*(after - before for before, after in zip(taken, now, strict=True)))

    def totals(self) -> dict[str, float]:
        """Return the metrics of the whole run so far.

        `goodput` is the fraction of the wall time since the start of the program that trained,
        `time/compile` the seconds that were spent on compiling, and `memory/peak` and
        `memory/limit` the bytes of `device_memory`.
        """
        self._charge()
        wall = sum(self._seconds.values()) + self._compile_seconds()
        goodput = self._seconds["training"] / wall if wall else 0.0
        return {"goodput": goodput, "time/compile": self._compile_seconds(), **device_memory()}

    def summary(self) -> str:
        """Return one line for the end of a run: its goodput, and what the other time was for."""
        totals = self.totals()
        seconds = {"compile": totals["time/compile"], **self._seconds}
        wall = sum(seconds.values())
        seconds.pop("training", None)
        parts = [f"{name} {spent:.0f} s" for name, spent in seconds.items() if spent >= 0.5]
        line = f"goodput {totals['goodput']:.0%} of {format_duration(wall)}"
        if parts:
            line += f": {', '.join(parts)}"
        if "memory/limit" in totals:
            peak, limit = totals["memory/peak"] / 2**30, totals["memory/limit"] / 2**30
            line += f"; device memory at most {peak:.1f} of {limit:.1f} GiB"
        return line

    def _charge_wait(self, requested: float) -> None:
        """Charge the wait for a batch, since `requested`, to data as far as no step was running."""
        now = self._charge()
        if self._step_end is not None and self._step_end.done():
            idle = now - max(requested, self._step_end.result())
            self._seconds["training"] -= idle
            self._seconds["data"] += idle

    def _compile_seconds(self) -> float:
        return CLOCK.stopped_seconds() - self._compiled_before

    def _charge(self) -> float:
        """Charge the time since the last call to what the run has been doing; return the time."""
        now = CLOCK.now()
        self._seconds[self._doing] += now - self._mark
        self._mark = now
        return now


def program_age() -> float:
    """Return the seconds since the program began, with the imports of what it requires."""
    return time.monotonic() - retinanet_jax.IMPORTED_AT


def device_memory() -> dict[str, float]:
    """Return the bytes of this host's fullest device at its peak, and of those it has.

    They are `memory/peak` and `memory/limit`; empty on a CPU, which does not report them.
    """
    devices = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"memory/peak": "peak_bytes_in_use", "memory/limit": "bytes_limit"}
    if not all(names["memory/peak"] in statistics for statistics in devices):
        return {}
    fullest = max(devices, key=lambda statistics: statistics[names["memory/peak"]])
    return {name: float(fullest[key]) for name, key in names.items() if key in fullest}
