"""Files in remote storage, such as gs://BUCKET/FOLDER: local copies of what is read.

Annotations, images and weights are read from a copy in the user's cache, at the speed of a local
disk and by any library. The first use copies all files of a folder; later ones only those that
have changed. The copies may be deleted at any time.
"""

import contextlib
import datetime
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from retinanet_jax.utils.paths import cache_folder, is_remote, to_path
from retinanet_jax.utils.progress import format_count, make_progress, one_line
from retinanet_jax.utils.threads import map_ahead

FOLDER = "remote"  # of the copies, in the user's cache
NUM_THREADS = 32  # files that are copied at the same time; each waits for the network most of it
# What file systems of fsspec call the time of a file's last change.
TIMES = ("mtime", "LastModified", "last_modified", "updated")


class RemoteFile(NamedTuple):
    """A file that is to be copied."""

    key: str  # its path in the file system
    copy: pathlib.Path
    size: int  # bytes
    modified: int | None  # nanoseconds since 1970; None if unknown: the file is always copied

    def is_copied(self) -> bool:
        """Return whether the copy has the file's size and time."""
        with contextlib.suppress(FileNotFoundError):
            stat = self.copy.stat()
            return stat.st_size == self.size and stat.st_mtime_ns == self.modified
        return False


def local_copy(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return a path of which all files are on a local disk: of a remote one, an up-to-date copy.

    Args:
        path: A local path, which is returned as it is, or the URL of a remote file or folder.

    Raises:
        FileNotFoundError: If there is no such remote file or folder.
        ValueError: As in `to_path`.
        OSError: If it cannot be read, or the disk of the cache has too little space.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    path = to_path(path)
    target = copy_path(path)
    with remote_errors(path, "read"):
        system, files = _find(path, target)
    stale = [file for file in files if not file.is_copied()]
    _remove_others(target, {file.copy for file in files})
    if not stale:
        return target
    num_bytes = sum(file.size for file in stale)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise OSError(
            f"{path}: a copy of {num_bytes / 1e6:.0f} MB is read, and {target.parent} has only "
            f"{free / 1e6:.0f} MB of free space; set the environment variable XDG_CACHE_HOME to a "
            "folder on a larger disk, or mount the bucket as a local folder."
        )
    count = format_count(len(stale), "file")
    print(f"copying {count} ({num_bytes / 1e6:.1f} MB) of {path} to {target}", flush=True)
    progress = make_progress(f"copying {path}", len(stale), "files")
    with (
        remote_errors(path, "read"),
        tempfile.TemporaryDirectory(prefix="partial-", dir=cache_folder()) as drafts,
    ):
        numbered = enumerate(stale)
        copied = map_ahead(
            lambda item: _copy(system, item[1], pathlib.Path(drafts) / str(item[0])),
            numbered,
            num_ahead=2 * NUM_THREADS,
            num_threads=NUM_THREADS,
        )
        for done, _ in enumerate(copied, 1):
            if done < len(stale):  # a short copy has no line but the first
                progress(done)
    return target


def list_files(folder: pathlib.Path) -> list[str]:
    """Return all files in a local or remote folder and its subfolders, relative to it, sorted."""
    if not is_remote(folder):
        files = filter(pathlib.Path.is_file, folder.rglob("*"))
        return sorted(file.relative_to(folder).as_posix() for file in files)
    with remote_errors(folder, "read"):
        _, files = _find(folder, pathlib.Path())
    return sorted(file.copy.as_posix() for file in files)


def is_file(path: pathlib.Path) -> bool:
    """Return whether there is a file at a local or remote path.

    Args:
        path: A path from `to_path`.

    Raises:
        OSError: If the remote storage cannot be read.
    """
    with remote_errors(path, "read"):
        return path.is_file()


def copy_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return where the copy of a remote file or folder is, whether it exists or not."""
    scheme, _, key = str(path).partition("://")
    return cache_folder() / FOLDER / scheme / key


def local_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Return a folder for files that a run generates again: in its working directory if possible.

    Args:
        workdir: The working directory; that of remote storage has a local folder in the cache.
        name: The name of the folder.
    """
    if not is_remote(workdir):
        return workdir / name
    scheme, _, key = str(workdir).partition("://")
    return cache_folder() / "workdirs" / scheme / key / name


def with_remote_names(text: str) -> str:
    """Return a text, or a path, with the URLs of the files of which it names the copies."""
    return re.sub(rf"{re.escape(str(cache_folder() / FOLDER))}/(\w+)/", r"\1://", text)


@contextlib.contextmanager
def remote_errors(path: str | os.PathLike[str], action: str) -> Iterator[None]:
    """Name a remote path, and what to check, in any error of its file system.

    Args:
        path: The path; errors of a local one are not changed.
        action: What cannot be done: "read" or "written".
    """
    try:
        yield
    except ValueError:  # of this package
        raise
    except Exception as error:  # the file systems' libraries have errors of their own types
        if not is_remote(path):
            raise
        if isinstance(error, FileNotFoundError):
            message = f"{path}: there is no such file or folder; check the path."
            raise FileNotFoundError(message) from None
        raise OSError(
            f"{path}: cannot be {action} ({type(error).__name__}: {one_line(error)[:200]}); check "
            "the bucket's name, the network and your credentials."
        ) from None


def _find(path: pathlib.Path, target: pathlib.Path) -> tuple[Any, list[RemoteFile]]:
    """Return the file system of a remote path, and the files in it, or the file that it is.

    Their copies are at, or in, `target`.
    """
    import fsspec

    system, root = fsspec.core.url_to_fs(str(path))
    info = system.info(root)
    entries: Mapping[str, Mapping[str, Any]] = {root: info}
    if info["type"] == "directory":
        entries = system.find(root, detail=True)
    files = []
    for key, entry in entries.items():
        relative = key.removeprefix(root).strip("/")
        if ".." in relative.split("/"):
            raise ValueError(f"{path}: the name {key!r} leads out of its folder; rename the file.")
        # Some tools write an object that only stands for a folder.
        if entry["type"] == "file" and not key.endswith("/"):
            files.append(RemoteFile(key, target / relative, entry["size"], _modified(entry)))
    return system, files


def _modified(entry: Mapping[str, Any]) -> int | None:
    """Return when a file was last changed, in nanoseconds since 1970; None if that is unknown."""
    value = next((entry[name] for name in TIMES if entry.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return None if value is None else round(value * 1e6) * 1000


def _copy(system: Any, file: RemoteFile, draft: pathlib.Path) -> None:
    """Copy a file; its copy appears when it is complete."""
    system.get_file(file.key, str(draft))
    if draft.stat().st_size != file.size:
        raise OSError(f"{file.key} has {file.size} bytes, and {draft.stat().st_size} arrived")
    if file.modified is not None:
        os.utime(draft, ns=(file.modified, file.modified))
    file.copy.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(file.copy)


def _remove_others(target: pathlib.Path, copies: set[pathlib.Path]) -> None:
    """Remove the copies of files that are no longer there."""
    for parent, _, names in os.walk(target):
        for name in names:
            path = pathlib.Path(parent, name)
            if path not in copies and not name.startswith("."):  # these are of this package
                path.unlink(missing_ok=True)
