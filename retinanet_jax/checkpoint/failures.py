"""Saves that fail, on a full disk for example: each is reported once, in one line."""

import contextlib
import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import traceback
import warnings

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
    cause = (cause or one_line(error))[:200].rstrip(".")
    return OSError(
        f"{folder}: the checkpoint cannot be saved: {cause}. It needs "
        f"{num_bytes / 1e6:.0f} MB{_free_space(folder)}. After that is mended, the same command "
        f"{resumes}."
    )


def _free_space(folder: pathlib.Path) -> str:
    """Return ", X MB are free" for the disk of a folder, if there is such a disk."""
    with contextlib.suppress(OSError, StopIteration):
        existing = next(parent for parent in folder.parents if parent.exists())
        return f", {shutil.disk_usage(existing).free / 1e6:.0f} MB are free in {existing}"
    return ""


@functools.cache
def silence_orbax() -> None:
    """Drop what Orbax and tensorstore print, with tracebacks, about errors that they raise, too.

    A full disk is otherwise a thousand lines: a traceback for each array. As some are printed when
    Python collects its garbage, this remains in force until the process ends.
    """
    # Of a save that has failed, Orbax leaves the further parts where they are.
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_of_others)
    earlier_hook = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # Arrays that tensorstore has not written yet when the first error has ended the event loop.
        if str(unraisable.exc_value) != "Event loop is closed":
            earlier_hook(unraisable)

    sys.unraisablehook = hook


def _is_of_others(record: logging.LogRecord) -> bool:
    """Return whether a record, with its traceback, is not about Orbax."""
    stack = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
    files = [frame.filename for frame in stack]  # asyncio logs errors of tasks, wherever they arose
    text = " ".join([record.pathname, record.getMessage(), *files])
    return "orbax" not in text and "OCDBT" not in text  # the format of its files
