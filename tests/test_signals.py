"""Signals: a run prints at once what it does, and saves all its steps for the next start."""

import contextlib
import gc
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from retinanet_jax import checkpoint, stopping
from retinanet_jax.stopping import Interrupted, Stopped, Stopping
from retinanet_jax.utils.ending import RunOutput, in_seconds

# ---- the class


@pytest.fixture
def printed(monkeypatch):
    """The messages, and how the process would have ended."""
    printed = []
    monkeypatch.setattr(stopping, "print_message", printed.append)
    monkeypatch.setattr(stopping, "leave", lambda status: printed.append(status))
    monkeypatch.setattr(stopping, "in_seconds", lambda *_: None)
    return printed


def send(number: int) -> None:
    """Send a signal to this process, and give its thread time to answer."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_before_the_first_step_a_signal_interrupts_the_main_thread(printed, number):
    with Stopping() as caught:
        with pytest.raises(Interrupted) as error:
            send(number)
        until(lambda: printed)
    assert error.value.signal == caught.signal == number
    assert stopping.status_of(error.value) == 128 + number
    name = signal.Signals(number).name
    assert printed == [f"received {name}: stopping; there is nothing to save"]


def test_during_the_steps_a_signal_stops_the_run_before_the_next_program(printed):
    with Stopping() as caught:
        caught.begin(lambda: (caught.launched["training"], 0))
        caught.launch("training")
        send(signal.SIGTERM)
        until(lambda: caught.signal)
        with pytest.raises(Stopped):
            caught.launch("training")
        with pytest.raises(Stopped):
            caught.check()
        caught.end()
        caught.launch("training")  # the step that confirms the last checkpoint
    assert printed == ["received SIGTERM: stopping after step 1, saving"]
    assert caught.leaves_work


def test_a_step_of_a_command_may_have_another_name(printed):
    with Stopping(unit="frame") as caught:
        caught.begin(lambda: (7, 0))
        send(signal.SIGINT)
        until(lambda: printed)
        time.sleep(stopping.SECONDS_OF_ONE_SIGNAL)
        send(signal.SIGINT)
        until(lambda: len(printed) == 3)
    assert printed[0] == "received SIGINT: stopping after frame 7, saving"
    assert printed[1].endswith("ended at once; frames 1 to 7 are not saved")


def test_a_signal_after_the_last_step_leaves_no_work(printed):
    with Stopping() as caught:
        caught.begin(lambda: (8, 8))
        caught.end()
        send(signal.SIGTERM)
        until(lambda: printed)
        caught.check()
    assert not caught.leaves_work
    assert caught.drops_ap()  # unless an AP is not known yet
    assert caught.leaves_work


def test_a_second_signal_ends_the_process_at_once_and_names_what_is_lost(printed):
    with Stopping() as caught:
        caught.begin(lambda: (57, 40))
        send(signal.SIGTERM)
        time.sleep(stopping.SECONDS_OF_ONE_SIGNAL)
        send(signal.SIGHUP)  # some supervisors send it after SIGTERM
        send(signal.SIGINT)
        until(lambda: len(printed) == 3)
    assert printed[1:] == [
        "received a second signal, SIGINT: ended at once; steps 41 to 57 are not saved",
        130,
    ]


def test_a_signal_is_answered_while_the_main_thread_waits_in_c(printed):
    with Stopping() as caught:
        caught.begin(lambda: (3, 0))
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        lock = np.zeros(1)  # any call into C that lasts
        deadline = time.monotonic() + 20
        while not printed and time.monotonic() < deadline:
            lock.sort()
    assert printed == ["received SIGTERM: stopping after step 3, saving"]


def test_a_signal_interrupts_again_if_python_drops_the_first_interruption(printed, monkeypatch):
    """As in a callback of garbage collection, in which Python ignores exceptions."""
    sent = []
    soon = [stopping.SECONDS_OF_ONE_SIGNAL]
    monkeypatch.setattr(stopping, "in_seconds", lambda s, f: s in soon and in_seconds(s, f))

    def callback(*_):
        if not sent:
            sent.append(True)
            send(signal.SIGTERM)

    def collect_and_wait():
        gc.callbacks.append(callback)
        try:
            gc.collect()
            time.sleep(10)
        finally:
            gc.callbacks.remove(callback)

    before = sys.unraisablehook
    with Stopping(), pytest.raises(Interrupted):
        collect_and_wait()
    assert sys.unraisablehook == before
    assert printed == ["received SIGTERM: stopping; there is nothing to save"]


def test_a_signal_interrupts_after_the_import_of_a_package(printed, monkeypatch, tmp_path):
    """Packages in C++ abort the process if an exception is raised in their initialization."""
    soon = [stopping.SECONDS_OF_ONE_SIGNAL]
    monkeypatch.setattr(stopping, "in_seconds", lambda s, f: s in soon and in_seconds(s, f))
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\n"
    (tmp_path / "slow_package.py").write_text(f"{code}is_imported = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def import_and_wait():
        importlib.import_module("slow_package")
        time.sleep(10)

    with Stopping(), pytest.raises(Interrupted):
        import_and_wait()
    assert sys.modules.pop("slow_package").is_imported
    assert printed == ["received SIGTERM: stopping; there is nothing to save"]


@pytest.mark.parametrize(
    "error", [ImportError("failed"), ValueError("failed"), SystemExit("error: failed")]
)
def test_an_interruption_that_a_package_makes_an_error_stays_an_interruption(printed, error):
    """As numpy does while it is imported."""

    def import_package():
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        except Interrupted:
            raise error from None

    with pytest.raises(Interrupted) as interrupted, Stopping():
        import_package()
    assert interrupted.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_nothing_slow_is_imported_before_signals_are_handled():
    """Until then, Python ends a program with a traceback at SIGINT."""
    code = "import sys, retinanet_jax.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"importlib.metadata", "numpy", "jax", "absl"} & set(done.stdout.split())


def test_an_error_without_a_signal_is_raised(printed):
    with pytest.raises(ImportError, match="failed"), Stopping():
        raise ImportError("failed")


def test_the_handlers_of_a_program_are_restored():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with Stopping():
        assert signal.getsignal(signal.SIGHUP) != before[2]
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_an_ignored_signal_stays_ignored(printed):
    """Under nohup, SIGHUP is."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as caught:
            send(signal.SIGHUP)
        assert not caught.signal
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_the_end_of_the_reader_of_the_output_is_a_signal(printed):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, Stopping() as caught:
        caught.begin(lambda: (3, 0))
        output = RunOutput(stream)
        print("one", file=output, flush=True)
        os.close(reader)
        print("two", file=output, flush=True)
        print("three", file=output, flush=True)
        until(lambda: printed)
    assert printed == ["received SIGHUP: stopping after step 3, saving"]


# ---- processes

PROMPT = 30.0  # seconds, of a machine that does other work too


@pytest.fixture
def workdir(tiny_run, tmp_path) -> pathlib.Path:
    """A working directory that finds what has been compiled."""
    workdir = tmp_path / "signaled"
    workdir.mkdir()
    shutil.copytree(tiny_run.workdir / "compilation_cache", workdir / "compilation_cache")
    return workdir


def read_until(process: subprocess.Popen, text: str) -> None:
    """Read the output of a process up to a line with a text."""
    assert process.stdout
    assert process.stderr
    if not any(text in line for line in process.stdout):
        raise AssertionError(process.stderr.read())


def stop_at(process: subprocess.Popen, text: str, *signals: int) -> tuple[int, str, float]:
    """Send signals when a line has a text; return the status, stderr and the seconds until it."""
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)  # unless it has ended
        read_until(process, text)
        started = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        _, stderr = process.communicate(timeout=120)
        return process.returncode, stderr, time.monotonic() - started


def assert_equal_runs(workdir: pathlib.Path, other: pathlib.Path) -> None:
    first, second = (checkpoint.load(w / "checkpoints" / "8").variables for w in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    for name in ("4.json", "8.json"):
        first, second = (json.loads((w / "eval" / name).read_text()) for w in (workdir, other))
        assert first == second, name


@pytest.mark.slow
@pytest.mark.exhaustive  # the campaign has a test with random moments
def test_a_run_that_is_stopped_again_and_again_loses_no_step(tiny_run, program, workdir):
    """In a step, in an evaluation that is compiled or computed, and at the end."""
    command = ("main", *tiny_run.arguments, f"--workdir={workdir}")
    moments = {
        "compiling training": (signal.SIGINT, None),
        "step 2/8": (signal.SIGTERM, None),
        "step 3/8": (signal.SIGHUP, None),
        "compiling evaluation": (signal.SIGTERM, 4),
        "step 8/8": (signal.SIGINT, 8),
    }
    for text, (number, saved) in moments.items():
        before = checkpoint.newest_step(workdir)
        status, stderr, seconds = stop_at(program.start(*command), text, number)
        assert status == 128 + number, stderr
        first, last = stderr.splitlines()
        assert first.startswith(f"received {signal.Signals(number).name}: stopping"), stderr
        assert last == "stopped; the same command resumes from the newest checkpoint"
        assert seconds < PROMPT
        after = checkpoint.newest_step(workdir)
        if "after step" in first:
            assert first.endswith(f"stopping after step {after}, saving")
        assert after >= before
        assert saved in (None, after)
    status, _, stderr = program.run(*command)
    assert status == 0, stderr
    assert_equal_runs(workdir, tiny_run.workdir)


@pytest.mark.slow
@pytest.mark.parametrize("loader", [pytest.param("tf", marks=pytest.mark.exhaustive), "numpy"])
def test_a_run_that_waits_for_data_saves_its_steps(tiny_run, program, workdir, loader):
    """A read that never returns, as from a server that is gone, can be stopped."""
    data = workdir / "copy"
    shutil.copytree(tiny_run.workdir / "data" / "shapes-1", data)
    process = program.start(
        "main",
        *tiny_run.arguments,
        "--mode=train",
        "--stall_seconds=1",
        "--config.total_steps=100000",
        "--config.checkpoint_every=100000",
        "--config.data.train.source=coco",
        f"--config.data.train.annotations={data / 'instances.json'}",
        f"--config.data.train.images={data / 'images'}",
        f"--config.data.loader={loader}",
        f"--workdir={workdir}",
    )
    read_until(process, "step 3/")
    image = min((data / "images").iterdir())
    os.mkfifo(data / "pipe")
    (data / "pipe").replace(image)
    until((workdir / "stalls.txt").exists)
    process.send_signal(signal.SIGTERM)
    with process:
        started = time.monotonic()
        _, stderr = process.communicate(timeout=120)
        seconds = time.monotonic() - started
    assert process.returncode == 143, stderr
    assert checkpoint.newest_step(workdir) >= 3
    assert f"stopping after step {checkpoint.newest_step(workdir)}, saving" in stderr
    assert seconds < PROMPT


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_the_save(tiny_run, program, workdir):
    process = program.start("main", *tiny_run.arguments, f"--workdir={workdir}")
    status, stderr, seconds = stop_at(process, "step 3/8", signal.SIGINT, signal.SIGINT)
    assert status == 130
    assert "received a second signal, SIGINT: ended at once; " in stderr
    assert seconds < PROMPT


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_ends_in_one_line(tiny_run, program, number):
    before = sorted((tiny_run.workdir / "eval").rglob("*"))
    command = ("evaluate", *tiny_run.arguments, f"--workdir={tiny_run.workdir}")
    status, stderr, seconds = stop_at(program.start(*command), "compiling", number)
    assert status == 128 + number
    assert stderr.splitlines() == [
        f"received {number.name}: stopping; there is nothing to save",
        "stopped",
    ]
    assert seconds < PROMPT
    assert sorted((tiny_run.workdir / "eval").rglob("*")) == before
