"""The images with the most errors: what is wrong in each, and drawings of it for the page."""

import base64
import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from retinanet_jax.analysis.errors import MISSED
from retinanet_jax.analysis.evaluated import (
    ERRORS,
    IGNORED,
    NONE,
    DetectionColumns,
    Evaluated,
    ObjectColumns,
    missed_by,
)
from retinanet_jax.analysis.thresholds import lowest_score
from retinanet_jax.data.sources.base import Source
from retinanet_jax.inference.drawings import to_jpeg
from retinanet_jax.utils.progress import make_progress, one_line, shorten
from retinanet_jax.visualize import draw_in_colors, score_label

CORRECT, CROWD = "correct", "crowd region"
# Colors that people with any color vision distinguish (https://doi.org/10.1038/nmeth.1618).
COLORS = {
    CORRECT: (0, 158, 115),
    "class": (230, 159, 0),
    "localization": (86, 180, 233),
    "both": (204, 121, 167),
    "duplicate": (240, 228, 66),
    "background": (213, 94, 0),
    MISSED: (0, 114, 178),
    "ignored": (150, 150, 150),
    CROWD: (150, 150, 150),
}
TYPES = (*(name for name in ERRORS if name not in ("none", "ignored")), MISSED)
NUM_WORST = 12  # images with the most errors of all types
NUM_OF_TYPE = 2  # further images for each type of error
SIDE = 480  # pixels of the longer side of a drawing
QUALITY = 78  # of the JPEG files
MAX_MESSAGE = 300  # characters of the message about an unreadable image


class Judged(NamedTuple):
    """A dataset and its detections from a score on.

    Attributes:
        source: The dataset.
        detections: All detections.
        objects: All objects.
        counted: Whether the score of each detection is high enough.
        missed: Whether no such detection detects an object.
    """

    source: Source
    detections: DetectionColumns
    objects: ObjectColumns
    counted: Bool[np.ndarray, " n"]
    missed: Bool[np.ndarray, " m"]


def worst_images(evaluated: Evaluated, threshold: float | None) -> list[dict[str, Any]]:
    """Return the images with the most errors, the worst first, as in analysis.json.

    Errors are false detections and missed objects. Detections below the threshold do not count: an
    object is missed if only they detect it. For each type of error, the images with most errors of
    this type are among the images. Those that cannot be read have no drawings; a line is printed.

    Args:
        evaluated: The dataset and its detections.
        threshold: The lowest score of a detection that counts; None for all detections.
    """
    judged = judge(evaluated, threshold)
    counts = count_errors(judged)
    chosen = choose_images(counts)
    progress = make_progress("drawing the worst images", len(chosen))
    entries = []
    for index in chosen:
        entries.append(_describe(judged, index, counts[index]) | _drawings(judged, index))
        progress(len(entries))
    unreadable = [entry["unreadable"] for entry in entries if entry["unreadable"]]
    if unreadable:
        print(
            f"{len(unreadable)} of the {len(entries)} worst images cannot be read and have no "
            f"drawings; the first: {unreadable[0]}",
            flush=True,
        )
    return entries


def judge(evaluated: Evaluated, threshold: float | None) -> Judged:
    """Return which detections have a score of at least a threshold, and what they miss."""
    counted = evaluated.detections.score >= lowest_score(threshold)
    missed = missed_by(evaluated, counted)
    return Judged(evaluated.source, evaluated.detections, evaluated.objects, counted, missed)


def count_errors(judged: Judged) -> Int[np.ndarray, "N T"]:
    """Return the number of errors of each image and of each of `TYPES`."""
    detections, num_images = judged.detections, len(judged.source)
    masks = [judged.counted & (detections.error == ERRORS.index(name)) for name in TYPES[:-1]]
    columns = [np.bincount(detections.image[mask], minlength=num_images) for mask in masks]
    columns.append(np.bincount(judged.objects.image[judged.missed], minlength=num_images))
    return np.stack(columns, axis=1)


def choose_images(counts: Int[np.ndarray, "N T"]) -> list[int]:
    """Return the indices of the images to show, those with the most errors first.

    Args:
        counts: The number of errors of each image and of each of `TYPES`.
    """
    totals = counts.sum(axis=1)
    chosen = np.argsort(-totals, stable=True)[:NUM_WORST].tolist()
    for column in counts.T:
        of_type = [i for i in np.argsort(-column, stable=True).tolist() if i not in chosen]
        chosen += [i for i in of_type[:NUM_OF_TYPE] if column[i]]
    return sorted((i for i in chosen if totals[i]), key=lambda i: (-totals[i], i))


def _describe(judged: Judged, index: int, errors: Int[np.ndarray, " T"]) -> dict[str, Any]:
    """Return what analysis.json has about an image, except its drawings."""
    source, detections = judged.source, judged.detections
    is_correct = judged.counted & (detections.image == index) & (detections.error == NONE)
    num_correct = int(is_correct.sum())
    num_missed, num_false = int(errors[-1]), int(errors[:-1].sum())
    height, width = source.sizes[index].tolist()
    by_category = _category_errors(judged, index)
    return {
        "image_id": source.image_ids[index],
        "file_name": source.file_name(index),
        "width": width,
        "height": height,
        "missed": num_missed,
        "false": num_false,
        "correct": num_correct,
        "F1": 2 * num_correct / (2 * num_correct + num_missed + num_false),
        "errors": dict(zip(TYPES, errors.tolist(), strict=True)),
        "categories": list(by_category),
        "category_errors": by_category,
    }


def _category_errors(judged: Judged, index: int) -> dict[str, list[str]]:
    """Return the types of error of each category in an image, and "correct".

    An error of the class belongs to two categories, that of the detection and that of the object.
    """
    detections, objects = judged.detections, judged.objects
    names = [category.name for category in judged.source.categories]
    types = collections.defaultdict(set)
    of_image = judged.counted & (detections.image == index) & (detections.error != IGNORED)
    for k in np.flatnonzero(of_image).tolist():
        error = _type_of(detections.error[k])
        types[names[detections.class_index[k]]].add(error)
        if error in ("class", "both"):
            types[names[objects.class_index[detections.nearest[k]]]].add(error)
    for k in np.flatnonzero((objects.image == index) & judged.missed).tolist():
        types[names[objects.class_index[k]]].add(MISSED)
    return {name: sorted(types[name], key=[CORRECT, *TYPES].index) for name in sorted(types)}


def _type_of(error: Any) -> str:
    """Return the type of a detection, as in `COLORS`, given its index in `ERRORS`."""
    return CORRECT if error == NONE else ERRORS[error]


def _drawings(judged: Judged, index: int) -> dict[str, str | None]:
    """Return drawings of the objects and the detections in an image, or why there are none."""
    source, detections, objects = judged.source, judged.detections, judged.objects
    try:
        image = source.image(index)
    except (OSError, ValueError) as error:
        message = shorten(one_line(error), MAX_MESSAGE)
        return {"ground_truth": None, "detections": None, "unreadable": message}
    height, width = source.sizes[index].tolist()
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.asarray(Image.fromarray(image).resize(size))
    names = [category.name for category in source.categories]
    # Errors first: the first boxes are drawn over the others.
    truth = np.flatnonzero(objects.image == index)
    truth = truth[np.argsort(~judged.missed[truth], stable=True)]
    detected = np.flatnonzero((detections.image == index) & judged.counted)
    detected = detected[np.argsort(detections.error[detected] == NONE, stable=True)]
    truth_types = [
        CROWD if is_crowd else MISSED if missed else CORRECT
        for is_crowd, missed in zip(objects.is_crowd[truth], judged.missed[truth], strict=True)
    ]
    labels = [
        score_label(names[k], score)
        for k, score in zip(
            detections.class_index[detected], detections.score[detected].tolist(), strict=True
        )
    ]

    def drawing(boxes: Any, labels: Sequence[str], types: Iterable[str]) -> str:
        colors = [COLORS[name] for name in types]
        return _data_uri(draw_in_colors(pixels, boxes * scale, labels, colors))

    truth_labels = [names[k] for k in objects.class_index[truth]]
    detected_types = map(_type_of, detections.error[detected])
    return {
        "ground_truth": drawing(objects.box[truth], truth_labels, truth_types),
        "detections": drawing(detections.box[detected], labels, detected_types),
        "unreadable": None,
    }


def _data_uri(image: Image.Image) -> str:
    """Return a JPEG file of an image as a URI that contains it."""
    return f"data:image/jpeg;base64,{base64.b64encode(to_jpeg(image, QUALITY)).decode()}"
