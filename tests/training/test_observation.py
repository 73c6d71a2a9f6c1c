"""What a run measures of itself: the parts of its wall time sum up to it."""

import pathlib
import threading
import time
import types

import jax
import pytest

import retinanet_jax
from retinanet_jax.training import observation as module
from retinanet_jax.training.observation import Observation
from retinanet_jax.training.profiling import Profiler
from retinanet_jax.utils.progress import ACTIVITY, CLOCK


def observe(**options):
    return Observation(Profiler(pathlib.Path("unused"), None), **options)


class Step:
    """A step on the devices, which ends when the test lets it end."""

    def __init__(self, observation, number):
        self._ended = threading.Event()
        with observation.step(number):
            pass
        observation.watch_step(number, self)
        self._end = observation._step_end

    def block_until_ready(self):
        assert self._ended.wait(10)

    def end(self):
        self._ended.set()
        self._end.result()


def test_a_step_is_split_into_data_device_and_host(clock):
    """Two steps: 2 s on the host, 3 s and 1 s on the devices, 4 s without a batch."""
    observation = observe()

    def slow_batches():
        clock.seconds += 50  # the loader starts
        yield "first"
        clock.seconds += 4
        yield "second"

    for number, _ in enumerate(observation.batches(slow_batches()), 1):
        step = Step(observation, number)
        clock.seconds += 3 if number == 1 else 1
        step.end()
        clock.seconds += 1  # the host writes a line
    times = observation.take_times()
    assert times == module.Times(loop=10, data=4, device=4)
    assert times.per_step(2) == {"time/data": 2, "time/device": 2, "time/host": 1}
    assert observation.take_times() == module.Times()


def test_data_that_arrives_while_a_step_runs_costs_nothing(clock):
    observation = observe()

    def slow_batches():
        yield "first"
        clock.seconds += 7
        yield "second"

    batches = observation.batches(slow_batches())
    next(batches)
    step = Step(observation, 1)
    next(batches)
    clock.seconds += 1
    step.end()
    assert observation.take_times() == module.Times(loop=8, data=0, device=8)


def test_a_step_that_waits_for_the_one_before_it_is_not_counted_twice(clock):
    observation = observe()
    batches = observation.batches(["first", "second"])
    next(batches)
    first = Step(observation, 1)
    next(batches)
    second = Step(observation, 2)
    clock.seconds += 5
    first.end()
    clock.seconds += 2
    second.end()
    assert observation.take_times().device == 7


def test_a_program_is_younger_than_the_process_that_has_become_it(monkeypatch):
    """A shell script may install the package before it runs the program in its own process."""
    monkeypatch.setattr(retinanet_jax, "IMPORTED_AT", time.monotonic() - 0.25)
    assert 0.25 <= module.program_age() < 1


def test_goodput_is_the_fraction_of_the_wall_time_that_trained(clock):
    observation = observe(age=6.0)  # imports
    clock.seconds += 4

    def batches():
        with CLOCK.stopped():
            clock.seconds += 10
        yield "only"

    for _ in observation.batches(batches()):
        clock.seconds += 60
        with observation.measure("evaluation"):
            assert ACTIVITY.phase.name == "evaluation"
            clock.seconds += 15
        with observation.measure("checkpoints"):
            clock.seconds += 2
    clock.seconds += 3
    totals = observation.totals()
    assert totals["goodput"] == 0.6
    assert totals["time/compile"] == 10
    assert observation.summary() == (
        "goodput 60% of 1 min 40 s: compile 10 s, start 10 s, evaluation 15 s, checkpoints 2 s, "
        "end 3 s"
    )


def test_an_evaluation_takes_as_long_as_all_of_its_parts(clock):
    """The time left is estimated from it; the wait for AP comes after the checkpoint."""
    observation = observe()
    for _ in range(2):
        with observation.measure("evaluation"):
            clock.seconds += 15
        with observation.measure("checkpoints"):
            clock.seconds += 2
        with observation.measure("evaluation", continues=True):
            clock.seconds += 1
        assert observation.evaluation_seconds == 16


def test_a_stopped_run_has_a_summary(clock):
    observation = observe()
    batches = observation.batches(iter(["first", "second"]))
    next(batches)
    clock.seconds += 1
    batches.close()
    clock.seconds += 1
    assert observation.summary() == "goodput 50% of 0 min 02 s: end 1 s"


def test_a_wait_that_a_signal_ends_was_for_data(clock):
    def stalled():
        yield "first"
        clock.seconds += 8
        raise InterruptedError

    observation = observe()
    batches = observation.batches(stalled())
    next(batches)
    step = Step(observation, 1)
    clock.seconds += 2
    step.end()
    with pytest.raises(InterruptedError):
        next(batches)
    assert observation.summary() == "goodput 20% of 0 min 10 s: data 8 s"


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    def device(peak):
        statistics = {"peak_bytes_in_use": peak, "bytes_limit": 2**33, "num_allocs": 3}
        return types.SimpleNamespace(memory_stats=lambda: statistics)

    monkeypatch.setattr(jax, "local_devices", lambda: [device(2**30), device(3 * 2**30)])
    totals = observe().totals()
    assert (totals["memory/peak"], totals["memory/limit"]) == (3 * 2**30, 2**33)
    assert observe().summary().endswith("; device memory at most 3.0 of 8.0 GiB")


def test_a_cpu_reports_no_memory():
    assert module.device_memory() == {}
