"""Files and folders that are written completely or not at all, and never replace a user's files.

A reader, or a run that resumes, never sees half of a file: content is written under a temporary
name in the same folder and then renamed, which the file system does in one operation.

What this package did not write, it does not replace. A command that writes a new file or folder
requires that nothing is there (`check_absent`). A command that writes several files to a folder,
and that may be run again with it, uses an `OutputFolder`, which knows the files of earlier runs.
"""

import collections
import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from retinanet_jax.utils.paths import SYSTEM_NAMES, is_remote, relative_path
from retinanet_jax.utils.remote import remote_errors

RECORD = ".retinanet_jax_files"  # in an OutputFolder: a line of JSON for each file written


class OutputFolder:
    """A folder to which commands write, and which may also contain files of the user.

    The file RECORD lists the name and the SHA-256 of each file that was written. A file is replaced
    only if its content is among them: one that the user put there, or changed, is kept.

    Attributes:
        path: The folder.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # The digests of each name.
        self._written: dict[str, set[str | None]] = collections.defaultdict(set)
        for name, digest in _read_record(path / RECORD):
            self._written[name].add(digest)

    def may_write(self, name: str) -> bool:
        """Return whether `name` is free, or a file that was written here and not changed since."""
        return not os.path.lexists(self.path / name) or self.wrote(name)

    def wrote(self, name: str) -> bool:
        """Return whether `name` is a file that was written here and not changed since."""
        digests = self._written.get(name)  # most files are not listed, and need not be read
        return bool(digests) and _digest(self.path / name) in digests

    def prepare(self, *names: str) -> None:
        """Create the folder, and check that it is writable and that these files may be written.

        Raises:
            FileExistsError: If one of the files exists and was not written here, or was changed, or
                if RECORD is a folder or a link.
            OSError: If the folder cannot be created or written.
        """
        record = self.path / RECORD
        if os.path.lexists(record) and not _is_plain_file(record):
            raise FileExistsError(
                f"{record} must be a file, in which retinanet_jax lists what it wrote; rename it, "
                "or give another folder."
            )
        for name in names:
            self._check(name)
        make_writable(self.path)
        for name in names:
            make_folder((self.path / name).parent)

    def clear(self, subfolder: str) -> None:
        """Remove all files in a subfolder, which must all have been written here.

        Args:
            subfolder: Its name; it need not exist.

        Raises:
            FileExistsError: If there is a file that was not written here, or was changed, also in
                place of the subfolder; nothing is removed then.
        """
        folder = self.path / subfolder
        paths = (folder, *folder.rglob("*")) if os.path.lexists(folder) else ()
        files = [path for path in paths if not _is_folder(path)]
        files = sorted(path for path in files if path.name not in SYSTEM_NAMES)
        for path in files:
            self._check(path.relative_to(self.path).as_posix())
        for path in files:
            path.unlink()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file completely or not at all; threads may call this at the same time.

        Args:
            name: The name of the file, which may be in a subfolder: labels/a.txt.
            content: Bytes, or text that is written as UTF-8.

        Raises:
            FileExistsError: If the file exists and was not written here, or was changed.
            OSError: If the file cannot be written.
        """
        content = content.encode() if isinstance(content, str) else content
        self._check(name)
        # Recorded first: if this process is killed in between, the file still counts as written.
        self._record(name, hashlib.sha256(content).hexdigest())
        make_folder((self.path / name).parent)
        write_atomically(self.path / name, content)

    @contextlib.contextmanager
    def draft(self, name: str) -> Iterator[pathlib.Path]:
        """Yield where a `with` statement writes a large file, which has its name at the end.

        After an error, or if there is no file by then, nothing is written.

        Args:
            name: The name of the file.

        Raises:
            FileExistsError: As in `write`.
        """
        self._check(name)
        partial = self.path / f".{secrets.token_hex(8)}.partial"
        try:
            with errors_name(self.path / name):
                yield partial
            if partial.exists():
                self._check(name)
                self._record(name, _digest(partial))
                os.replace(partial, self.path / name)
        finally:
            partial.unlink(missing_ok=True)

    def link(self, name: str, file: pathlib.Path) -> None:
        """Write a relative link to a file or, on a file system without links, a copy of it.

        Args:
            name: The name of the link. Nothing is done if this is the file itself.
            file: The file.

        Raises:
            FileExistsError: As in `write`.
            OSError: If neither can be written.
        """
        self._check(name)
        path = self.path / name
        make_folder(path.parent)
        target = relative_path(file, path.parent)
        if target == path.name:
            return
        partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            partial.symlink_to(target)
        except (NotImplementedError, OSError):
            self.write(name, file.read_bytes())
            return
        self._record(name, _digest(partial))
        os.replace(partial, path)

    def _check(self, name: str) -> None:
        """Raise FileExistsError if a file may not be written."""
        if not self.may_write(name):
            raise FileExistsError(
                f"{self.path / name} is not replaced, because there is no record that "
                "retinanet_jax wrote its present content; rename it, or give another folder."
            )

    def _record(self, name: str, digest: str | None) -> None:
        """Add a file to the record."""
        with self._lock:
            if digest not in self._written[name]:
                self._written[name].add(digest)
                path = self.path / RECORD
                with errors_name(path), path.open("a", encoding="utf-8") as record:
                    record.write("\n" + json.dumps({"file": name, "sha256": digest}))


def _is_plain_file(path: pathlib.Path) -> bool:
    """Return whether there is a file, and not a link to one."""
    return path.is_file() and not path.is_symlink()


def _is_folder(path: pathlib.Path) -> bool:
    """Return whether there is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _digest(path: pathlib.Path) -> str | None:
    """Return the SHA-256 of a file's content or of a link's target; None for anything else."""
    if path.is_symlink():
        return hashlib.sha256(f"link to {os.readlink(path)}".encode(errors="replace")).hexdigest()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of each file in a record."""
    if path.is_file():
        for line in path.read_bytes().splitlines():
            # A line may be incomplete, if a run was killed while it wrote it, or damaged.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                yield str(entry["file"]), str(entry["sha256"])


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
