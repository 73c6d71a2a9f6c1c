"""Files of detections in COCO's results format, which this or another program has written.

Such a file is a JSON list with an object for each detection: image_id, category_id, bbox (x, y,
width and height in pixels) and score. Its ids are those of a dataset. A file of another dataset, or
with numbers that are no ids, is an error, because its AP would be that of other images.
"""

import collections
import json
import os
import pathlib
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from retinanet_jax import datasets
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.coco import CocoAnnotations
from retinanet_jax.data.sources.conventions import convention_of
from retinanet_jax.evaluation.category_table import category_table
from retinanet_jax.evaluation.coco_metrics import coco_api, coco_metrics
from retinanet_jax.evaluation.records import describe_dataset
from retinanet_jax.utils.files import to_json
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import format_count, join_first, shorten
from retinanet_jax.utils.remote import local_copy

OUTPUT = "evaluation.json"
FIELDS = ("image_id", "category_id", "bbox", "score")
MAX_CATEGORIES = 10  # that a message lists
PREDICT_ADVICE = "`retinanet-jax predict --data=DATASET` writes them"


def evaluate_file(
    path: pathlib.Path, config: ConfigDict, workdir: pathlib.Path, output: pathlib.Path | None
) -> None:
    """Compute the AP of a file of detections, print its tables, and write OUTPUT.

    Args:
        path: The file, in COCO's results format.
        config: The config that names the dataset, as that of an evaluation does, and the evaluator.
        workdir: The folder for generated datasets.
        output: The folder to write to; None to write nothing.

    Raises:
        ValueError: As in `read_results`, or if the evaluator is not installed.
        OSError: If a file cannot be read, or OUTPUT cannot be written.
    """
    coco_api(config.evaluator)  # raises an error early if it is not installed
    if output:
        OutputFolder(output).prepare(OUTPUT)
    source = open_annotations(config, workdir)
    results = read_results(path, source)
    print(f"{path}: {describe_results(results, source)}")
    print(f"categories of {source.name}: {list_categories(source)}", flush=True)
    counts = collections.Counter(result["image_id"] for result in results)
    most = max(counts.values(), default=0)
    metrics, table = coco_metrics(
        source.ground_truth(), results, config.evaluator, max_detections=most
    )
    print("\n".join(filter(None, [table, category_table(metrics["categories"])])))
    if metrics["AP"] is None:
        metrics["note"] = f"AP is undefined, because {datasets.why_no_object(source)}"
        print(metrics["note"])
    if output:
        content = {**metrics, "detections": str(path), "dataset": describe_dataset(source)}
        OutputFolder(output).write(OUTPUT, to_json(content))
        print(f"written to {output / OUTPUT}")


def open_annotations(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """Open the evaluation data; if its images are missing, only the annotations in COCO's format.

    AP does not require the images.

    Args:
        config: The config that names the dataset.
        workdir: The folder for generated datasets.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file is invalid.
    """
    try:
        return datasets.open_evaluation(config, workdir)
    except FileNotFoundError as error:
        file = pathlib.Path(config.data.eval.annotations)
        if config.data.eval.source != "coco" or not file.is_file():
            raise
        logging.warning("%s AP is computed without the images.", error)
        return CocoAnnotations(file)


def read_results(path: pathlib.Path, source: Source) -> list[dict[str, Any]]:
    """Read the detections of a dataset from a file in COCO's results format.

    Args:
        path: The file, which may be in remote storage.
        source: The dataset.

    Returns:
        A dict of the FIELDS for each detection, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON list of detections with boxes, or if an id is not in the
            dataset. The message names the first such entry.
    """
    entries = _read_list(path)
    for index, entry in enumerate(entries):
        if problem := _problem(entry):
            raise ValueError(f"{_name(path, index)} {problem}.")
    _check_images(path, entries, source)
    _check_categories(path, entries, source)
    results = [{field: entry[field] for field in FIELDS} for entry in entries]
    _check_boxes(path, results, source)
    return results


def describe_results(results: Sequence[dict[str, Any]], source: Source) -> str:
    """Return a text with the numbers of detections, categories and images.

    Args:
        results: The detections.
        source: The dataset.
    """
    images, categories = (len({result[field] for result in results}) for field in FIELDS[:2])
    return (
        f"{format_count(len(results), 'detection')} of {categories} of the "
        f"{len(source.categories)} categories in {images} of the {len(source)} images"
    )


def list_categories(source: Source) -> str:
    """Return the ids and names of a dataset's categories, of which there may be thousands."""
    listed = [f"{category_id} {shorten(name)}" for category_id, name in source.categories]
    return join_first(listed, MAX_CATEGORIES)


def _read_list(path: pathlib.Path) -> list[Any]:
    """Return the entries of a file; ValueError if it is no JSON list."""
    try:
        content = json.loads(local_copy(path).read_bytes())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is no JSON file ({shorten(str(error), 100)}).") from None
    if isinstance(content, list):
        return content
    described = f"a JSON {type(content).__name__}"
    if isinstance(content, dict):
        described = f"a JSON object of {join_first([shorten(key) for key in content]) or 'nothing'}"
    hint = ""
    if isinstance(content, dict) and {"images", "annotations"} & set(content):
        hint = "; it reads as a dataset, which --data names"
    raise ValueError(
        f"{path} is {described}, and not a list of detections as in COCO's results format{hint}."
    )


def _name(path: pathlib.Path, index: int) -> str:
    """Return what messages call an entry of a file."""
    return f"{path}: entry {index} (the first one is 0)"


def _problem(entry: Any) -> str:
    """Return what is wrong with an entry, apart from its ids; empty if nothing is."""
    if not isinstance(entry, dict):
        return f"must be an object with {', '.join(FIELDS)}, and is {_as_json(entry)}"
    for field in FIELDS:
        if field not in entry:
            return _missing(field, entry)
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return f"has bbox={_as_json(box)}, which must be four finite numbers: x, y, width, height"
    if not _is_finite(entry["score"]):
        return f"has score={_as_json(entry['score'])}, which must be a finite number"
    return ""


def _missing(field: str, entry: dict[str, Any]) -> str:
    """Return the problem that an entry lacks a field."""
    if field == "bbox" and "segmentation" in entry:
        return (
            "has a segmentation and no bbox, but AP is that of boxes; add the box of each mask as "
            "x, y, width, height"
        )
    if field == "score":
        return "has no score, by which AP ranks the detections; add the confidence of each"
    given = join_first([shorten(key) for key in entry], 8) or "no field"
    return f"has no {field}, which COCO's results format requires; it has {given}"


def _is_finite(value: Any) -> bool:
    """Return whether a value of JSON is a number, and not NaN or infinite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _as_json(value: Any) -> str:
    """Return a value of JSON, shortened, for a message."""
    return shorten(json.dumps(value))


def _first_of_each(entries: Sequence[dict[str, Any]], field: str) -> dict[Any, int]:
    """Return the different ids in a field, each with the index of its first entry."""
    first: dict[Any, int] = {}
    for index, entry in enumerate(entries):
        value = entry[field]
        key = value if isinstance(value, int | float | str) else _as_json(value)
        first.setdefault(key, index)
    return first


def _find_unknown(
    path: pathlib.Path,
    entries: Sequence[dict[str, Any]],
    field: str,
    known: Collection[int],
    source: Source,
) -> tuple[list[Any], str]:
    """Return the ids that a dataset lacks, and the beginning of a message about them.

    Args:
        path: The file.
        entries: Its entries.
        field: The field of the ids.
        known: The ids of the dataset.
        source: The dataset.
    """
    first = _first_of_each(entries, field)
    unknown = [value for value in first if value not in known]
    if not unknown:
        return [], ""
    name = field.replace("_", " ")
    return unknown, (
        f"{_name(path, first[unknown[0]])} has {field}={_as_json(unknown[0])}, which is not in "
        f"{source.name} (unknown: {len(unknown)} of the {len(first)} {name}s in the file)"
    )


def _check_images(path: pathlib.Path, entries: Sequence[dict[str, Any]], source: Source) -> None:
    """Raise ValueError if an image is not in the dataset, or has another file name there."""
    index_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
    unknown, message = _find_unknown(path, entries, "image_id", index_of, source)
    if unknown:
        raise ValueError(f"{message}; {_image_hint(entries, unknown, source)}.")
    for index, entry in enumerate(entries):
        if "file_name" in entry:  # `predict` writes it
            expected = source.file_name(index_of[entry["image_id"]])
            _check_file_name(_name(path, index), entry, expected, source.name)


def _check_file_name(name: str, entry: dict[str, Any], expected: str, source_name: str) -> None:
    """Raise ValueError if an entry has the id of an image with another file name.

    Args:
        name: What messages call the entry.
        entry: The entry.
        expected: The file name of the image in the dataset.
        source_name: The name of the dataset.
    """
    given = str(entry["file_name"])
    if os.path.basename(given) != os.path.basename(expected):
        raise ValueError(
            f"{name} is of the image {shorten(given)}, but in {source_name} the image_id "
            f"{entry['image_id']} is {shorten(expected)}; give the dataset's ids: {PREDICT_ADVICE}."
        )


def _image_hint(entries: Sequence[dict[str, Any]], unknown: Sequence[Any], source: Source) -> str:
    """Return what the image ids that a dataset lacks seem to be."""
    name_ids = {
        key: image_id
        for name, image_id in zip(source.file_names, source.image_ids, strict=True)
        for key in (str(image_id), pathlib.PurePath(name).stem, pathlib.PurePath(name).name, name)
    }
    for value in unknown:
        if value in name_ids:
            return (
                "it is text; give the dataset's id, which for "
                f"{shorten(value)} is the number {name_ids[value]}"
            )
    ids = {entry["image_id"] for entry in entries if type(entry["image_id"]) is int}
    if ids and min(ids) >= 0 and max(ids) <= len(source):
        return (
            "the ids look like positions of the images; give the dataset's ids, such as "
            f"{join_first([str(i) for i in source.image_ids[:3]])}: {PREDICT_ADVICE}"
        )
    first = ", ".join(map(str, source.image_ids[:3])) or "none, as it has no image"
    return f"the dataset's ids begin with {first}; give the dataset that was predicted"


def _check_categories(
    path: pathlib.Path, entries: Sequence[dict[str, Any]], source: Source
) -> None:
    """Raise ValueError if a category is not in the dataset; the message lists those that are."""
    known = {category.id for category in source.categories}
    unknown, message = _find_unknown(path, entries, "category_id", known, source)
    if not unknown:
        return
    ids = {entry["category_id"] for entry in entries if type(entry["category_id"]) is int}
    is_class = 0 in ids and 0 not in known and max(ids) < len(known)
    hint = "the ids look like indices of classes from 0; " if is_class else ""
    listed = list_categories(source) or "none"
    raise ValueError(f"{message}; {hint}the dataset's categories are {listed}.")


def _check_boxes(path: pathlib.Path, results: Sequence[dict[str, Any]], source: Source) -> None:
    """Log that the boxes may be in another convention; ValueError if they certainly are."""
    index_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
    images = [index_of[result["image_id"]] for result in results]
    xywh = np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, :1:-1]], axis=1)
    convention = convention_of(boxes, source.sizes[images])
    if convention:
        line = f"{path}: {convention.message}; {convention.advice}."
        if convention.is_certain:
            raise ValueError(line)
        logging.warning("%s", line)
