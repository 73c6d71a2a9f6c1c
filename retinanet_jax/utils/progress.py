"""Text that programs print while they work: progress lines, durations and one-line messages."""

import time
from collections.abc import Callable

PROGRESS_INTERVAL = 5.0  # seconds between two lines of progress


def make_progress(
    name: str, total: float | None = None, unit: str = "images"
) -> Callable[[float], None]:
    """Return a function that prints a line of progress every few seconds, and at the end.

    Args:
        name: The work in progress, with which the line begins.
        total: The number of units to process. None if it is unknown; then no end is predicted.
        unit: The unit that is counted, in the plural, for example "images", "records" or "MB".

    Returns:
        A function of the number of units that have been processed. It prints if PROGRESS_INTERVAL
        has passed since its last line, or if all units have been processed.

    Examples:
        >>> progress = make_progress("predicting", total=100)
        >>> progress(12)  # predicting: 12/100 images  2.4 images/s  0 min 36 s left
    """
    start = last_line = time.monotonic()

    def print_progress(done: float) -> None:
        nonlocal last_line
        now = time.monotonic()
        finished = total is not None and done >= total
        if now - last_line < PROGRESS_INTERVAL and not finished:
            return
        last_line = now
        rate = done / max(now - start, 1e-9)
        if total is None:
            print(f"{name}: {done:.0f} {unit}  {rate:.1f} {unit}/s", flush=True)
            return
        remaining = format_duration((total - done) / rate) if rate else "unknown time"
        print(
            f"{name}: {done:.0f}/{total:.0f} {unit}  {rate:.1f} {unit}/s  {remaining} left",
            flush=True,
        )

    return print_progress


def format_duration(seconds: float) -> str:
    """Return a duration as "1 h 05 min", or as "4 min 30 s" if it is under an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def format_count(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def one_line(text: object) -> str:
    """Return a text with every sequence of spaces and line breaks replaced by one space.

    This turns the message of an exception into one line; those of ml_collections have several.
    """
    return " ".join(str(text).split())
