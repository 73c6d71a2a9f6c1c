"""Formats that are recognized, so that the error names them, but not read."""

import json
import pathlib
import re
from collections.abc import Iterator

from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.data.sources.csv_tables import find_columns, first_lines
from retinanet_jax.data.sources.fields import FieldError
from retinanet_jax.data.sources.image_lookup import is_hidden
from retinanet_jax.data.sources.layouts import list_folders

MAX_LISTED = 20  # files and folders of a folder that are looked at
MAX_DEPTH = 3  # folders inside each other
MAX_CONTENT = 1 << 16  # bytes at the beginning of a file that are looked at
COCO_LISTS = {"images", "annotations", "categories"}
TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv")
# By the path of a file or folder, in lower case; what it is, and what to do.
BY_PATH = (
    (r"\.(zip|tar|tgz|tar\.\w+|7z|rar)$", "an archive", "unpack it, and give the folder"),
    (r"\.(parquet|arrow)$", "Parquet or Arrow", "write images and a JSON in COCO's format"),
    (
        r"\.(tfrecords?|tfrec|record)(-\d+-of-\d+)?$",
        "TFRecord without TFDS's dataset_info.json",
        "prepare it with TFDS, or export it as COCO",
    ),
    (r"(^|/)metadata\.(csv|jsonl)$", "Hugging Face's image folder", "convert it to COCO's format"),
    (r"(^|/)label_2/$", "KITTI's format", "convert it to COCO's format"),
    (r"(^|/)labeltxt/$", "DOTA's format", "convert it to COCO's format"),
    (r"(^|/)gt/gt\.txt$", "MOTChallenge's format", "convert it to COCO's format"),
    (r"_classes\.csv$", "classes of whole images, without boxes", "export it as object detection"),
    (r"\.manifest$", "SageMaker's manifest", "convert it to COCO's format"),
    (
        r"(^|/)(masks?|segmentationclass|segmentationobject)/$",
        "masks of segmentation",
        "write the box of each object as COCO's JSON",
    ),
)
# By the beginning of a text file; the advice is, unless another is given, to export COCO.
EXPORT_COCO = "export annotations as COCO"
BY_CONTENT = (
    (
        rb'"(rectanglelabels|polygonlabels|brushlabels|from_name)"|^annotation_id,',
        "Label Studio's JSON or CSV",
        EXPORT_COCO,
    ),
    (rb'"shape_attributes"|"_via_|region_shape_attributes', "VIA's own format", EXPORT_COCO),
    (rb'"boundingBox"\s*:\s*\{', "VoTT's JSON", "export CSV or Pascal VOC"),
    (
        rb'"classTitle"|"geometryType"|"classes"\s*:\s*\[\s*\{[^}]*"shape"',
        "Supervisely's format",
        EXPORT_COCO,
    ),
    (rb'"coordinates"\s*:\s*\{', "CreateML's JSON", EXPORT_COCO),
    (rb'"box2d"', "the JSON of BDD100K", "convert it to COCO's format"),
    (rb'"categories"\s*:\s*\{\s*"label"', "Datumaro's JSON", EXPORT_COCO),
    (
        rb'"shapes"\s*:\s*\[.*"tracks"\s*:',
        "CVAT's backup of a task",
        "export the dataset as COCO or CVAT for images",
    ),
    (rb'"data_row"', "Labelbox's NDJSON", "convert it to COCO's format"),
    (
        rb'^\s*\[\s*\{[^{}]*"score"',
        "detections in COCO's results format",
        "give the file of annotations",
    ),
)


def recognize_unsupported(path: pathlib.Path) -> str:
    """Return what a file or folder contains, and what to do; "" if it is not recognized.

    Args:
        path: The file or folder.
    """
    candidates = list(_visible(path, MAX_DEPTH)) if path.is_dir() else [path]
    for candidate in candidates:
        relative = candidate.relative_to(path).as_posix() if candidate != path else path.name
        key = relative.lower() + ("/" if candidate.is_dir() else "")
        for pattern, name, advice in BY_PATH:
            if re.search(pattern, key):
                return f"{relative} ({name}) cannot be read; {advice}."
    for candidate in candidates:
        if candidate.suffix.lower() in TEXT_SUFFIXES and candidate.is_file():
            problem = _recognize_content(candidate)
            if problem:
                return f"{candidate.name} {problem}."
    return ""


def _visible(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    """Yield some of the folders and files in a folder, without images."""
    names = (path for path in sorted(folder.iterdir()) if not is_hidden(path.name))
    files = [path for path in names if path.is_file() and not has_image_suffix(path.name)]
    yield from files[:MAX_LISTED]
    for inner in list_folders(folder)[:MAX_LISTED]:
        yield inner
        if depth:
            yield from _visible(inner, depth - 1)


def _recognize_content(file: pathlib.Path) -> str:
    """Return what a text file contains, and what to do; "" if it is not recognized."""
    with file.open("rb") as opened:
        content = opened.read(MAX_CONTENT)
    for pattern, name, advice in BY_CONTENT:
        if re.search(pattern, content, re.DOTALL):
            return f"({name}) cannot be read; {advice}"
    if file.suffix.lower() == ".csv":
        return _recognize_header(file)
    if file.suffix.lower() != ".json":
        return ""
    try:
        parsed = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error}); write or export it again"
    if not isinstance(parsed, dict):
        return ""
    if all(isinstance(parsed.get(name), list) for name in COCO_LISTS):
        return "is not in UTF-8; save it in UTF-8"
    if {"images", "annotations"} & parsed.keys():
        return "has not all of COCO's lists images, annotations and categories; export it again"
    return ""


def _recognize_header(file: pathlib.Path) -> str:
    """Return why the header of a CSV is not known; "" if it is known, or there is none."""
    try:
        find_columns(next(iter(first_lines(file, 1)), []))
    except FieldError as error:
        return f"has {error}"
    return ""
