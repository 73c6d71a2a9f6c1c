"""Hosts that have started different numbers of steps save the same one, which all have started.

This process is one of two hosts; the other one is the texts that it has written.
"""

import contextlib
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from random_batches import make_batch

from retinanet_jax import input_pipeline, sharding
from retinanet_jax.data.plan import EvalPlan
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.hosts import Hosts
from retinanet_jax.hosts.agreement import Position
from retinanet_jax.stopping import Stopping
from retinanet_jax.training.step import TrainState, count_steps
from retinanet_jax.training.steps import StepLoop
from retinanet_jax.training.tripwire import Tripwire

DATA_ERROR = OSError("17.jpg is truncated")
NUM_VALID = 3  # steps that both hosts have started with data


class OtherHost:
    """The store of both hosts; the other one answers at once, with the steps it has started."""

    def __init__(self, started: int, error: str) -> None:
        self.hosts: Any = None
        position = json.dumps(Position({"training": started}, error))
        self._news = {"position-1": position}

    def set(self, key, value):
        self._news[key.removeprefix("news/")] = value
        if "request" in key:
            self.hosts.agreement.update(self._news)
            self.hosts.agreement.update(self._news)


class Training:
    """A compiled step that adds 1 to a parameter, as long as both hosts have data.

    `when_void` is called when a step that changes nothing was computed.
    """

    name = "training"

    def __init__(self, nonfinite, stopping, when_void):
        self._nonfinite, self._stopping, self._when_void = nonfinite, stopping, when_void
        self.num_started, self.without_data = 0, []

    def __call__(self, state, batch):
        self._stopping.launch(self.name)
        self.num_started += 1
        has_data = not np.isnan(batch.boxes).any()
        if not has_data:
            self.without_data.append(self.num_started)
        confirms = has_data and self._stopping.is_ending  # the checkpoint; both hosts have data
        counted = count_steps(state, 1)
        if self.num_started <= NUM_VALID or confirms:
            return counted._replace(params=state.params + 1), Metrics(lambda: True)
        after = counted if self._nonfinite == "skip" else state
        return after, Metrics(self._when_void)


class Metrics:
    """The metrics of a step, which are computed when they are read."""

    def __init__(self, is_finite):
        self._is_finite = is_finite

    def __getitem__(self, name):
        return self._is_finite() if name == "is_finite" else None


class Checkpoints:
    """Records the state and the step that are saved."""

    def __init__(self, workdir):
        self.workdir, self.saved = workdir, []

    def save(self, step, variables, training, *, awaits_ap):
        count = optax.tree.get(training["opt_state"], "count")
        self.saved.append((step, variables["params"], int(training["step"]), int(count)))

    def confirm(self, step):
        pass


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that runs the loop on this host to its error, and returns the outcome."""
    monkeypatch.setattr(sharding, "put_batch", lambda batch, _: batch)

    def start(nonfinite, data, other, when_void=lambda: pytest.fail("a void step is checked")):
        other.hosts = Hosts(other, 0, 2, timeout=60)
        stopping = Stopping(other.hosts)
        training, checkpoints = Training(nonfinite, stopping, when_void), Checkpoints(tmp_path)
        intervals = dict.fromkeys(["log_every", "checkpoint_every", "total_steps"], 99)
        config = ConfigDict({**intervals, "nonfinite": nonfinite})
        examiner: Any = SimpleNamespace(
            skips=False, examine=lambda started, _: pytest.fail(f"step {started.step} is examined")
        )
        observation: Any = SimpleNamespace(
            batches=iter,
            step=lambda _: contextlib.nullcontext(),
            watch_step=lambda *_: None,
            measure=lambda _, **__: contextlib.nullcontext(),
        )
        writer: Any = SimpleNamespace(update_files=lambda: None)
        void = make_batch(2)._replace(boxes=np.full((2, 3, 4), np.nan, np.float32))
        loop = StepLoop(
            config,
            training,  # pyright: ignore[reportArgumentType]
            sharding.make_mesh(1, jax.devices()[:1]),
            checkpoints,  # pyright: ignore[reportArgumentType]
            observation,
            writer,
            None,
            Tripwire(examiner, lambda step: stopping.check_void("training", step)),
            stopping,
            lambda steps: [void] * len(steps),
        )
        schedule = optax.ScaleByScheduleState(count=np.int32(0))
        state = TrainState(jnp.int32(0), np.float32(0), {}, schedule, jnp.float32(0))
        with pytest.raises(OSError, match=r"17\.jpg is truncated$") as error:
            loop.run(state, data(stopping))
        return training.without_data, checkpoints.saved, str(error.value)

    return start


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_host_without_data_starts_the_steps_of_the_others_which_change_nothing(start, nonfinite):
    def data(stopping):
        yield from [make_batch(2)] * NUM_VALID
        stopping.fail(DATA_ERROR)

    without_data, saved, error = start(nonfinite, data, OtherHost(NUM_VALID + 2, ""))
    assert without_data == [NUM_VALID + 1, NUM_VALID + 2]
    assert saved == [(NUM_VALID,) * 4]
    assert error == str(DATA_ERROR)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_host_that_is_ahead_drops_the_steps_for_which_another_had_no_data(start, nonfinite):
    """The first of them is not finite when it is computed; the training does not diverge."""
    other = OtherHost(NUM_VALID, str(DATA_ERROR))

    def when_void():
        other.set("news/request", "0 1")
        return False

    def data(_):
        return iter([make_batch(2)] * 9)

    without_data, saved, error = start(nonfinite, data, other, when_void)
    assert not without_data
    assert saved == [(NUM_VALID,) * 4]
    assert error == f"host 1 (unknown) failed: {DATA_ERROR}"


def test_void_batches_have_the_shapes_of_the_batches_and_no_finite_box(
    synthetic_dataset, toy_config
):
    toy_config.data.loader = "numpy"
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    plan = EvalPlan(
        source.sizes[:8], batch_size=4, buckets=(), resize="bilinear", short_side=64, long_side=64
    )
    real = input_pipeline.host_batches(toy_config, source, plan, range(2))
    for batch, void in zip(real, input_pipeline.void_batches(source, plan, range(2)), strict=True):
        for array, other in zip(batch, void, strict=True):
            assert (array.shape, array.dtype) == (other.shape, other.dtype)
        assert np.isnan(void.boxes).all()
        assert not void.images.any()
