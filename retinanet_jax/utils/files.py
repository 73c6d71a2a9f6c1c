"""Files and folders that are written completely or not at all.

A reader, or a run that resumes, never sees half of a file: content is written under a temporary
name in the same folder and then renamed, which the file system does in one operation.
"""

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
    """Create `folder` with everything that `write` puts into it, or not at all.

    Several processes may create the same folder at once: the first one to finish succeeds, and the
    others discard their copies.

    Args:
        folder: The folder to create; missing parents are created too.
        write: Writes the content into the temporary folder that it is given.
        is_written: Returns whether `folder` is complete. It is called if `folder` exists by the
            time that `write` has finished.

    Raises:
        OSError: If the folder cannot be created, or exists and is not complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp lets only the current user read it
        try:
            draft.rename(folder)
        except OSError:  # another process was faster
            if not is_written():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_writable(folder: pathlib.Path) -> None:
    """Create a folder if it does not exist, and check that files can be created in it.

    Raises:
        OSError: If the folder cannot be created, or no file can be created in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file completely or not at all; if writing fails, an existing file is unchanged.

    Args:
        path: The file; its folder must exist.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: If the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file completely or not at all.

    Args:
        path: The file; its folder must exist.
        value: The content.

    Raises:
        ValueError: If a number is infinite or NaN, which JSON does not have.
        OSError: If the file cannot be written.
    """
    write_atomically(path, json.dumps(value, allow_nan=False))
