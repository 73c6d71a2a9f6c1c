"""Detections on many pictures, from a checkpoint.

python -m retinanet_jax.predict --checkpoint=DIR --output=DIR IMAGE_OR_FOLDER_OR_GLOB...
    [--score_threshold=0.05] [--max_detections=100] [--categories=NAME,NAME] [--batch_size=1]
    [--draw_threshold=0.5] [--nodraw] [--csv]

Writes OUTPUT/detections.json (COCO's results format and `file_name`, boxes in pixels of the
original picture), with --csv detections.csv too, and every picture with its boxes drawn. Needs
neither TensorFlow nor pycocotools.
"""

import pathlib
import sys

from absl import flags, logging

from retinanet_jax import compilation
from retinanet_jax.cli import common
from retinanet_jax.data.image_files import find_images
from retinanet_jax.detector import Detector
from retinanet_jax.evaluation.predictions import COLUMNS
from retinanet_jax.predict_logic import run

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


def main(argv: list[str]) -> None:
    """Exit status 1 where a picture could not be read, after all others are done."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    if not _CHECKPOINT.value or not _OUTPUT.value:
        sys.exit("error: give --checkpoint=DIR and --output=DIR, then pictures or folders.")
    compilation.use_compilation_cache()
    with common.errors_in_one_line(smaller="--batch_size"):
        pictures = find_images(argv[1:])
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
