"""Reads of images: those that fail for a moment are tried again, those in progress are known."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging

from retinanet_jax.data.sources.base import Source
from retinanet_jax.utils.progress import join_first

T = TypeVar("T")
PAUSES = (0.5, 1.0, 2.0)  # seconds before each further attempt
# The errors of a disk or network that may pass; ConnectionError and TimeoutError are others.
PASSING = {
    "EAGAIN",
    "EBUSY",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "EIO",
    "ENETDOWN",
    "ENETUNREACH",
    "EREMOTEIO",
    "ESTALE",
}

# The images that are being read, by any thread, in the order in which the reads began.
_in_progress: dict[object, tuple[Source, int]] = {}


def read_patiently(source: Source, index: int, read: Callable[[int], T]) -> T:
    """Return `read(index)`; after an error that may pass, try again after each of PAUSES.

    Args:
        source: The source.
        index: The index of an image.
        read: Its method `read` or `image`.

    Raises:
        OSError: If no attempt succeeds; the message contains the file.
    """
    for attempt, pause in enumerate((*PAUSES, None), 1):
        key = object()
        _in_progress[key] = source, index
        try:
            return read(index)
        except OSError as error:
            if not may_pass(error):
                raise
            name, cause = file_of(source, index), error.strerror or error
            if pause is None:
                raise OSError(
                    f"{name}: reading failed {attempt} times in {sum(PAUSES):g} s ({cause}); check "
                    "the disk or the server that holds the file. The same command resumes."
                ) from None
            if attempt == 1:
                logging.warning("%s: reading failed (%s); trying again", name, cause)
        finally:
            del _in_progress[key]
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def may_pass(error: OSError) -> bool:
    """Return whether a read that failed with this error may succeed a moment later."""
    is_of_network = isinstance(error, ConnectionError | TimeoutError)
    return is_of_network or errno.errorcode.get(error.errno or 0) in PASSING


def file_of(source: Source, index: int) -> str:
    """Return the path of an image, or its name in the dataset if it is no file of its own."""
    return str(source.path(index) or source.file_name(index))


def files_in_progress() -> str:
    """Return the files that are being read, those that were begun first, and how many more."""
    return join_first(list(dict.fromkeys(file_of(*read) for read in list(_in_progress.values()))))
