"""Text that programs print while they work: progress lines, durations and one-line messages."""

import contextlib
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

PROGRESS_INTERVAL = 5.0  # seconds between two lines of progress
MIN_MEASURED = 1.0  # seconds of work from which a speed is computed
MAX_NAME = 50  # characters of a name in a sentence


class WorkClock:
    """A clock that can be stopped, so that compiling a program does not count as slow work."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None
        self._stopped_seconds = 0.0

    def now(self) -> float:
        """Return the time in seconds from an arbitrary origin; any thread may ask."""
        return time.monotonic() - self.stopped_seconds()

    def stopped_seconds(self) -> float:
        """Return for how many seconds the clock was stopped until now."""
        stopped_at, seconds = self._stopped_at, self._stopped_seconds
        return seconds if stopped_at is None else seconds + time.monotonic() - stopped_at

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock inside a `with` statement, in the thread that it measures."""
        if self._stopped_at is not None:  # by a caller
            yield
            return
        self._stopped_at = time.monotonic()
        try:
            yield
        finally:
            self._stopped_seconds += time.monotonic() - self._stopped_at
            self._stopped_at = None


CLOCK = WorkClock()  # of all progress lines: a process measures one task at a time


class Phase(NamedTuple):
    """What a program does, for messages.

    Attributes:
        name: A text such as "waiting for data".
        patience: After which multiple of a watchdog's seconds it has lasted too long.
        details: Returns a text about its present state; "" if there is nothing.
    """

    name: str
    patience: float = 10.0
    details: Callable[[], str] = str


class Activity:
    """What the main thread of a program does now.

    Attributes:
        phase: The present phase.
        since: The time of CLOCK at which it began, or made progress.
    """

    def __init__(self) -> None:
        self.begin(Phase("starting"))

    def begin(self, phase: Phase) -> None:
        """Begin a phase, which lasts until another one begins."""
        self.phase = phase
        self.progressed()

    def progressed(self) -> None:
        """Record that the present phase has made progress."""
        self.since = CLOCK.now()

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Begin a phase, and at the end of the `with` statement return to the phase before it."""
        before = self.phase
        self.begin(phase)
        try:
            yield
        finally:
            self.begin(before)


ACTIVITY = Activity()


def make_progress(
    name: str, total: float | None = None, unit: str = "images"
) -> Callable[[float], None]:
    """Return a function that prints a line of progress every few seconds, and at the end.

    The speed and the time left are those of the work since the first call, without the time in
    which CLOCK was stopped: starting and compiling do not count. A line has no speed until a second
    of work has been measured.

    Args:
        name: The work in progress, with which the line begins.
        total: The number of units to process. None if it is unknown; then no end is predicted.
        unit: The unit that is counted, in the plural, for example "images", "records" or "MB".

    Returns:
        A function of the number of units that have been processed. It prints if PROGRESS_INTERVAL
        has passed since its last line, or if all units have been processed.

    Examples:
        >>> progress = make_progress("predicting", total=100)
        >>> progress(1)
        >>> progress(13)  # predicting: 13/100 images  2.4 images/s  0 min 36 s left
    """
    last_line = CLOCK.now()
    first: tuple[float, float] | None = None  # the time and the number of units of the first call

    def print_progress(done: float) -> None:
        nonlocal first, last_line
        ACTIVITY.progressed()
        now = CLOCK.now()
        first = first or (now, done)
        finished = total is not None and done >= total
        if now - last_line < PROGRESS_INTERVAL and not finished:
            return
        last_line = now
        of_total = "" if total is None else f"/{total:.0f}"
        parts = [f"{name}: {done:.0f}{of_total} {unit}"]
        seconds, count = now - first[0], done - first[1]
        if seconds >= MIN_MEASURED and count > 0:
            parts.append(f"{count / seconds:.1f} {unit}/s")
            if total is not None and not finished:
                parts.append(f"{format_duration((total - done) * seconds / count)} left")
        print("  ".join(parts), flush=True)

    return print_progress


def format_duration(seconds: float) -> str:
    """Return a duration as "1 h 05 min", or as "4 min 30 s" if it is under an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def format_count(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def join_first(texts: Sequence[str], count: int = 3) -> str:
    """Return the first of several texts, separated by commas, and how many more there are.

    Args:
        texts: Any number of texts, such as names in an error message.
        count: The largest number of texts to return.
    """
    more = [f"and {len(texts) - count} more"] if len(texts) > count else []
    return ", ".join([*texts[:count], *more])


def one_line(text: object) -> str:
    """Return a text with every sequence of spaces and line breaks replaced by one space.

    This turns the message of an exception into one line; those of ml_collections have several.
    """
    return " ".join(str(text).split())


def shorten(text: str, limit: int = MAX_NAME) -> str:
    """Return a text in one line that any terminal can print, with dots in the middle if it is long.

    Args:
        text: Any text, such as a name in a dataset.
        limit: The largest number of characters.
    """
    # File names that are no UTF-8 contain surrogates, which cannot be printed.
    line = "".join("?" if unicodedata.category(c) in ("Cc", "Cs") else c for c in one_line(text))
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[: limit - 3 - half]}...{line[-half:]}"
