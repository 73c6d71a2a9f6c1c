"""Files and folders that are written completely or not at all, and never replace a user's files.

A reader, or a run that resumes, never sees half of a file: content is written under a temporary
name in the same folder and then renamed, which the file system does in one operation.

What this package did not write, it does not replace. A command that writes a new file or folder
requires that nothing is there (`check_absent`). A command that writes several files to a folder,
and that may be run again with it, uses an `output_folder.OutputFolder`, which knows the files of
earlier runs.
"""

import contextlib
import errno
import io
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from retinanet_jax.utils.paths import is_remote
from retinanet_jax.utils.remote import remote_errors


def check_absent(path: pathlib.Path, description: str) -> None:
    """Check that nothing exists at the path of a new file or folder, not even a broken link.

    Args:
        path: The path.
        description: "file" or "folder", for the error message.

    Raises:
        FileExistsError: If something exists.
        NotADirectoryError: If a part of the path before its last is a file.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists; give another {description}.")
    for parent in path.parents:
        if os.path.lexists(parent) and not parent.is_dir():
            raise NotADirectoryError(f"{path}: {parent} is no folder; give another {description}.")


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
        with errors_name(folder):
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
    if is_remote(folder):  # which has no folders, only files with the folder in their names
        file = folder / f".{secrets.token_hex(8)}.partial"
        with remote_errors(folder, "written"):
            file.write_bytes(b"1")
            file.unlink()
        return
    make_folder(folder)
    tempfile.TemporaryFile(dir=folder).close()


def make_folder(folder: pathlib.Path) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises:
        NotADirectoryError: If there is a file in place of one of them.
        OSError: If one cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        reason = "there is a file in place of this folder; rename it"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(file)) from None


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file completely or not at all; if writing fails, an existing file is unchanged.

    Args:
        path: The file; its folder must exist.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: If the file cannot be written.
    """
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def open_atomically(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file that is complete, or unchanged, at the end of a `with` statement.

    Args:
        path: The file, local or remote; a local folder must exist.

    Raises:
        OSError: If the file cannot be written.
    """
    if is_remote(path):  # where a file appears when all of it is written
        content = io.BytesIO()
        yield content
        with remote_errors(path, "written"):
            path.write_bytes(content.getvalue())
        return
    # A random name is that of no other file. It does not contain the name of the file, which may be
    # as long as the file system allows.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with errors_name(path), partial.open("xb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def errors_name(path: pathlib.Path) -> Iterator[None]:
    """Add the path of a file to errors of writing it that lack it, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file completely or not at all.

    Args:
        path: The file; its folder must exist.
        value: The content.

    Raises:
        ValueError: If a number is infinite or NaN, which JSON does not have.
        OSError: If the file cannot be written.
    """
    write_atomically(path, to_json(value))


def to_json(value: Any) -> str:
    """Return a value as JSON.

    Raises:
        ValueError: If a number is infinite or NaN, which JSON does not have.
    """
    return json.dumps(value, allow_nan=False)
