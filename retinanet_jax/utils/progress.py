"""Text that programs print while they work: progress lines, durations and one-line messages."""

import time
from collections.abc import Callable

PROGRESS_INTERVAL = 5.0  # seconds between two lines of progress


def make_progress(
    name: str, total: float | None = None, unit: str = "images"
) -> Callable[[float], None]:
    """Return a function that prints a line of progress every few seconds, and at the end.

    Examples:
        >>> progress = make_progress("predicting", total=100)
        >>> progress(12)  # predicting: 12/100 images  2.4 images/s  0 min 36 s left

    Args:
        name: Work that the line reports on; the line starts with it.
        total: Number of units to do; None where it is unknown, and no end is predicted.
        unit: Plural of what is counted, for example "images", "records" or "MB".

    Returns:
        A function of the number of units done so far. It prints if PROGRESS_INTERVAL has passed
        since its last line, or if all units are done.
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


def one_line(text: object) -> str:
    """Return `str(text)` with every run of white space, line breaks included, as one space.

    It makes one line of an exception's message; those of ml_collections have several.
    """
    return " ".join(str(text).split())
