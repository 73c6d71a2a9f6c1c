"""The command `retinanet-jax predict`, which detects objects in image files.

It requires neither TensorFlow nor pycocotools.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from retinanet_jax.cli.common import (
    Command,
    define_detection_limits,
    define_weights,
    detection_limits,
    output_path,
    require,
    weights_of,
)
from retinanet_jax.compilation import use_compilation_cache
from retinanet_jax.data.image_files import find_images, find_unfilled_files
from retinanet_jax.data.value_range import FIELD
from retinanet_jax.detector import Detector
from retinanet_jax.evaluation.predictions import COLUMNS, predict_files
from retinanet_jax.utils.progress import one_line

MAX_IMAGES_TO_CHECK = 1_000  # of which the value range is examined before detection


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    """Define the flags of `predict`."""
    define_weights(values)
    flags.DEFINE_string(
        "output",
        None,
        "The folder that detections.json and the annotated images are written to. Of the files in "
        "it, only those of earlier runs are replaced.",
        flag_values=values,
    )
    define_detection_limits(values)
    flags.DEFINE_list(
        "categories",
        None,
        "The names of the categories to return, separated by commas. The default is all.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        1,
        "The number of images that the network processes at once. The default is 1.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "draw",
        True,
        "Also write each image with its detections drawn. This is the default; --nodraw turns it "
        "off.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "draw_threshold",
        0.5,
        "Only detections with at least this score are drawn; detections.json contains all "
        "detections. The default is 0.5.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "csv",
        False,
        f"Also write detections.csv with the columns {', '.join(COLUMNS)}.",
        flag_values=values,
    )


def run(values: Any, arguments: list[str]) -> int:
    """Detect objects in all images; return 1 if an image could not be read."""
    require(values, weights="NAME_OR_DIR_OR_FILE", output="DIR")
    if not arguments:
        raise ValueError("no images: pass image files, folders or patterns; --help explains them.")
    use_compilation_cache()
    images = find_images(arguments, report=print)
    detector = Detector.load(
        weights_of(values),
        categories=values.categories or None,
        **detection_limits(values),
    )
    _warn_of_unfilled(images[:MAX_IMAGES_TO_CHECK], detector.checkpoint.config.data.value_range)
    unreadable = predict_files(
        detector,
        images,
        output_path(values.output),
        batch_size=values.batch_size,
        draw_threshold=values.draw_threshold if values.draw else None,
        table=values.csv,
    )
    if unreadable:
        count = f"{len(unreadable)} of {len(images)} images could not be read:"
        print(count, *map(one_line, unreadable), sep="\n  ", file=sys.stderr)
    return bool(unreadable)


def _warn_of_unfilled(images: Sequence[pathlib.Path], value_range: str) -> None:
    """Log which images are nearly of one brightness in the value range of the detector."""
    unfilled = find_unfilled_files(images, value_range)
    if unfilled:
        logging.warning(
            "%s, as the detector was trained with %s=%s; give images that are scaled as those that "
            "it was trained on.",
            one_line(unfilled.message),
            FIELD,
            value_range,
        )


COMMAND = Command(
    usage=(
        "retinanet-jax predict --weights=NAME_OR_DIR_OR_FILE --output=DIR "
        "IMAGE_OR_FOLDER_OR_PATTERN..."
    ),
    description=(
        "Detects objects in images. Writes OUTPUT/detections.json (COCO's results format with "
        "file names; boxes in pixels of the original image), the images with their detections "
        "drawn and, with --csv, a table. Exits with status 1 if an image could not be read."
    ),
    define_flags=define_flags,
    run=run,
    takes_arguments=True,
    memory_flag="--batch_size",
)
