"""The layouts in which tools write datasets: a file of boxes, or a file or folder of each split."""

import contextlib
import os
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
# Folders that contain only annotations; the images are next to them.
ANNOTATION_FOLDERS = ("annotations", "annotation", "ann", "anns", "labels", "label")
ANNOTATION_FOLDERS += ("xml", "xmls", "json", "jsons", "csv")
MAX_LISTED = 5  # files in an error message

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
    folders = dict.fromkeys(filter(None, map(_other_image_folder, used)))
    ending = f" (split {' and '.join(splits)})" if splits else ""
    ending += f" with the images in {' and '.join(folders)}" if folders else ""
    return DetectedDataset(f"{name}: {' and '.join(locations)}{ending}", train, evaluation)


def _other_image_folder(part: Fields) -> str:
    """Return the folder of images unless the annotations are there, too."""
    images, annotations = part.get("images", ""), part.get("annotations", "")
    return "" if not annotations or images == os.path.dirname(annotations) else images


def split_of(name: str) -> str:
    """Return the split that the name of a file or folder contains as a word; "" if none or two."""
    words = {*re.findall(r"[a-z]+", name.lower())} & {*TRAIN_NAMES, *EVAL_NAMES}
    return words.pop() if len(words) == 1 else ""


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
        ValueError: If there are several files, and no split in their names.
    """
    paths = find(folder)
    if not paths:
        inner = {path: find(path) for path in list_folders(folder) if split_of(path.name)}
        parts = _by_split(folder, [path for path, files in inner.items() if files])
        return {split: fields_of(_only(path, inner[path])) for split, path in parts.items()}
    parts = _by_split(folder, paths) if len(paths) > 1 else {}
    others = [path for path in paths if path not in parts.values()]
    if len(others) == 1 and all(path.stem.startswith(others[0].stem) for path in parts.values()):
        parts["train"] = others[0]  # x.json next to x_eval.json
    if not {*parts} & {*TRAIN_NAMES}:
        parts = {"": _only(folder, paths)}
    return {split: fields_of(path) for split, path in parts.items()}


def _only(folder: pathlib.Path, paths: Sequence[pathlib.Path]) -> pathlib.Path:
    """Return the only file of boxes in a folder."""
    if len(paths) > 1:
        listed = ", ".join(file.name for file in paths[:MAX_LISTED])
        raise ValueError(
            f"--data={folder}: contains {len(paths)} files of boxes ({listed}"
            f"{', ...' if len(paths) > MAX_LISTED else ''}), and no name has the word train; give "
            "the file that is meant."
        )
    return paths[0]


def _by_split(folder: pathlib.Path, paths: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Return the file or folder of each split, by the split that its name contains."""
    parts: dict[str, pathlib.Path] = {}
    for path in paths:
        split = split_of(path.stem)
        if split in parts:
            raise ValueError(
                f"--data={folder}: {parts[split].name} and {path.name} both have the word {split}; "
                "give the file or folder that is meant."
            )
        if split:
            parts[split] = path
    return parts


def find_image_folder(file: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Return the folder that contains most of the images that a file of boxes names.

    Args:
        file: The file of boxes.
        names: The names of some images in it.
    """
    candidates = list(dict.fromkeys(_candidate_folders(file)))
    # The lookup of images also finds names from another system, by their last part, and names
    # without a suffix.
    last_parts = [re.split(r"[/\\]", name)[-1] for name in names]
    for candidate_names in (names, last_parts):
        counts = [
            sum(os.path.isfile(folder / name) for name in candidate_names) for folder in candidates
        ]
        if any(counts):
            return candidates[counts.index(max(counts))]
    stems = {os.path.splitext(name)[0] if has_image_suffix(name) else name for name in last_parts}
    counts = [len(stems & image_stems(folder)) for folder in candidates]
    if any(counts):
        return candidates[counts.index(max(counts))]
    return next(filter(image_stems, candidates), file.parent)


def _candidate_folders(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the folders in which the images of a file of boxes may be, the most probable first.

    A folder outside the dataset, which may be another dataset, is searched only if it is named
    after the file, or images.
    """
    roots = [file.parent]
    while _is_annotation_folder(roots[-1]):
        roots.append(roots[-1].parent)
    for root in roots:
        yield root / file.stem
        yield from _named_folders(root, file.stem)
        yield from (root, *list_folders(root))
    with contextlib.suppress(PermissionError):  # outside the dataset
        yield from _named_folders(roots[-1].parent, file.stem)


def _named_folders(root: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Yield the folders named after a word or the split of a name, or such as images."""
    words = {*re.findall(r"[a-z]+\d*", name.lower())}

    def is_of_name(folder: pathlib.Path) -> bool:
        is_of_split = bool(split_of(name)) and split_of(folder.name) == split_of(name)
        return is_of_split or folder.name.lower() in words

    for folder in sorted(list_folders(root), key=is_of_name, reverse=True):
        if is_of_name(folder):
            yield folder
        if folder.name.lower() in IMAGE_FOLDERS:
            yield from sorted(list_folders(folder), key=is_of_name, reverse=True)
            yield folder


def _is_annotation_folder(folder: pathlib.Path) -> bool:
    """Return whether a folder has a name such as annotations, or is that of a split in such one."""
    outer = folder.parent if split_of(folder.name) else folder
    names = (re.findall(r"[a-z]+", path.name.lower()) for path in (folder, outer))
    return any(words and words[0] in ANNOTATION_FOLDERS for words in names)


def image_stems(folder: pathlib.Path) -> set[str]:
    """Return the names of the images in a folder, without their suffixes.

    Args:
        folder: The folder, which need not exist or be readable.
    """
    try:
        names = os.listdir(folder)
    except OSError:  # no folder, or one of somebody else
        return set()
    return {os.path.splitext(n)[0] for n in names if has_image_suffix(n) and not is_hidden(n)}


def list_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders in a folder, sorted by name; none if there is no such folder."""
    names = sorted(entry.name for entry in _visible_entries(folder) if entry.is_dir())
    return [folder / name for name in names]


def list_files(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    """Return the files in a folder with one of the suffixes, sorted by name."""
    entries = _visible_entries(folder)
    entries = [entry for entry in entries if entry.name.lower().endswith(suffixes)]
    return [folder / name for name in sorted(entry.name for entry in entries if entry.is_file())]


def _visible_entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, which unlike paths know their type; [] if there is none."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not is_hidden(entry.name)]
