"""Reads that fail for a moment are tried again, and a read that never ends can be given up."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from retinanet_jax.data import reading
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan
from retinanet_jax.utils import threads
from retinanet_jax.utils.threads import in_background


@pytest.fixture(params=["tf", "numpy"])
def loader(request) -> str:
    return request.param


@pytest.fixture
def source(folder):
    for _ in range(6):
        folder.add_image(96, 96)
    return folder.load()


@pytest.fixture
def pauses(monkeypatch):
    """Return the list of the pauses between reads, which take no time."""
    pauses = []
    monkeypatch.setattr(reading, "time", type("Time", (), {"sleep": pauses.append}))
    return pauses


def load(source, loader):
    plan = EvalPlan(
        source.sizes,
        batch_size=2,
        buckets=((96, 96),),
        resize="bilinear",
        short_side=96,
        long_side=96,
    )
    options = {"start_step": 0, "num_steps": None, "prefetch": 2, "min_visible": 0.0}
    return batches(source, plan, **options, loader=loader)


def fail(monkeypatch, source, index, errors):
    """Make the reads of an image fail with these errors, one after the other."""
    read, errors = source.read, list(errors)

    def failing(asked):
        if asked == index and errors:
            raise errors.pop(0)
        return read(asked)

    monkeypatch.setattr(source, "read", failing)


def test_a_read_that_fails_for_a_moment_gives_the_image(
    source, loader, monkeypatch, pauses, caplog
):
    expected = [batch.images for batch in load(source, loader)]
    passing = [OSError(errno.EIO, "I/O error"), OSError(errno.ESTALE, "stale"), TimeoutError()]
    fail(monkeypatch, source, 3, passing)
    np.testing.assert_array_equal(expected, [batch.images for batch in load(source, loader)])
    assert pauses == [0.5, 1.0, 2.0]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{source.path(3)}: reading failed (I/O error); trying again"


def test_a_read_that_keeps_failing_is_one_line_with_its_file(source, loader, monkeypatch, pauses):
    fail(monkeypatch, source, 3, [OSError(errno.EIO, "I/O error")] * 99)
    with pytest.raises(OSError, match=r"4\.img: reading failed 4 times in 3\.5 s \(I/O error\)"):
        list(load(source, loader))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no"), PermissionError(errno.EACCES, "no")]
)
def test_an_error_that_does_not_pass_is_raised_at_once(source, monkeypatch, pauses, error):
    fail(monkeypatch, source, 3, [error])
    with pytest.raises(type(error)):
        list(load(source, "numpy"))
    assert pauses == []


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.ETIMEDOUT, True),
        (errno.ECONNRESET, True),
        (errno.ENOENT, False),
        (errno.EACCES, False),
        (errno.EISDIR, False),
        (None, False),  # Pillow's errors have no number
    ],
)
def test_which_errors_may_pass(number, passes):
    error = OSError(number, "") if number else OSError("cannot identify image file")
    assert reading.may_pass(error) is passes


def test_a_stalled_read_is_known_and_its_wait_can_be_ended(source, loader, monkeypatch):
    """A named pipe that nobody writes to is read for ever, as is a file of a dead server."""
    monkeypatch.setattr(threads, "CLOSE_SECONDS", 0.1)
    path = source.path(3)
    path.unlink()
    os.mkfifo(path)
    start = time.monotonic()

    def check():
        if time.monotonic() > start + 0.5 and reading.files_in_progress():
            raise InterruptedError(reading.files_in_progress())

    try:
        with pytest.raises(InterruptedError) as ended:
            list(in_background(load(source, loader), check))
        assert str(ended.value) == str(path)
        assert time.monotonic() - start < 10
    finally:
        writer = os.open(path, os.O_RDWR)
        path.unlink()  # the file is missing in another attempt
        os.close(writer)  # the read ends
    while reading.files_in_progress():
        time.sleep(0.01)


@pytest.mark.parametrize("loader", ["numpy", pytest.param("tf", marks=pytest.mark.slow)])
def test_a_process_with_a_stalled_read_ends(source, loader):
    path = source.path(3)
    path.unlink()
    os.mkfifo(path)
    arguments = [str(source.path(0).parent), source.name, loader]
    code = """
import sys
import test_patient_reading
from retinanet_jax.data import reading
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.utils import threads
from retinanet_jax.utils.threads import in_background
threads.CLOSE_SECONDS = 0.1
images, annotations, loader = sys.argv[1:]

def check():
    if reading.files_in_progress():
        sys.exit(7)

for _ in in_background(test_patient_reading.load(CocoSource(annotations, images), loader), check):
    pass
"""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    assert done.stderr == ""
