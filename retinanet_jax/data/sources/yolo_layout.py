"""Where the images and labels of a YOLO dataset are, and the names of its classes.

A dataset is described by Ultralytics' data.yaml (https://docs.ultralytics.com/datasets/detect), by
darknet's obj.data, or only by its folders and a file of names, such as classes.txt.
"""

import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from retinanet_jax.data.sources.fields import FieldError, parse_integer, parse_name, show

# The splits, and the names that tools give to them.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # of several, the first
YAML_SUFFIXES = (".yaml", ".yml")
NAMES_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "names.txt")
NAMES_KEY = re.compile(rb"^names\s*:", re.MULTILINE)
# Folders inside a dataset, from which its description is searched in the folder above.
INNER_FOLDERS = ("images", "labels", *SPLIT_OF)


class Layout(NamedTuple):
    """The description of a dataset.

    Attributes:
        listing: The file or folder that describes it, for messages.
        folders: The folders that paths in it may be relative to, in the order in which they are
            tried; the first one is the dataset's.
        names: The name of each class by its index.
        splits: The folders of images, or lists of images, of each split; of a dataset without
            splits that of "".
        num_keypoint_values: The number of values after the box in each label of a pose dataset.
    """

    listing: pathlib.Path
    folders: tuple[pathlib.Path, ...]
    names: dict[int, str]
    splits: dict[str, list[str]]
    num_keypoint_values: int = 0


def splits(annotations: str | os.PathLike) -> tuple[str, ...]:
    """Return the splits of a dataset: some of train, val and test, or none.

    Args:
        annotations: As in `YoloSource`.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the description is invalid.
    """
    return tuple(filter(None, read_layout(pathlib.Path(annotations)).splits))


def read_layout(path: pathlib.Path) -> Layout:
    """Read the description of a dataset.

    Args:
        path: A data.yaml, an obj.data, or a folder.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the description is invalid.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder; check the path.")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() in YAML_SUFFIXES:
        return _read_yaml(path)
    if path.suffix.lower() == ".data":
        return _read_darknet(path)
    raise ValueError(
        f"{path}: is neither a data.yaml nor an obj.data; give one of them, or the folder of the "
        "dataset."
    )


def _read_folder(folder: pathlib.Path) -> Layout:
    """Read the description that is in a folder or, if it is part of a dataset, above it."""
    folder = pathlib.Path(os.path.abspath(folder))
    for outer in _outer_folders(folder):
        description = _find_description(outer)
        if description is None:
            continue
        if description.suffix.lower() in (*YAML_SUFFIXES, ".data"):
            layout = read_layout(description)
        else:
            names = dict(enumerate(_read_names(description)))
            layout = Layout(description, (outer,), names, _find_splits(outer))
        return layout if outer == folder else layout._replace(splits={"": [str(folder)]})
    return Layout(folder, (folder,), {}, _find_splits(folder))


def _outer_folders(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a folder, and those above it of which it is a part."""
    yield folder
    while folder.name.lower() in INNER_FOLDERS:
        folder = folder.parent
        yield folder


def _find_description(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the file in a folder that has the names of the classes; None if there is none."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    by_name = {path.name.lower(): path for path in files}
    for name in YAML_FILES:
        if name in by_name:
            return by_name[name]
    yaml_files = [path for path in files if path.suffix.lower() in YAML_SUFFIXES]
    for candidates in (
        [path for path in yaml_files if NAMES_KEY.search(path.read_bytes())],
        [path for path in files if path.suffix.lower() == ".data"],
    ):
        if len(candidates) > 1:
            raise ValueError(
                f"{folder}: {candidates[0].name} and {candidates[1].name} both describe a dataset; "
                "give the file that is meant."
            )
        if candidates:
            return candidates[0]
    inner = [folder, *(folder / name for name in INNER_FOLDERS)]
    paths = (parent / name for parent in inner for name in NAMES_FILES)
    return next((path for path in paths if path.is_file()), None)


def _read_yaml(path: pathlib.Path) -> Layout:
    """Read a data.yaml."""
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: is not YAML ({reason}); correct it.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: has no fields; write names, and train and val.")
    try:
        names = _parse_names(content.get("names"), content.get("nc"))
        values = {}
        for key, value in content.items():
            if key in SPLIT_OF and value:
                values[SPLIT_OF[key]] = _parse_paths(key, value)
        shape = content.get("kpt_shape") or [0]
        if not isinstance(shape, list):
            raise FieldError(f"kpt_shape={show(shape)}, not a list of two numbers")
        num_values = math.prod(parse_integer("kpt_shape", number) for number in shape)
        root = parse_name("path", content.get("path") or ".")
    except FieldError as error:
        raise ValueError(f"{path}: has {error}; correct it.") from None
    folder = pathlib.Path(os.path.abspath(path.parent))
    root = root.replace("\\", "/")
    roots = [folder / root, pathlib.Path(os.path.abspath(root)), folder]
    folders = tuple(dict.fromkeys(root for root in roots if root.is_dir()))
    return Layout(path, folders, names, values or _find_splits(folder), num_values)


def _parse_names(names: Any, count: Any) -> dict[int, str]:
    """Return the names of the classes by their indices, from `names` and `nc` of a data.yaml."""
    if names is None and count is not None:
        names = [f"class_{index}" for index in range(parse_integer("nc", count))]
    if not isinstance(names, list | dict):
        raise FieldError(f"names={show(names)}, which is no list of names")
    entries = names.items() if isinstance(names, dict) else enumerate(names)
    parsed = {
        parse_integer("names", key): parse_name(f"names[{key}]", name) for key, name in entries
    }
    if len(parsed) < len(names) or min(parsed, default=0) < 0:
        raise FieldError(f"names={show(names)}, of which the indices are not unique and from 0")
    if count is not None and parse_integer("nc", count) != len(parsed):
        raise FieldError(f"nc={show(count)}, but {len(parsed)} names")
    return parsed


def _parse_paths(key: str, value: Any) -> list[str]:
    """Return the folders or lists of images of a split."""
    values = value if isinstance(value, list) else [value]
    return [parse_name(key, value) for value in values]


def _read_darknet(path: pathlib.Path) -> Layout:
    """Read an obj.data, with lines `key = value`."""
    folder = pathlib.Path(os.path.abspath(path.parent))
    fields = dict(
        [part.strip() for part in line.split("=", 1)] for line in read_lines(path) if "=" in line
    )
    layout = Layout(path, (folder,), {}, {})
    location = locate(layout.folders, fields.get("names", ""))
    if "names" not in fields or location is None:
        raise ValueError(
            f"{path}: has names={show(fields.get('names', ''))}, which is no file; write the path "
            "of the file of class names."
        )
    values = {SPLIT_OF[key]: [value] for key, value in fields.items() if key in SPLIT_OF and value}
    return layout._replace(
        names=dict(enumerate(_read_names(location))), splits=values or _find_splits(folder)
    )


def _read_names(path: pathlib.Path) -> list[str]:
    """Return the names of the classes, one a line."""
    names = read_lines(path)
    if not names or not all(names):
        line = names.index("") + 1 if names else 1
        raise ValueError(f"{path}: line {line} is empty; write the name of class {line - 1}.")
    return names


def read_lines(path: pathlib.Path) -> list[str]:
    """Return the stripped lines of a file, without empty ones at its end.

    Args:
        path: The file.

    Raises:
        ValueError: If it is not text in UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is not text in UTF-8 ({error.reason}); save it in UTF-8."
        ) from None
    return [line.strip() for line in text.rstrip().splitlines()]


def _find_splits(folder: pathlib.Path) -> dict[str, list[str]]:
    """Return the splits of a dataset without a description, by the names of its folders."""
    values: dict[str, list[str]] = {}
    for name, split in SPLIT_OF.items():
        candidates = (folder / "images" / name, folder / name / "images", folder / name)
        for path in (*candidates, folder / f"{name}.txt"):
            if path.exists():
                values.setdefault(split, [str(path)])
                break
    images = folder / "images"
    return values or {"": [str(images if images.is_dir() else folder)]}


def find_start(folders: Sequence[pathlib.Path], path: str) -> tuple[pathlib.Path, int] | None:
    """Return the folder that a path is relative to, and how many of its parts are left out.

    Paths are relative to several folders, and datasets move: of `/content/fruit/train/images`, the
    end `train/images` is the same elsewhere. Roboflow writes `../train/images` for the folder next
    to its file. The end `images` is not searched, as it may be that of another split.

    Args:
        folders: The folders in which the path is searched.
        path: The path.

    Returns:
        A folder of `folders` and a number of parts, or None if there is no such file or folder.
    """
    parts = split_path(path)
    num_up = next((k for k, part in enumerate(parts) if part != ".."), 0)
    for num_skipped in (num_up, 0, *range(1, len(parts))):
        rest = parts[num_skipped:]
        if num_skipped > num_up and rest == ("images",):
            continue
        for folder in folders:
            if folder.joinpath(*rest).exists():
                return folder, num_skipped
    return None


def locate(folders: Sequence[pathlib.Path], path: str) -> pathlib.Path | None:
    """Return the file or folder that `find_start` finds."""
    start = find_start(folders, path)
    return start and start[0].joinpath(*split_path(path)[start[1] :])


def split_path(path: str) -> tuple[str, ...]:
    """Return the parts of a path of any operating system."""
    return pathlib.PurePosixPath(path.replace("\\", "/")).parts
