"""Detection in image files; the detections are written as JSON, as CSV and as drawings."""

import csv
import functools
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.utils.files import write_atomically, write_json
from retinanet_jax.utils.progress import format_count, make_progress
from retinanet_jax.utils.threads import map_ahead

if TYPE_CHECKING:
    from retinanet_jax.detector import Detector

# The columns of detections.csv; "name" is the category's name, the box is in pixels of the image.
COLUMNS = ("file_name", "name", "category_id", "score", "x0", "y0", "x1", "y1")
JPEG_QUALITY = 92


class ImageOutcome(NamedTuple):
    """An image file with its detections or the error of reading it, and the path of its drawing."""

    path: pathlib.Path
    outcome: Detections | ValueError
    drawing_path: pathlib.Path


def predict_files(
    detector: "Detector",
    image_paths: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    batch_size: int = 1,
    draw_threshold: float | None = 0.5,
    table: bool = False,
) -> list[str]:
    """Detect the objects in image files, and write detections.json and drawings to a folder.

    detections.json is in COCO's results format, with image ids from 1 in the order of the paths
    and a file_name for each detection.

    Args:
        detector: The detector.
        image_paths: The image files.
        output: The folder, which is created if it does not exist.
        batch_size: The number of images that the network processes at once.
        draw_threshold: The lowest score of a detection that is drawn; None to draw nothing.
        table: Whether to write detections.csv as well.

    Returns:
        An error message for each image that could not be read or used.

    Raises:
        ValueError: If `batch_size` is less than 1.
        OSError: If a file cannot be written.
    """
    outcomes = detector.batch_with_errors(image_paths, batch_size)
    output.mkdir(parents=True, exist_ok=True)
    images = map(ImageOutcome, image_paths, outcomes, drawing_paths(image_paths, output))
    if draw_threshold is not None:  # in threads, while the device computes the next images
        images = map_ahead(functools.partial(write_drawing, threshold=draw_threshold), images)
    results, rows, errors = [], [], []
    print_progress = make_progress("predicting", len(image_paths))
    for image_id, (path, outcome, _) in enumerate(images, 1):
        if isinstance(outcome, ValueError):
            errors.append(str(outcome))
        else:
            results += [{**result, "file_name": str(path)} for result in outcome.to_coco(image_id)]
            rows += [(path, d.class_name, d.category_id, d.score, *d.box) for d in outcome]
        print_progress(image_id)
    write_json(output / "detections.json", results)
    if table:
        write_csv(output / "detections.csv", rows)
    num_images = len(image_paths) - len(errors)
    print(f"{summary(results, num_images, draw_threshold)}: {output / 'detections.json'}")
    return errors


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


def write_drawing(image: ImageOutcome, threshold: float) -> ImageOutcome:
    """Write the drawing of an image, unless the image could not be read, and return `image`."""
    if isinstance(image.outcome, Detections):
        write_jpeg(image.drawing_path, image.outcome.draw(threshold))
    return image


def drawing_paths(image_paths: Sequence[pathlib.Path], output: pathlib.Path) -> list[pathlib.Path]:
    """Return a different JPEG file in `output` for each image, named after it.

    Images that are in `output` themselves are never overwritten.
    """
    used = {path.name for path in image_paths if path.resolve().parent == output.resolve()}
    paths = []
    for path in image_paths:
        name, copy = f"{path.stem}.jpg", 1
        while name in used:
            copy += 1
            name = f"{path.stem}-{copy}.jpg"
        used.add(name)
        paths.append(output / name)
    return paths


def write_jpeg(path: pathlib.Path, image: Image.Image) -> None:
    """Write an image as JPEG, completely or not at all."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    write_atomically(path, jpeg.getvalue())


def write_csv(path: pathlib.Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table of COLUMNS, completely or not at all."""
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    # File names need not be valid UTF-8; they are written as the file system stores them.
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
