"""Detections on many pictures, from a checkpoint.

python -m retinanet_jax.predict --checkpoint=DIR --output=DIR IMAGE_OR_FOLDER_OR_GLOB...
    [--score_threshold=0.05] [--max_detections=100] [--categories=NAME,NAME] [--batch_size=1]
    [--draw_threshold=0.5] [--nodraw] [--csv]

Writes OUTPUT/detections.json (COCO's results format and `file_name`, boxes in pixels of the
original picture), with --csv detections.csv too, and every picture with its boxes drawn. Needs
neither TensorFlow nor pycocotools.
"""

import csv
import io
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging
from PIL import Image

from retinanet_jax import command
from retinanet_jax.data.picture_files import find_pictures
from retinanet_jax.inference import Detector, Result, ahead
from retinanet_jax.report import teller, write_atomically, write_json

COLUMNS = ("file_name", "name", "category_id", "score", "x0", "y0", "x1", "y1")

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A working directory that training wrote, or one checkpoint in it."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where detections.json and the pictures go.")
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold", None, "Detections score more than this; the checkpoint's own if not given."
)
_MAX_DETECTIONS = flags.DEFINE_integer(
    "max_detections", None, "Of a picture, at most; the checkpoint's own if not given."
)
_CATEGORIES = flags.DEFINE_list("categories", None, "Names of what is wanted; all if not given.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Pictures that are computed together.")
_DRAW = flags.DEFINE_bool("draw", True, "Draw pictures.")
_DRAW_THRESHOLD = flags.DEFINE_float(
    "draw_threshold", 0.5, "Score from which a box is drawn; detections.json holds all."
)
_CSV = flags.DEFINE_bool("csv", False, f"Write detections.csv: {','.join(COLUMNS)}.")


class Found(NamedTuple):
    """What a picture came to."""

    path: pathlib.Path
    outcome: Result | ValueError
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


def run(
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
        if isinstance(found.outcome, Result) and draw_threshold is not None:
            write_jpeg(found.drawing, found.outcome.draw(draw_threshold))
        return found

    results, rows, unreadable = [], [], []
    tell = teller("predicting", len(pictures))
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


def main(argv: list[str]) -> None:
    """Exit status 1 where a picture could not be read, after all others are done."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    if not _CHECKPOINT.value or not _OUTPUT.value:
        sys.exit("error: give --checkpoint=DIR and --output=DIR, then pictures or folders.")
    command.use_compilation_cache()
    with command.told_in_one_line(smaller="--batch_size"):
        pictures = find_pictures(argv[1:])
        detector = Detector.load(
            _CHECKPOINT.value,
            score_threshold=_SCORE_THRESHOLD.value,
            categories=_CATEGORIES.value or None,
            max_detections=_MAX_DETECTIONS.value,
        )
        unreadable = run(
            detector,
            pictures,
            pathlib.Path(_OUTPUT.value).expanduser(),
            batch_size=_BATCH_SIZE.value,
            draw_threshold=_DRAW_THRESHOLD.value if _DRAW.value else None,
            table=_CSV.value,
        )
    if unreadable:
        told = [f"{len(unreadable)} of {len(pictures)} pictures could not be read:", *unreadable]
        print(*told, sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_flags_and_words)
