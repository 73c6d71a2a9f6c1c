"""The first step of a run that is not finite: found, named, and stored for a replay."""

import collections
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from retinanet_jax.data.batch import Batch

MAX_STEPS_AHEAD = 2  # the devices compute one step while the next one waits


class StartedStep(NamedTuple):
    """A step that was started on the devices."""

    step: int  # number of steps done after it
    host_batch: Batch
    metrics: dict[str, Array]


class Tripwire:
    """Waits for the steps in flight, and checks that each is finite.

    Attributes:
        last_finite: The latest step that is known to be finite; -1 if none is.
    """

    def __init__(self) -> None:
        self.last_finite = -1
        self._running: collections.deque[StartedStep] = collections.deque()

    def watch(self, step: int, host_batch: Batch, metrics: dict[str, Array]) -> None:
        """Add a step that was just started, and wait until at most MAX_STEPS_AHEAD are running.

        Each of them has a batch in the devices' memory.

        Args:
            step: Number of steps done after it.
            host_batch: This host's part of its batch.
            metrics: The metrics that the train step returns.

        Raises:
            FloatingPointError: If an earlier step is not finite.
        """
        self._running.append(StartedStep(step, host_batch, metrics))
        if len(self._running) > MAX_STEPS_AHEAD:
            self._check(self._running.popleft())

    def finish(self) -> None:
        """Wait for all steps, and check each.

        Raises:
            FloatingPointError: If one of them is not finite.
        """
        while self._running:
            self._check(self._running.popleft())

    def _check(self, started: StartedStep) -> None:
        if not started.metrics["is_finite"]:
            raise FloatingPointError(describe(started.step, started.metrics))
        self.last_finite = started.step


def describe(step: int, metrics: dict[str, Any]) -> str:
    """Return the error message of a step that is not finite."""
    values = {name: float(np.asarray(value)) for name, value in metrics.items()}
    return (
        f"step {step} is not finite: loss {values['loss']} (classification "
        f"{values['loss/classification']}, box {values['loss/box']}), gradient norm "
        f"{values['gradient_norm']}; try a lower --config.optimizer.learning_rate or more "
        "--config.optimizer.warmup_steps."
    )
