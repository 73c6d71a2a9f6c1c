"""A phase that lasts too long is named in one line, with the stacks of all threads in a file."""

import re
import threading
import time

import pytest

from retinanet_jax.utils.progress import ACTIVITY, CLOCK, Phase
from retinanet_jax.utils.watchdog import Watchdog

SECONDS = 0.1


@pytest.fixture
def file(tmp_path):
    """Return the watchdog's file, and let it watch."""
    with Watchdog(tmp_path / "stalls.txt", SECONDS):
        yield tmp_path / "stalls.txt"


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def wait_for_line(caplog):
    deadline = time.monotonic() + 10
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_stall_is_one_line_with_the_phase_and_what_it_waits_for(file, caplog):
    with ACTIVITY.during(Phase("waiting for data", patience=1, details=lambda: "a.jpg")):
        wait_for_line(caplog)
    (line,) = lines(caplog)
    assert re.fullmatch(
        r"waiting for data for 0 s, since \d\d:\d\d:\d\d: a\.jpg; the stacks of all threads are in "
        + re.escape(str(file)),
        line,
    )
    stacks = file.read_text()
    assert "waiting for data for 0 s" in stacks
    assert "in wait_for_line" in stacks
    assert "in _watch" in stacks


def test_reports_of_a_stall_become_rarer(file, caplog):
    """After at least 1, 2, 4, 8, ... times the patience."""
    with ACTIVITY.during(Phase("waiting", patience=1)):
        time.sleep(7 * SECONDS)
    assert 1 <= len(caplog.records) <= 3


def test_progress_and_short_phases_are_no_stall(file, caplog):
    with ACTIVITY.during(Phase("evaluation", patience=3)):
        for _ in range(8):
            time.sleep(SECONDS / 2)
            ACTIVITY.progressed()
        for _ in range(8):
            with ACTIVITY.during(Phase("waiting for data", patience=3)):
                time.sleep(SECONDS / 2)
    assert lines(caplog) == []
    assert not file.exists()


def test_compiling_is_no_stall(file, caplog):
    with ACTIVITY.during(Phase("training step 1", patience=2)):
        with CLOCK.stopped():
            time.sleep(6 * SECONDS)
        time.sleep(SECONDS / 2)
    assert lines(caplog) == []


def test_a_watchdog_that_cannot_write_reports_it(tmp_path, caplog):
    with (
        Watchdog(tmp_path / "absent" / "stalls.txt", SECONDS),
        ACTIVITY.during(Phase("saving", patience=1)),
    ):
        wait_for_line(caplog)
    assert re.search(
        r"saving for 0 s, since [\d:]+; no stacks of threads: .*absent", lines(caplog)[0]
    )


def test_the_thread_ends_with_the_block(tmp_path):
    before = threading.active_count()
    with Watchdog(tmp_path / "stalls.txt", 60):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
