"""All hosts stop after the same program, in whatever order their threads run."""

import contextlib
import random
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from retinanet_jax.hosts.agreement import NOT_STARTED, StopAgreement
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
        self.started = [0] * count
        self._condition = threading.Condition()

    def run(self, index: int) -> None:
        """Start a program, and wait inside C++, where no host can be stopped."""
        with self._condition:
            self.started[index] += 1
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: self.started[index] - min(self.started) <= NUM_AHEAD, timeout=60
            )


class Host(threading.Thread):
    """A host that runs all programs, or stops."""

    def __init__(self, agreement, devices, index, begins=True):
        super().__init__(daemon=True)
        hosts: Any = SimpleNamespace(agreement=agreement, is_first=False)
        self.stopping = Stopping(hosts)
        self.begins = begins
        self._devices, self._index = devices, index
        self._chance = random.Random(index)

    def run(self):
        if not self.begins:
            return
        with contextlib.suppress(Stopped):
            self.stopping.begin(lambda: (0, 0))
            for _ in range(NUM_PROGRAMS):
                time.sleep(self._chance.uniform(0, 0.004))
                self.stopping.launch("training")
                self._devices.run(self._index)


@pytest.fixture
def start():
    """Start hosts of which some begin, and threads that watch; return the agreements and more."""
    is_over = threading.Event()
    watching = []

    def start(seed, count, has_begun=lambda index: True):
        store: Any = SharedTexts(random.Random(seed))
        devices = Devices(count)
        agreements = [StopAgreement(store, index, count) for index in range(count)]

        def watch(agreement):
            while not is_over.wait(0.002):
                agreement.update(store.read("news"))

        hosts = [Host(a, devices, i, has_begun(i)) for i, a in enumerate(agreements)]
        watching.extend(threading.Thread(target=watch, args=[a]) for a in agreements)
        for thread in (*watching, *hosts):
            thread.start()
        return agreements, devices, hosts

    yield start
    is_over.set()
    for thread in watching:
        thread.join()


@pytest.mark.parametrize("seed", range(8))
def test_all_hosts_stop_after_the_same_program(start, seed):
    chance = random.Random(seed)
    count = chance.choice([2, 3, 5])
    agreements, devices, hosts = start(seed, count)
    time.sleep(chance.uniform(0, 0.06))
    for index in chance.sample(range(count), chance.choice([1, 2])):  # one is asked, or two
        agreements[index].request(signal.SIGTERM)
    for host in hosts:
        host.join(timeout=20)
        assert not host.is_alive()
    assert len(set(devices.started)) == 1
    assert devices.started[0] < NUM_PROGRAMS or not agreements[0].has_nothing_to_save


def test_without_a_request_all_programs_run(start):
    _, devices, hosts = start(0, 2)
    for host in hosts:
        host.join(timeout=20)
    assert devices.started == [NUM_PROGRAMS] * 2


def test_a_host_that_has_not_begun_stops_all_where_they_are(start):
    """It may read its datasets for minutes, and no step can have been finished without it."""
    agreements, devices, _ = start(0, 3, has_begun=lambda index: index != 1)
    time.sleep(0.05)
    agreements[2].request(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while not all(agreement.has_nothing_to_save for agreement in agreements):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert devices.started[1] == 0
    agreements[1].begin()  # too late
    assert agreements[1].is_reached
    assert not agreements[1].launch()


def test_programs_before_the_first_step_do_not_count():
    """They only measure the memory."""
    store: Any = SharedTexts(random.Random(0))
    agreement = StopAgreement(store, 0, 1)
    assert agreement.launch()
    agreement.request(signal.SIGHUP)
    agreement.update({"request": f"{int(signal.SIGHUP)} 0", "position-0": str(NOT_STARTED)})
    assert agreement.signal == signal.SIGHUP
    assert agreement.has_nothing_to_save
