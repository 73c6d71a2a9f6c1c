"""A thread that reports when a program makes no progress, and where each of its threads is."""

import faulthandler
import pathlib
import threading
import time

from absl import logging

from retinanet_jax.utils.progress import ACTIVITY, CLOCK, Phase

NAME = "stalls.txt"  # of the file of stacks, in a run's working directory


class Watchdog:
    """Reports phases of ACTIVITY that last too long, inside a `with` statement.

    The report is a line that names the phase and what it waits for, and the stacks of all threads
    in a file. It is repeated whenever the phase has lasted twice as long. While CLOCK is stopped,
    which is while the program compiles, nothing counts as too long.

    Args:
        file: The file, which is created by the first report; later ones are appended.
        stall_seconds: The patience of a phase is a multiple of this.
    """

    def __init__(self, file: pathlib.Path, stall_seconds: float) -> None:
        self._file, self._stall_seconds = file, stall_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        watched, limit = None, 0.0
        while not self._ended.wait(min(1.0, self._stall_seconds / 4)):
            phase, since = ACTIVITY.phase, ACTIVITY.since
            if (phase, since) != watched:
                watched, limit = (phase, since), phase.patience * self._stall_seconds
            seconds = CLOCK.now() - since
            if seconds >= limit:
                self._report(phase, seconds)
                limit = 2 * seconds

    def _report(self, phase: Phase, seconds: float) -> None:
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        text = f"{phase.name} for {seconds:.0f} s, since {since}"
        if details := phase.details():
            text += f": {details}"
        try:
            with self._file.open("a") as file:
                print(f"{time.strftime('%F %T')} {text}", file=file, flush=True)
                faulthandler.dump_traceback(file)
        except OSError as error:
            logging.warning("%s; no stacks of threads: %s", text, error)
        else:
            logging.warning("%s; the stacks of all threads are in %s", text, self._file)
