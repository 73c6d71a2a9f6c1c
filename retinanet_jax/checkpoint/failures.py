"""Saves that fail, on a full disk for example: each is reported once, in one line."""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

from retinanet_jax.utils.progress import one_line


def save_error(
    folder: pathlib.Path, error: Exception, *, num_bytes: int, newest: int | None
) -> OSError:
    """Return the error message of a checkpoint that cannot be saved.

    Args:
        folder: The checkpoint's folder.
        error: The cause. Orbax and tensorstore raise errors of several types.
        num_bytes: The size of its arrays.
        newest: The step of the newest complete checkpoint; None if there is none.
    """
    code = re.search(r"os_error_code='(\d+)'", str(error))
    cause = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
    resumes = f"resumes from step {newest}, the newest good checkpoint"
    if newest is None:
        resumes = "starts from the beginning: there is no good checkpoint yet"
    return OSError(
        f"{folder}: the checkpoint cannot be saved: {(cause or one_line(error))[:200]}. It needs "
        f"{num_bytes / 1e6:.0f} MB{_free_space(folder)}. After that is mended, the same command "
        f"{resumes}."
    )


def _free_space(folder: pathlib.Path) -> str:
    """Return ", X MB are free" for the disk of a folder, if there is such a disk."""
    with contextlib.suppress(OSError, StopIteration):
        existing = next(parent for parent in folder.parents if parent.exists())
        return f", {shutil.disk_usage(existing).free / 1e6:.0f} MB are free in {existing}"
    return ""


@contextlib.contextmanager
def errors_are_not_logged() -> Iterator[None]:
    """Drop what Orbax, asyncio and tensorstore log, with tracebacks, about errors they raise.

    A full disk is otherwise a thousand lines: one traceback for each array.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    earlier_hook = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # Arrays that tensorstore has not written yet when the first error has ended the event loop.
        if str(unraisable.exc_value) != "Event loop is closed":
            earlier_hook(unraisable)

    for logger in loggers:
        logger.addFilter(_is_of_others)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = earlier_hook
        for logger in loggers:
            logger.removeFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    """Return whether a record is neither of Orbax nor of asyncio."""
    return record.name != "asyncio" and "orbax" not in record.pathname
