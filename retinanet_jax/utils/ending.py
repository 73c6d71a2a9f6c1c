"""The end of a process, at once and with one line for people, and of the reader of its output."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO


def print_message(line: str) -> None:
    """Print a line for people, which is no result of the command."""
    with contextlib.suppress(OSError):  # the reader has ended
        print(line, file=sys.stderr, flush=True)


def in_seconds(seconds: float, function: Callable[[], object]) -> None:
    """Call a function later, in a thread, if the process still runs."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def leave(status: int) -> NoReturn:
    """End the process at once, without waiting for any thread.

    Threads may compile for minutes or wait for a file for ever, which nothing can end, and jax
    would let the processes of a run on many hosts wait for each other.

    Args:
        status: The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader has ended, or it is closed
            stream.flush()
    os._exit(status)


class RunOutput(io.TextIOBase):
    """A text stream that turns the end of its reader into SIGHUP, so that a run saves its steps.

    Args:
        stream: The output of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if there is a reader."""
        with self._hanging_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if there is a reader."""
        with self._hanging_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _hanging_up(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            discard(self._stream)
            os.kill(os.getpid(), signal.SIGHUP)


def discard(stream: TextIO) -> None:
    """Discard the output of the process to a stream of which the reader has ended.

    Otherwise Python would fail again when it flushes the stream at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
