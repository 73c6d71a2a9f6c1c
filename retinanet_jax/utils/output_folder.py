"""Folders to which commands write several files, and which may also contain files of the user."""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import threading
from collections.abc import Iterator

from retinanet_jax.utils.files import errors_name, make_folder, make_writable, write_atomically
from retinanet_jax.utils.paths import SYSTEM_NAMES, relative_path

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
