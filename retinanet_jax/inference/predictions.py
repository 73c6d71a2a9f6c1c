"""Detection in images; the detections are written as JSON, as CSV and as drawings."""

import csv
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.image_files import ImageLike
from retinanet_jax.data.sources.base import Category, DatasetImage, Source
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.crops import FOLDER as CROPS
from retinanet_jax.inference.crops import write_crops
from retinanet_jax.inference.detecting import ImageDetector
from retinanet_jax.inference.drawings import write_drawings
from retinanet_jax.inference.labels import LabelWriter
from retinanet_jax.utils.files import to_json
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import format_count, join_first, make_progress, shorten
from retinanet_jax.utils.remote import with_remote_names

RESULTS, TABLE = "detections.json", "detections.csv"
# The columns of the table; "name" is the category's name, the box is in pixels of the image.
COLUMNS = ("file_name", "name", "category_id", "score", "x0", "y0", "x1", "y1")


class InputImage(NamedTuple):
    """An image to detect objects in, and what the results call it.

    Attributes:
        image: The image, as `Detector.batch_with_errors` accepts it.
        image_id: Its id in the results.
        name: Its file_name in the results.
        path: A path after which its drawing is named; a file there is not overwritten.
        size: The height and width in pixels to which its boxes refer; None for those of the image.
    """

    image: ImageLike | DatasetImage
    image_id: int
    name: str
    path: pathlib.Path
    size: tuple[int, int] | None = None


def input_files(paths: Sequence[pathlib.Path]) -> list[InputImage]:
    """Return image files as input, with ids from 1 in their order."""
    return [
        InputImage(path, image_id, with_remote_names(str(path)), path)
        for image_id, path in enumerate(paths, 1)
    ]


def input_dataset(source: Source) -> list[InputImage]:
    """Return the images of a dataset as input, with its ids and names."""
    images = []
    for index, (height, width) in enumerate(source.sizes.tolist()):
        image_id, name = source.image_ids[index], source.file_name(index)
        path = source.path(index) or pathlib.Path(name)
        image = DatasetImage(source, index)
        images.append(InputImage(image, image_id, name, path, (height, width)))
    return images


def with_ids_of(source: Source, trained: Checkpoint) -> Checkpoint:
    """Return a checkpoint with a dataset's ids of the categories of the same names.

    Args:
        source: The dataset.
        trained: The checkpoint; its categories that the dataset lacks keep their ids unless the
            dataset uses them.

    Raises:
        ValueError: If they have no category in common.
    """
    ids = {name: category_id for category_id, name in source.categories}
    if ids.keys().isdisjoint(category.name for category in trained.categories):
        here, there = (
            join_first([shorten(category.name) for category in categories])
            for categories in (source.categories, trained.categories)
        )
        raise ValueError(
            f"{source.name} has none of the detector's categories: the dataset has {here or 'none'}"
            f", {trained.folder} has {there}; give a dataset with the same names."
        )
    taken = set(ids.values())
    unused = itertools.count(1 + max(taken.union(category.id for category in trained.categories)))
    categories = tuple(
        Category(ids[name] if name in ids else next(unused) if own_id in taken else own_id, name)
        for own_id, name in trained.categories
    )
    return trained._replace(categories=categories)


def predict_images(
    detector: ImageDetector,
    images: Sequence[InputImage],
    output: pathlib.Path,
    *,
    batch_size: int = 1,
    draw_threshold: float | None = 0.5,
    table: bool = False,
    formats: Sequence[str] = (),
    save_crops: bool = False,
    label_threshold: float = 0.5,
) -> list[str]:
    """Detect the objects in images, and write detections.json and drawings to a folder.

    detections.json is in COCO's results format, with a file_name for each detection. Only files of
    earlier runs are replaced.

    Args:
        detector: The detector.
        images: The images.
        output: The folder, which is created if it does not exist.
        batch_size: The number of images that the network processes at once.
        draw_threshold: The lowest score of a detection that is drawn; None to draw nothing.
        table: Whether to write detections.csv as well.
        formats: The formats of labels to write as well, names of `formats.FORMATS`.
        save_crops: Whether to write the part of the image that each detection shows as well. Crops
            of earlier runs are removed.
        label_threshold: The lowest score of a detection that becomes a label or a crop.

    Returns:
        An error message for each image that could not be read or used.

    Raises:
        ValueError: If `batch_size` is less than 1, or as in `LabelWriter`.
        OSError: If a file cannot be written, for example because the folder contains a file of the
            same name that no run wrote.
    """
    outcomes = detector.batch_with_errors([item.image for item in images], batch_size)
    folder = OutputFolder(output)
    categories = detector.checkpoint.categories
    labels = LabelWriter(formats, images, categories, folder, label_threshold) if formats else None
    folder.prepare(RESULTS, *[TABLE] * table)
    paths = [item.path for item in images]
    if draw_threshold is not None:
        outcomes = write_drawings(paths, outcomes, folder, draw_threshold)
    if save_crops:
        folder.clear(CROPS)
        outcomes = write_crops(paths, outcomes, categories, folder, label_threshold)
    results, rows, errors = [], [], []
    print_progress = make_progress("predicting", len(images))
    for count, (item, outcome) in enumerate(zip(images, outcomes, strict=True), 1):
        if isinstance(outcome, ValueError):
            errors.append(str(outcome))
        else:
            detections, name = scaled_to(outcome, item.size), item.name
            results += [{**entry, "file_name": name} for entry in detections.to_coco(item.image_id)]
            rows += [(name, d.class_name, d.category_id, d.score, *d.box) for d in detections]
            if labels:
                labels.add(item, detections, item.size or outcome.image.shape[:2])
        if count % batch_size == 0 or count == len(images):
            print_progress(count)
    folder.write(RESULTS, to_json(results))
    if table:
        folder.write(TABLE, to_csv(rows))
    print(f"{summary(results, len(images) - len(errors), draw_threshold)}: {output / RESULTS}")
    if labels:
        print(labels.write())
    return errors


def scaled_to(detections: Detections, size: tuple[int, int] | None) -> Detections:
    """Return detections with boxes in pixels of another size of their image.

    Args:
        detections: The detections.
        size: That height and width; packed datasets store smaller images than their boxes refer
            to. None for the size of the image.
    """
    height, width = detections.image.shape[:2]
    if size in (None, (height, width)):
        return detections
    scale = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    return dataclasses.replace(detections, boxes=detections.boxes * scale)


def summary(
    results: Sequence[dict[str, Any]], num_images: int, draw_threshold: float | None
) -> str:
    """Return a text with the number of detections, and how many of them are drawn.

    Args:
        results: All detections in COCO's results format.
        num_images: The number of images that could be read.
        draw_threshold: The lowest score of a detection that is drawn; None if nothing is drawn.
    """
    counts = f"{format_count(len(results), 'detection')} in {format_count(num_images, 'image')}"
    if draw_threshold is None:
        return counts
    num_confident = sum(result["score"] >= draw_threshold for result in results)
    return f"{counts} ({num_confident} with a score of {draw_threshold:g} or more are drawn)"


def to_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return a table of COLUMNS as a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    # File names need not be valid UTF-8; they are written as the file system stores them.
    return text.getvalue().encode(errors="surrogateescape")
