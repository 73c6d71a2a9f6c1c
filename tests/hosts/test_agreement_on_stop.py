"""All hosts stop after the same program, in whatever order their threads run."""

import contextlib
import json
import random
import signal
import threading
import time
from typing import Any

import pytest

from retinanet_jax.hosts import Hosts
from retinanet_jax.hosts.agreement import Position, StopAgreement
from retinanet_jax.stopping import Stopped, Stopping

NUM_AHEAD = 3  # programs that a host may start before the others have started the first of them
NUM_PROGRAMS = 40


class SharedTexts:
    """A store in memory; its answers take a random time."""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._texts, self._lock = chance, {}, threading.Lock()

    def set(self, key, value):
        time.sleep(self._chance.uniform(0, 0.003))
        with self._lock:
            self._texts[key] = value

    def read(self, prefix):
        time.sleep(self._chance.uniform(0, 0.003))
        with self._lock:
            texts = dict(self._texts)
        return {key.removeprefix(f"{prefix}/"): texts[key] for key in texts if prefix in key}


class Devices:
    """Programs that all hosts must have started before any host is more than NUM_AHEAD further."""

    def __init__(self, count: int) -> None:
        # For each host whether each program that it has started has its data.
        self.started: list[list[bool]] = [[] for _ in range(count)]
        self._condition = threading.Condition()

    def run(self, index: int, has_data: bool) -> None:
        """Start a program, and wait inside C++, where no host can be stopped."""
        with self._condition:
            self.started[index].append(has_data)
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: len(self.started[index]) - min(map(len, self.started)) <= NUM_AHEAD,
                timeout=60,
            )


class Host(threading.Thread):
    """A host that runs all programs, or stops; `read` is called before each."""

    def __init__(self, hosts, devices, index, read=lambda *_: None, begins=True):
        super().__init__(daemon=True)
        self.stopping = Stopping(hosts)
        self._begins, self._read = begins, read
        self._devices, self._index = devices, index
        self._chance = random.Random(index)

    def run(self):
        if not self._begins:
            return
        with contextlib.suppress(Stopped):
            self.stopping.begin(lambda: (0, 0))
            for number in range(NUM_PROGRAMS):
                time.sleep(self._chance.uniform(0, 0.004))
                self._read(self.stopping, number)
                self.stopping.launch("training")
                self._devices.run(self._index, has_data=True)
        self.stopping.end()
        for _ in range(self.stopping.num_missing("training")):
            self._devices.run(self._index, has_data=False)


@pytest.fixture
def start():
    """Start hosts, and threads that watch; arguments of hosts differ by their index."""
    is_over = threading.Event()
    watching = []

    def start(seed, count, **of_index):
        store: Any = SharedTexts(random.Random(seed))
        devices = Devices(count)
        joined = [Hosts(store, index, count, timeout=60) for index in range(count)]

        def watch(agreement):
            while not is_over.wait(0.002):
                agreement.update(store.read("news"))

        threads = [
            Host(x, devices, i, **{name: value(i) for name, value in of_index.items()})
            for i, x in enumerate(joined)
        ]
        watching.extend(threading.Thread(target=watch, args=[x.agreement]) for x in joined)
        for thread in (*watching, *threads):
            thread.start()
        return [x.agreement for x in joined], devices, threads

    yield start
    is_over.set()
    for thread in watching:
        thread.join()


def assert_stopped_together(threads, devices):
    """The programs that count had data on all hosts; each of the others had none on one of them."""
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    (num_valid,) = {thread.stopping.num_valid("training") for thread in threads}
    had_data = [all(has_data) for has_data in zip(*devices.started, strict=True)]
    assert had_data == [number < num_valid for number in range(len(had_data))]


@pytest.mark.parametrize("seed", range(8))
def test_all_hosts_stop_after_the_same_program(start, seed):
    chance = random.Random(seed)
    count = chance.choice([2, 3, 5])
    agreements, devices, threads = start(seed, count)
    time.sleep(chance.uniform(0, 0.06))
    for index in chance.sample(range(count), chance.choice([1, 2])):  # one is asked, or two
        agreements[index].request(signal.SIGTERM)
    assert_stopped_together(threads, devices)
    assert len(devices.started[0]) < NUM_PROGRAMS or not agreements[0].has_nothing_to_save


@pytest.mark.parametrize("seed", range(4))
def test_a_host_without_data_stops_with_the_others_which_are_further(start, seed):
    """Its read stalls, and any host gets a signal; or its data has an error, which all report."""
    chance = random.Random(seed)
    count, last = chance.choice([2, 3]), chance.randrange(1, 20)
    without_data, fails = chance.randrange(count), seed % 2
    error = OSError("1.jpg is truncated")

    def read(stopping, number):
        while number == last:
            stopping.check()
            if fails:
                stopping.fail(error)
            time.sleep(0.001)

    agreements, devices, threads = start(
        seed, count, read=lambda index: read if index == without_data else lambda *_: None
    )
    if not fails:
        time.sleep(0.3)  # the others have started what they may, and wait
        agreements[chance.randrange(count)].request(signal.SIGINT)
    assert_stopped_together(threads, devices)
    errors = [thread.stopping.error for thread in threads]
    if not fails:
        assert errors == [None] * count
        assert threads[0].stopping.num_valid("training") == last
        assert len(devices.started[0]) == last + 1 + NUM_AHEAD
        return
    assert errors.pop(without_data) is error
    for other in errors:
        assert str(other) == f"host {without_data} (unknown) failed: 1.jpg is truncated"


@pytest.mark.parametrize("further", [0, 1])
def test_evaluations_and_steps_are_counted_apart(further):
    """The steps of an interrupted evaluation are all valid, and its last batches void."""
    store: Any = SharedTexts(random.Random(0))
    agreements = [StopAgreement(store, index, 2) for index in range(2)]
    for index, agreement in enumerate(agreements):
        agreement.begin()
        for name in ["training"] * 3 + ["evaluation"] * (2 + (index == further)):
            assert agreement.launch(name)
    agreements[0].request(signal.SIGTERM)
    for agreement in agreements * 2:
        agreement.update(store.read("news"))
    for index, agreement in enumerate(agreements):
        assert not agreement.launch("evaluation")
        assert [agreement.num_valid(name) for name in ("training", "evaluation")] == [3, 2]
        assert agreement.num_missing("training") == 0
        assert agreement.num_missing("evaluation") == (index != further)


def test_an_error_after_the_request_changes_nothing():
    """All hosts have the same outcome, because an error is part of what they have written."""
    store: Any = SharedTexts(random.Random(0))
    agreement = StopAgreement(store, 0, 1)
    agreement.begin()
    agreement.request(signal.SIGTERM)
    agreement.update(store.read("news"))
    agreement.request(0, "late")
    agreement.update(store.read("news"))
    assert (agreement.signal, agreement.error) == (signal.SIGTERM, "")


def test_without_a_request_all_programs_run(start):
    _, devices, threads = start(0, 2)
    for thread in threads:
        thread.join(timeout=20)
    assert devices.started == [[True] * NUM_PROGRAMS] * 2


def test_a_host_that_has_not_begun_stops_all_where_they_are(start):
    """It may read its datasets for minutes, and no step can have been finished without it."""
    agreements, devices, _ = start(0, 3, begins=lambda index: index != 1)
    time.sleep(0.05)
    agreements[2].request(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while not all(agreement.has_nothing_to_save for agreement in agreements):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not devices.started[1]
    agreements[1].begin()  # too late
    assert not agreements[1].launch("training")


def test_programs_before_the_first_step_do_not_count():
    """They only measure the memory."""
    store: Any = SharedTexts(random.Random(0))
    agreement = StopAgreement(store, 0, 1)
    assert agreement.launch("training")
    agreement.request(signal.SIGHUP)
    position = json.dumps(Position(None, ""))
    agreement.update({"request": f"{int(signal.SIGHUP)} 0", "position-0": position})
    assert agreement.signal == signal.SIGHUP
    assert agreement.has_nothing_to_save
