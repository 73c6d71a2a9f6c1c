"""Paths that a user gives: on a local disk or in remote storage, one or a list of them."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import cast

from retinanet_jax.utils.packages import not_installed

# What operating systems add to folders of images; other files of macOS begin with "._".
SYSTEM_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")
# The schemes of remote storage that etils.epath reads, and the package that each one requires.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What pathlib makes of a URL: one of the slashes is missing.
PATHLIB_SCHEME = re.compile(rf"({'|'.join(PACKAGES)}):/(?=[^/])")


def to_path(path: str | os.PathLike[str], *, absolute: bool = True) -> pathlib.Path:
    """Return what a user gives as a path.

    Args:
        path: A local path, in which ~ is the user's folder, or a URL of remote storage, such as
            gs://BUCKET/FOLDER.
        absolute: Whether a relative path becomes an absolute one.

    Returns:
        A `pathlib.Path`; for remote storage an `etils.epath.Path`, which has the same methods,
        except that its `absolute` and `resolve` are wrong, and os and shutil cannot use it.

    Raises:
        ValueError: If the scheme is unknown, or the package that it requires is not installed.
    """
    text = PATHLIB_SCHEME.sub(r"\1://", os.fspath(path))
    match = SCHEME.match(text)
    if not match:
        local = pathlib.Path(os.path.expanduser(text))
        return local.absolute() if absolute else local
    scheme = match[1]
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}:// (pip install {PACKAGES[name]})" for name in PACKAGES)
        raise ValueError(
            f"{text}: {scheme}:// is no known remote storage; give a local path, or one that "
            f"begins with {known}."
        )
    if not text[match.end() :].strip("/"):
        raise ValueError(f"{text}: names no bucket; give {scheme}://BUCKET/FOLDER.")
    _use_fsspec(scheme, text)
    from etils import epath

    return cast(pathlib.Path, epath.Path(text))


def relative_path(file: pathlib.Path, folder: pathlib.Path) -> str:
    """Return the path of a file from a folder, correct where folders are links, with slashes.

    Args:
        file: The file; a link to a file remains a link.
        folder: The folder; it need not exist.
    """
    path = os.path.join(os.path.realpath(file.parent), file.name)
    return pathlib.Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is the URL of remote storage, of a known scheme or not."""
    return bool(scheme_of(path))


def scheme_of(path: str | os.PathLike[str]) -> str:
    """Return the scheme of a URL, such as "gs"; "" for a local path."""
    text = os.fspath(path)
    match = SCHEME.match(text) or PATHLIB_SCHEME.match(text)
    return match[1] if match else ""


def _use_fsspec(scheme: str, url: str) -> None:
    """Let epath access a scheme by fsspec; ValueError with the URL if its package is missing."""
    import fsspec.config
    from etils.epath import gpath

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        package = PACKAGES[scheme]
        what = f"{package}, not installed here"
        raise not_installed(f"{url}: {scheme}://", what, package) from None
    # Where TensorFlow is installed, epath prefers it, which does not know s3:// and raises errors
    # of its own. epath remembers its choice, for which it has no public function.
    os.environ["EPATH_USE_TF"] = "false"
    gpath._is_tf_installed.cache_clear()
    # Other processes and libraries write to the same folders, which a remembered listing misses.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False


def cache_folder() -> pathlib.Path:
    """Return the user's folder of downloaded files and their conversions."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "retinanet_jax"


def split_list(text: str, exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """Split a list that is separated by commas; a comma in an existing path belongs to the path.

    Args:
        text: The list.
        exists: Returns whether a path exists.

    Returns:
        The entries without surrounding spaces. Where several would be possible, an entry is the
        longest existing path.
    """
    words = text.split(",")
    entries = []
    while words:
        joined = [",".join(words[:count]).strip() for count in range(len(words), 1, -1)]
        entry = next(filter(exists, joined), words[0].strip())
        del words[: entry.count(",") + 1]
        entries.append(entry)
    return entries
