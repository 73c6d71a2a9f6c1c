"""Text that a program prints while it works."""

import time
from collections.abc import Callable


def one_line(told: object) -> str:
    """What an error or a text says, without its line breaks (ml_collections' have some)."""
    return " ".join(str(told).split())


PROGRESS_INTERVAL = 5.0  # seconds between lines of progress


def make_progress(what: str, total: int) -> Callable[[int], None]:
    """Prints a line of progress now and then; to be called with the number of pictures done."""
    began = told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < PROGRESS_INTERVAL and done < total:
            return
        told = now
        each = (now - began) / done
        print(
            f"{what}: {done}/{total} pictures  {1 / each:.1f} images/s  "
            f"{duration(each * (total - done))} left",
            flush=True,
        )

    return tell


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds, as a person says them."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
