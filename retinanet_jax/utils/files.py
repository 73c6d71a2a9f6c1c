"""Files and folders that are written whole or not at all."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any


def write_folder(
    folder: pathlib.Path, write: Callable[[pathlib.Path], None], is_written: Callable[[], bool]
) -> None:
    """Makes `folder` of what `write` puts into the draft that it is given.

    Where another process makes the same folder meanwhile, `is_written` says so, and its is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp's is for one user alone
        try:
            draft.rename(folder)
        except OSError:  # another process was faster
            if not is_written():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_writable(folder: pathlib.Path) -> None:
    """Makes the folder where it is not there; raises OSError where no file can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes all of `content` to `path` or leaves it as it was."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON atomically; numbers that are not finite are an error, for JSON has none."""
    write_atomically(path, json.dumps(value, allow_nan=False))
