"""The layouts in which tools write datasets: a file of boxes, or a file or folder of each split."""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.data.sources.image_lookup import is_hidden

TRAIN_NAMES = ("train", "training", "trainval")
# The names of the splits that are evaluated, in the order of preference.
EVAL_NAMES = ("val", "valid", "validation", "test", "testing", "eval", "minival")
IMAGE_FOLDERS = ("images", "img", "imgs", "jpegimages")
MAX_SHOWN = 5  # files in an error message

# The fields of config.data.train or config.data.eval that a dataset sets.
Fields = dict[str, str]


class DetectedDataset(NamedTuple):
    """A dataset of a detected format.

    Attributes:
        description: The format and the files, for people.
        train: Values of the fields of config.data.train.
        evaluation: Those of config.data.eval; None if there is no evaluation data.
    """

    description: str
    train: Fields
    evaluation: Fields | None


def make_fields(source: str, annotations: pathlib.Path | str = "", **others: object) -> Fields:
    """Return config fields, without empty ones.

    Args:
        source: As in config.data.train.
        annotations: As in config.data.train.
        **others: Further fields.
    """
    values = {"source": source, "annotations": annotations, **others}
    return {name: str(value) for name, value in values.items() if value}


def choose_splits(name: str, parts: dict[str, Fields]) -> DetectedDataset | None:
    """Return a dataset for training and, if there is such a split, evaluation.

    Args:
        name: The format's name, for people.
        parts: The fields of each split by its name; "" is the name of data without splits. If there
            are none, None is returned.
    """
    train = next((parts[split] for split in TRAIN_NAMES if split in parts), None)
    evaluation = next((parts[split] for split in EVAL_NAMES if split in parts), None)
    if train is None:
        train, evaluation = (parts[""], evaluation) if "" in parts else (evaluation, None)
    if train is None:
        return None
    used = [part for part in (train, evaluation) if part is not None]
    locations = dict.fromkeys(part.get("annotations") or part["images"] for part in used)
    splits = [part["split"] for part in used if "split" in part]
    ending = f" (splits {' and '.join(splits)})" if splits else ""
    return DetectedDataset(f"{name}: {' and '.join(locations)}{ending}", train, evaluation)


def find_splits(
    folder: pathlib.Path,
    find: Callable[[pathlib.Path], Sequence[pathlib.Path]],
    fields_of: Callable[[pathlib.Path], Fields],
) -> dict[str, Fields]:
    """Return the fields of each split: of a file, of files named after splits, or of folders.

    Args:
        folder: The folder.
        find: Returns the files or folders of boxes directly in a folder.
        fields_of: Returns the fields of one of these.

    Raises:
        ValueError: If there are several files, of which the names do not tell the split.
    """
    found = find(folder)
    if len(found) == 1:
        return {"": fields_of(found[0])}
    if found:
        return _by_name(found, fields_of)
    parts = {}
    for inner in list_folders(folder):
        found = find(inner)
        if len(found) == 1:
            parts[inner.name.lower()] = fields_of(found[0])
    is_split = {*parts} & {*TRAIN_NAMES, *EVAL_NAMES}
    return parts if is_split or len(parts) != 1 else dict.fromkeys([""], *parts.values())


def _by_name(
    files: Sequence[pathlib.Path], fields_of: Callable[[pathlib.Path], Fields]
) -> dict[str, Fields]:
    """Return the fields of each file by the split that its name contains."""
    parts = {}
    for file in files:
        words = re.findall(r"[a-z]+", file.stem.lower())
        names = [name for name in (*TRAIN_NAMES, *EVAL_NAMES) if name in words]
        if len(names) == 1 and names[0] not in parts:
            parts[names[0]] = fields_of(file)
    if not parts:
        listed = ", ".join(file.name for file in files[:MAX_SHOWN])
        raise ValueError(
            f"--data={files[0].parent}: contains {len(files)} files of boxes ({listed}"
            f"{', ...' if len(files) > MAX_SHOWN else ''}), and no name has the word train; give "
            "the file that is meant."
        )
    return parts


def find_image_folder(file: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Return the folder that contains most of the images that a file of boxes names.

    Args:
        file: The file of boxes.
        names: The names of some images in it.
    """
    candidates = list(dict.fromkeys(_candidate_folders(file)))
    best = max(candidates, key=lambda folder: sum((folder / name).is_file() for name in names))
    if any((best / name).is_file() for name in names):
        return best
    # The lookup of images also finds names in another letter case or from another system.
    return next(filter(_has_images, [file.parent, *list_folders(file.parent)]), file.parent)


def _candidate_folders(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the folders in which the images of a file of boxes may be, the most probable first."""
    words = re.findall(r"[a-z]+\d*", file.stem.lower())
    for parent in (file.parent, file.parent.parent):
        inner = list_folders(parent)
        yield parent / file.stem
        yield from (folder for folder in inner if folder.name.lower() in words)
        yield from (parent, *inner)
        for folder in inner:
            if folder.name.lower() in IMAGE_FOLDERS:
                yield from list_folders(folder)


def _has_images(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(has_image_suffix(path.name) for path in folder.iterdir())


def list_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders in a folder, sorted by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def list_files(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    """Return the files in a folder with one of the suffixes, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not is_hidden(path.name) and path.is_file()
    )
