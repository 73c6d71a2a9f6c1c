r"""Which image files the file names in annotations mean.

Annotations move between operating systems, tools and folders: `images\a.png`, `a%20b.png`, `A.PNG`,
`C:/job/images/a.png`, or a letter with an accent in another Unicode form. A name that exists is
taken as it is; the others are compared with all files below the folder.
"""

import collections
import contextlib
import functools
import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import logging

from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.utils.paths import SYSTEM_NAMES

URL_QUERY = re.compile(r"(?<=[^:/?#])[?#].*")  # after the path of a URL
# What a path that leads elsewhere begins with: the drive of Windows, the scheme of a URL, / or ../
ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|/|\.\./")


def _with_slashes(path: str) -> str:
    return os.path.normpath(path.replace("\\", "/")) if "\\" in path else path


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _decoded(path: str) -> str:
    # What is decoded may be written in the other ways, too.
    return _composed(_with_slashes(urllib.parse.unquote(path)))


# What may differ in how the same path is written, in the order in which it is tried: each spelling
# includes those before it.
SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("with / for \\", _with_slashes),
    ("in another Unicode form", _composed),
    ("percent-decoded", _decoded),
    ("in another letter case", str.casefold),
)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is the operating system's, such as `._a.jpg` of macOS.

    Args:
        name: Its name, without the folder that it is in.
    """
    return name.startswith(".") or name in SYSTEM_NAMES


def find_image_files(
    name: str,
    folder: pathlib.Path,
    file_names: Sequence[str],
    label: Callable[[int], str] | None = None,
) -> list[str]:
    """Return the existing image file of every file name, relative to the folder.

    A name that exists is returned unchanged. For the others, in this order: the same path in
    another of `SPELLINGS`; the path without the folder's own name at its beginning, or the end of
    an absolute path; a file of this name in any subfolder; and a file of this name with another
    suffix. A name must mean a single file, and a warning is logged for each cause.

    Every subfolder is listed once, because asking for each file is slow on network disks.

    Args:
        name: The dataset's name in messages: the file that lists the images.
        folder: The folder that the file names are relative to.
        file_names: The file names.
        label: Returns the name, for messages, of the entry at an index; by default its file name.

    Raises:
        FileNotFoundError: If the folder or an image is missing, or several files match a name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder of images; give the folder that the file names of "
            f"{name} are relative to."
        )
    exists = _existing(folder, file_names)
    if all(exists):
        return list(file_names)
    files = _Files(folder)
    existing_names, causes = list(file_names), collections.defaultdict(list)
    missing: list[tuple[int, list[str]]] = []
    for index, file_name in enumerate(file_names):
        if exists[index]:
            continue
        matches, cause = files.match(file_name)
        if len(matches) != 1:
            missing.append((index, matches))
            continue
        existing_names[index] = matches[0]
        causes[cause].append(f"{show_path(file_name)} -> {show_path(matches[0])}")
    if missing:
        index, matches = missing[0]
        first = label(index) if label else show_path(file_names[index])
        count = f"{len(missing)} of {len(file_names)} images of {name} are missing"
        raise FileNotFoundError(f"{folder}: {count} (first: {first}{files.why_missing(matches)}")
    for cause, examples in causes.items():
        logging.warning(
            "%s: %d file names match an image only %s (first: %s).",
            name,
            len(examples),
            cause,
            examples[0],
        )
    return existing_names


def check_used_once(
    name: str, folder: pathlib.Path, file_names: Sequence[str], label: Callable[[int], str]
) -> None:
    """Check that no file is the image of two entries.

    Args:
        name: The dataset's name in messages.
        folder: The folder that the file names are relative to.
        file_names: The file of each entry.
        label: Returns the name, for messages, of the entry at an index.

    Raises:
        ValueError: If a file is the image of two entries; the message has both.
    """
    first_use: dict[str, int] = {}
    repeated: list[tuple[int, int]] = []
    for index, file_name in enumerate(file_names):
        first = first_use.setdefault(os.path.normpath(os.path.join(folder, file_name)), index)
        if first != index:
            repeated.append((first, index))
    if repeated:
        first, second = repeated[0]
        more = f", and {len(repeated) - 1} further entries repeat a file" if repeated[1:] else ""
        raise ValueError(
            f"{name}: the file {show_path(file_names[first])} belongs to {label(first)} and to "
            f"{label(second)}{more}; keep one entry for each file, with the boxes of both."
        )


class _Files:
    """The files in a folder and its subfolders, to be searched for names that do not exist.

    Attributes:
        paths: The files, relative to the folder, without hidden ones.
    """

    def __init__(self, folder: pathlib.Path):
        self.paths = sorted(walk_files(folder))
        self._folder = folder.absolute()
        self._parts_of_folder = _normalize(str(self._folder)).split("/")

    @functools.cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """The files by their normalized paths."""
        return _group(self.paths, _normalize)

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The files by their normalized names, without folders."""
        return _group(self.paths, lambda path: os.path.basename(_normalize(path)))

    @functools.cached_property
    def _by_path_and_stem(self) -> dict[str, list[str]]:
        """The images by their normalized paths without suffix."""
        return _group(filter(has_image_suffix, self.paths), lambda path: _stem(_normalize(path)))

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The images by their normalized names without folders and suffix."""
        return _group(
            filter(has_image_suffix, self.paths),
            lambda path: os.path.basename(_stem(_normalize(path))),
        )

    @functools.cached_property
    def _folders(self) -> set[str]:
        """The normalized paths of the folders with files, and names of folders next to this one."""
        inside = {os.path.dirname(path) for path in self._by_path}
        with contextlib.suppress(OSError), os.scandir(self._folder.parent) as entries:
            siblings = {_normalize(entry.name) for entry in entries if entry.is_dir()}
            inside |= siblings - {self._parts_of_folder[-1]}
        return inside - {""}

    def match(self, file_name: str) -> tuple[list[str], str]:
        """Return the files that a name may mean, and why the name itself is not one of them."""
        is_url = "://" in file_name
        path = _normalize(URL_QUERY.sub("", file_name) if is_url else file_name)
        stem = _stem(path) if has_image_suffix(path) else path
        for target, by_path, by_name, cause in (
            (path, self._by_path, self._by_name, ""),
            (stem, self._by_path_and_stem, self._by_stem, "with another suffix"),
        ):
            for tail in self._tails(target):
                if tail in by_path:
                    where = "" if tail == target else "without the beginning of the path"
                    matches, spelling = _closest(file_name, by_path[tail], bool(cause))
                    return matches, _join(spelling, where, cause)
            matches = by_name.get(os.path.basename(target), [])
            # In a folder that exists, the file is missing; one of another folder is not meant.
            if matches and os.path.dirname(path) not in self._folders:
                return matches, _join("by the name of the file, in another folder", cause)
        return [], ""

    def why_missing(self, matches: Sequence[str]) -> str:
        """Return the end of the message about a name that may mean several files, or none."""
        if matches:
            listed = " or ".join(map(show_path, matches[:2])) + (", ..." if matches[2:] else "")
            return f", which may be {listed}); write the path of the file that is meant."
        images = list(filter(has_image_suffix, self.paths))
        content = f"{len(images)} images, such as {show_path(images[0])}" if images else "no images"
        return (
            f"); the folder has {content}. Give the folder that the names are relative to, or "
            "remove them from the file."
        )

    def _tails(self, path: str) -> Iterator[str]:
        """Yield a normalized path, and what remains without its root or the folder's own name."""
        yield path
        parts = path.split("/")
        is_elsewhere = bool(ELSEWHERE.match(path))
        for count in range(1, len(parts)):
            if is_elsewhere or parts[:count] == self._parts_of_folder[-count:]:
                tail = "/".join(parts[count:])
                is_elsewhere |= bool(ELSEWHERE.match(tail))
                yield tail


def _closest(file_name: str, paths: list[str], any_suffix: bool) -> tuple[list[str], str]:
    """Return the paths that equal a name after the fewest spellings, and those spellings.

    After all spellings, all paths equal the name or its end.
    """
    written, used = os.path.normpath(file_name), {path: [] for path in paths}
    written_paths = dict(zip(paths, paths, strict=True))
    for spelling, apply in SPELLINGS:
        written, before = apply(written), written
        for path in paths:
            rewritten = apply(written_paths[path])
            if written != before or rewritten != written_paths[path]:
                used[path].append(spelling)
            written_paths[path] = rewritten
        matches = [path for path in paths if _ends_with(written, written_paths[path], any_suffix)]
        if matches:
            return matches, _join(*used[matches[0]])
    return paths, ""


def _ends_with(path: str, end: str, any_suffix: bool) -> bool:
    """Return whether a path ends with all parts of another one."""
    if any_suffix:
        path, end = (_stem(path) if has_image_suffix(path) else path), _stem(end)
    return f"/{path}".endswith(f"/{end}")


def _existing(folder: pathlib.Path, file_names: Sequence[str]) -> list[bool]:
    """Return whether a file of each name exists."""
    listed = [os.path.normpath(file_name) for file_name in file_names]
    existing = set()
    for parent in {os.path.dirname(file_name) for file_name in listed}:
        path = os.path.join(folder, parent)
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                # Only links would have to be asked for their type.
                existing.update(
                    os.path.join(parent, entry.name)
                    for entry in entries
                    if not entry.is_dir(follow_symlinks=False)
                )
    return [file_name in existing for file_name in listed]


def walk_files(folder: pathlib.Path) -> Iterator[str]:
    """Yield the paths of all files except hidden ones, each subfolder once.

    Args:
        folder: The folder, which the paths are relative to.
    """
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        relative = os.path.relpath(parent, folder)
        yield from (
            os.path.normpath(os.path.join(relative, name)) for name in names if not is_hidden(name)
        )


def _normalize(path: str) -> str:
    """Return a path in all `SPELLINGS`."""
    return functools.reduce(
        lambda text, spelling: spelling[1](text), SPELLINGS, os.path.normpath(path)
    )


def _stem(path: str) -> str:
    """Return a path without the suffix."""
    return os.path.splitext(path)[0]


def _group(paths: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the paths by their keys."""
    groups = collections.defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return dict(groups)


def _join(*causes: str) -> str:
    return ", ".join(filter(None, causes))


def show_path(path: str, limit: int = 60) -> str:
    """Return a path as it appears in messages, with control characters escaped.

    Args:
        path: The path.
        limit: The number of characters at its end that are kept.
    """
    text = path.encode("unicode_escape").decode() if not path.isprintable() else path
    return text if len(text) <= limit else f"...{text[3 - limit :]}"
