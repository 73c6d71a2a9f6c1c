"""Only one run at a time writes to a working directory, and a dead one is not waited for."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from retinanet_jax.utils import run_lock
from retinanet_jax.utils.run_lock import NAME, RunLock

HOLD = (
    "import pathlib, sys, time\n"
    "from retinanet_jax.utils.run_lock import RunLock\n"
    "with RunLock(pathlib.Path(sys.argv[1])):\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def owner(tmp_path, **changes):
    """Write the file of a run on another host."""
    content = {"host": "elsewhere", "pid": 7, "since": "2026-01-02 03:04:05+00:00", "beats": 3}
    content |= {"time": time.time(), **changes}
    (tmp_path / NAME).write_text(json.dumps(content))


def test_a_second_run_is_refused_until_the_first_one_is_gone(tmp_path, holder, capsys):
    message = (
        rf"^--workdir={tmp_path} is in use by the run of process {holder.pid} on host \S+ since "
        r"20\d\d-.*; wait until it ends, or give another folder.$"
    )
    with pytest.raises(BlockingIOError, match=message), RunLock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with RunLock(tmp_path):
        assert f"taken over from the run of process {holder.pid}" in capsys.readouterr().out
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_the_lock_is_released_even_if_the_run_fails(tmp_path, capsys):
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), RunLock(tmp_path):
            raise error
        assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path), pytest.raises(BlockingIOError), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_a_run_on_another_host_is_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, "DEAD_SECONDS", 2)
    owner(tmp_path)
    beat = threading.Timer(0.5, owner, [tmp_path], {"beats": 4})
    beat.start()
    with pytest.raises(BlockingIOError, match="process 7 on host elsewhere"), RunLock(tmp_path):
        pass
    assert "waiting up to 2 s for a sign of life" in capsys.readouterr().out
    with RunLock(tmp_path):  # no further beat
        assert "taken over" in capsys.readouterr().out
    owner(tmp_path, time=time.time() - 1000)  # nor is it waited for in this case
    with RunLock(tmp_path):
        assert "waiting" not in capsys.readouterr().out


def test_a_run_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    with RunLock(tmp_path):
        before = (tmp_path / NAME).read_text()
        time.sleep(0.3)
        assert (tmp_path / NAME).read_text() != before
        (tmp_path / NAME).unlink()
        time.sleep(0.1)
        assert not (tmp_path / NAME).exists()  # a folder that was removed is not created again


def test_a_torn_file_is_no_run(tmp_path):
    (tmp_path / NAME).write_text('{"host": ')
    with RunLock(tmp_path):
        pass
