"""Detection of a dataset's format from its files, for the flag `--data`."""

import os
import pathlib

from retinanet_jax.data.sources.format_detectors import FILE_DETECTORS, FOLDER_DETECTORS
from retinanet_jax.data.sources.image_lookup import is_hidden
from retinanet_jax.data.sources.layouts import MAX_LISTED, DetectedDataset, list_folders
from retinanet_jax.data.sources.unsupported import recognize_unsupported
from retinanet_jax.utils.progress import join_first

LOOKED_FOR = (
    "COCO (a .json with images, annotations and categories), "
    "YOLO (data.yaml, classes.txt, or folders images and labels), "
    "Pascal VOC (.xml files, or a devkit with Annotations and ImageSets), "
    "CSV (a .csv with a line for each box), "
    "LabelMe (a .json with shapes for each image), "
    "CVAT for images (annotations.xml), "
    "TFDS (dataset_info.json), packed (packed.json)"
)
MAX_FOLDERS = 20  # that are searched in a folder; more are those of single videos or classes
MAX_DEPTH = 3  # folders inside each other, the outer ones without annotations


def detect_dataset(path: pathlib.Path) -> DetectedDataset:
    """Return the format of a dataset, and the config fields with which it is opened.

    Args:
        path: The dataset's folder, or its file of annotations.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If no format is detected; the message lists what was looked for.
    """
    if not path.exists():
        raise FileNotFoundError(f"--data={path}: there is no such file or folder; check the path.")
    path = pathlib.Path(os.path.abspath(path))
    detected = _detect(path, MAX_DEPTH)
    if detected is not None:
        return detected
    unsupported = recognize_unsupported(path)
    if unsupported:
        raise ValueError(f"--data={path}: {unsupported}")
    raise ValueError(
        f"--data={path}: {_describe(path)} in no known format; looked for {LOOKED_FOR}. Give the "
        "folder or the file that contains the boxes."
    )


def _detect(path: pathlib.Path, depth: int) -> DetectedDataset | None:
    """Detect a dataset in a file, in a folder or, as archives are unpacked, in a folder in it."""
    for detect in FOLDER_DETECTORS if path.is_dir() else FILE_DETECTORS:
        detected = detect(path)
        if detected is not None:
            return detected
    folders = list_folders(path) if depth else []
    inner = [_detect(folder, depth - 1) for folder in folders[:MAX_FOLDERS]]
    datasets = [detected for detected in inner if detected is not None]
    if len(datasets) > 1:
        listed = "; ".join(detected.description for detected in datasets[:MAX_LISTED])
        raise ValueError(
            f"--data={path}: contains {len(datasets)} datasets ({listed}); give one of them, or "
            "list them in the fields of config.data.train."
        )
    return datasets[0] if datasets else None


def _describe(path: pathlib.Path) -> str:
    """Return what a path is, for the error message."""
    if path.is_file():
        return f"a file {path.suffix or 'without a suffix'}"
    names = sorted(entry.name for entry in path.iterdir() if not is_hidden(entry.name))
    if not names:
        return "an empty folder"
    return f"a folder of {join_first(names, MAX_LISTED)},"
