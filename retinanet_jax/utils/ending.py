"""The end of a process: at once, whatever its threads do, and with one line for people."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


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
