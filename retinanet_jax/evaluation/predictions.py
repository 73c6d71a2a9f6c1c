"""Detections of image files, drawn and written to a folder."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from PIL import Image

from retinanet_jax.detector import Detections, Detector
from retinanet_jax.utils.files import write_atomically, write_json
from retinanet_jax.utils.progress import make_progress
from retinanet_jax.utils.threads import ahead

COLUMNS = ("file_name", "name", "category_id", "score", "x0", "y0", "x1", "y1")


class Found(NamedTuple):
    """What a picture came to."""

    path: pathlib.Path
    outcome: Detections | ValueError
    drawing: pathlib.Path


def drawings(pictures: Sequence[pathlib.Path], output: pathlib.Path) -> list[pathlib.Path]:
    """For each picture a file in `output` that no other has.

    Where the pictures lie in that folder themselves, none of them is overwritten.
    """
    taken = {path.name for path in pictures if path.resolve().parent == output.resolve()}
    files = []
    for path in pictures:
        name, number = f"{path.stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}.jpg"
        taken.add(name)
        files.append(output / name)
    return files


def write_jpeg(path: pathlib.Path, picture: Image.Image) -> None:
    """Writes all of it or nothing."""
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=92)
    write_atomically(path, jpeg.getvalue())


def write_csv(path: pathlib.Path, rows: Iterable[Sequence[Any]]) -> None:
    """A table of COLUMNS, all of it or nothing."""
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    # As the file system has them, names need not be UTF-8.
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def predict_files(
    detector: Detector,
    pictures: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    batch_size: int = 1,
    draw_threshold: float | None = 0.5,
    table: bool = False,
) -> list[str]:
    """Predicts on all pictures, and writes it; returns what could not be read, and why.

    `draw_threshold` None: draws nothing. `table`: writes detections.csv too.
    """
    outcomes = detector.outcomes(pictures, batch_size)
    output.mkdir(parents=True, exist_ok=True)

    def draw(found: Found) -> Found:
        if isinstance(found.outcome, Detections) and draw_threshold is not None:
            write_jpeg(found.drawing, found.outcome.draw(draw_threshold))
        return found

    results, rows, unreadable = [], [], []
    tell = make_progress("predicting", len(pictures))
    # Drawn in threads, while the device goes on.
    all_found = ahead(draw, map(Found, pictures, outcomes, drawings(pictures, output)))
    for number, (path, outcome, _) in enumerate(all_found, 1):
        if isinstance(outcome, ValueError):
            unreadable.append(str(outcome))
        else:
            name = str(path)
            results += [{**one, "file_name": name} for one in outcome.to_coco(image_id=number)]
            rows += [(name, one.name, one.category_id, one.score, *one.box) for one in outcome]
        tell(number)
    write_json(output / "detections.json", results)
    if table:
        write_csv(output / "detections.csv", rows)
    told = f"{len(results)} detections on {len(pictures) - len(unreadable)} pictures"
    if draw_threshold is not None:
        drawn = sum(one["score"] >= draw_threshold for one in results)
        told += f", {drawn} that score {draw_threshold:g} or more drawn"
    print(f"{told}: {output / 'detections.json'}")
    return unreadable
