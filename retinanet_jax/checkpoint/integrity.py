"""The digests of a checkpoint's files, by which damage is detected before a file is used.

The file DIGESTS is written last, when the checkpoint is known to be good: a checkpoint without it
is incomplete. Only those that earlier versions of this package wrote are complete without it.
"""

import hashlib
import json
import pathlib
import time
from typing import Any

from etils import epath

from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.paths import is_remote
from retinanet_jax.utils.remote import list_files
from retinanet_jax.utils.threads import map_ahead

DIGESTS = "digests.json"
# The first version of the config, which a checkpoint stores, with which digests are written.
FIRST_VERSION = 5
CHUNK = 2**20  # bytes that are read and hashed at a time
NUM_TRIALS, PAUSE_SECONDS = 5, 0.2  # of removing a folder


class DamagedError(ValueError):
    """A checkpoint has other content than was written; the message begins with the file."""


def compute_digests(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return the size and the SHA-256 of each file of a checkpoint, by its path in `folder`."""
    names = [name for name in list_files(folder) if name != DIGESTS]
    digests = map_ahead(lambda name: digest(folder / name), names)
    return dict(zip(names, digests, strict=True))


def digest(file: pathlib.Path) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of a file."""
    total, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            total.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": total.hexdigest()}


def write_digests(folder: pathlib.Path, digests: dict[str, dict[str, Any]]) -> None:
    """Write the digests of a checkpoint, by which it becomes complete."""
    write_json(folder / DIGESTS, digests)


def read_digests(folder: pathlib.Path) -> dict[str, dict[str, Any]] | None:
    """Return the digests of a checkpoint; None if there are none.

    Raises:
        DamagedError: If they cannot be parsed.
    """
    file = folder / DIGESTS
    try:
        digests = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise DamagedError(f"{file} is damaged: it is no JSON") from None
    if not isinstance(digests, dict):
        raise DamagedError(f"{file} is damaged: it lists no files")
    return digests


def verify(folder: pathlib.Path) -> bool:
    """Compare every file of a checkpoint with its digest.

    Returns:
        Whether the checkpoint has digests.

    Raises:
        DamagedError: If a file is missing or was altered.
        OSError: If a file cannot be read.
    """
    digests = read_digests(folder)
    files = [(folder / name, expected) for name, expected in (digests or {}).items()]
    for _ in map_ahead(lambda item: verify_file(*item), files):
        pass
    return digests is not None


def verify_file(file: pathlib.Path, expected: Any) -> None:
    """Raise DamagedError if a file does not exist, or has another size or digest than expected."""
    try:
        actual = digest(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DamagedError(f"{file} is missing") from None
    if actual == expected:
        return
    size = expected.get("size") if isinstance(expected, dict) else None
    if actual["size"] != size:
        raise DamagedError(f"{file} is damaged: {actual['size']} bytes, and {size} were written")
    raise DamagedError(f"{file} is damaged: its SHA-256 is not the one in {DIGESTS}")


def is_complete(folder: pathlib.Path) -> bool:
    """Return whether a checkpoint has digests, or was written by a version without them."""
    if (folder / DIGESTS).exists():
        return True
    # Earlier versions did not write to remote storage, where nothing else shows what is complete.
    return not is_remote(folder) and folder.is_dir() and not _requires_digests(folder)


def _requires_digests(folder: pathlib.Path) -> bool:
    """Return whether the version of the package that wrote a checkpoint writes digests."""
    try:
        stored = json.loads((folder / "config" / "metadata").read_bytes())
        return stored.get("config_version", 1) >= FIRST_VERSION
    except (OSError, ValueError, AttributeError, TypeError):
        return False  # it cannot be read, which is damage and not an interrupted save


def remove(folder: pathlib.Path) -> None:
    """Remove a checkpoint; if this process is killed meanwhile, the rest of it is incomplete.

    Threads of tensorstore may write to it for a moment after a save has failed, so that it is not
    empty when its files have been removed; therefore it is tried again.

    Raises:
        OSError: If it cannot be removed.
    """
    (folder / DIGESTS).unlink(missing_ok=True)
    for trial in range(NUM_TRIALS):
        try:
            epath.Path(folder).rmtree(missing_ok=True)
        except OSError:
            if trial == NUM_TRIALS - 1:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return
