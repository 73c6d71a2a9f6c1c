"""The command `retinanet-jax predict`, which detects objects in image files.

It requires neither TensorFlow nor pycocotools.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from retinanet_jax import datasets
from retinanet_jax.cli.common import (
    Command,
    define_data,
    define_detection_limits,
    define_weights,
    detection_limits,
    output_path,
    require,
    weights_of,
)
from retinanet_jax.cli.predict_outputs import define_output_flags, output_options
from retinanet_jax.cli.predict_tiles import define_tile_flags, tile_options
from retinanet_jax.cli.predict_videos import define_video_flags, find_video_inputs, run_videos
from retinanet_jax.cli.tta import define_tta, tta_options
from retinanet_jax.compilation import use_compilation_cache
from retinanet_jax.data.image_files import find_unfilled_files
from retinanet_jax.data.value_range import FIELD
from retinanet_jax.detector import Detector
from retinanet_jax.evaluation.results_file import list_categories
from retinanet_jax.inference.arguments import input_arguments
from retinanet_jax.inference.detecting import ImageDetector
from retinanet_jax.inference.labels import check_files
from retinanet_jax.inference.predictions import (
    InputImage,
    input_dataset,
    predict_images,
    with_ids_of,
)
from retinanet_jax.inference.tiled import TiledDetector
from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.progress import one_line
from retinanet_jax.weights import cached

MAX_IMAGES_TO_CHECK = 1_000  # of which the value range is examined before detection


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    """Define the flags of `predict`."""
    define_weights(values)
    define_data(
        values,
        "A dataset, of which the evaluation images are read instead of image files. The ids of "
        "images and categories in detections.json are then the dataset's, and the default of "
        "--score_threshold that of an evaluation, so that `evaluate --detections` computes the AP",
    )
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
    define_tile_flags(values)
    define_tta(values)
    define_video_flags(values)
    define_output_flags(values)


def run(values: Any, arguments: list[str]) -> int:
    """Detect objects in all images; return 1 if an image could not be read."""
    require(values, weights="NAME_OR_DIR_OR_FILE", output="DIR")
    if values.data and arguments:
        raise ValueError(f"--data={values.data} and {arguments[0]} both name images; give one.")
    if not (values.data or arguments or values.camera):
        raise ValueError(
            "no images: pass image files, folders or patterns, URLs, - for standard input, videos, "
            "--camera or --data; --help explains them."
        )
    options, tiles, tta = output_options(values), tile_options(values), tta_options(values)
    output, videos = output_path(values.output), find_video_inputs(values, arguments)
    use_compilation_cache()
    if videos:
        if tiles:
            del tiles["report"]  # the progress is that of the frames
        return run_videos(_wrapped(_load(values), tiles, tta), videos, output, values)
    plain, images = _open_dataset(values) if values.data else _open_files(values, arguments)
    detector = _wrapped(plain, tiles, tta)
    unreadable = predict_images(detector, images, output, batch_size=values.batch_size, **options)
    if unreadable:
        count = f"{len(unreadable)} of {len(images)} images could not be read:"
        print(count, *map(one_line, unreadable), sep="\n  ", file=sys.stderr)
    return bool(unreadable)


def _wrapped(
    detector: Detector, tiles: dict[str, Any] | None, tta: dict[str, Any] | None
) -> ImageDetector:
    """Return the detector with test-time augmentation and in tiles, if there are options."""
    augmented = detector.augmented(**tta) if tta else detector
    return TiledDetector(augmented, **tiles) if tiles else augmented


def _load(values: Any) -> Detector:
    """Return the plain detector of the flags."""
    return Detector.load(
        weights_of(values), categories=values.categories or None, **detection_limits(values)
    )


def _open_files(values: Any, arguments: list[str]) -> tuple[Detector, list[InputImage]]:
    """Return the detector and the images that the arguments name."""
    images = input_arguments(arguments, report=print)
    if values.format:
        check_files(images)
    detector = _load(values)
    files = [item.image for item in images if isinstance(item.image, pathlib.Path)]
    _warn_of_unfilled(files[:MAX_IMAGES_TO_CHECK], detector.checkpoint.config.data.value_range)
    return detector, images


def _open_dataset(values: Any) -> tuple[Detector, list[InputImage]]:
    """Return the detector, with the ids of the categories of --data, and its images.

    The threshold is that of an evaluation, whatever `analyze` has stored in the checkpoint.
    """
    trained = cached.load(weights_of(values))
    config = trained.config.copy_and_resolve_references()
    config.data.categories = ()  # those of the dataset count, as in `evaluate --detections`
    line = datasets.use_evaluation_dataset(config, to_path(values.data), trained.config, ())
    print(line.partition("; --config")[0], flush=True)  # a flag that only `evaluate` has
    source = datasets.open_evaluation(config, output_path(values.output))
    names = {category.name for category in source.categories}
    for name in values.categories or ():
        if name not in names:
            raise ValueError(
                f"--categories={name}: not in {source.name}; its categories are "
                f"{list_categories(source)}."
            )
    numbered = with_ids_of(source, trained)
    common = [category.name for category in trained.categories if category.name in names]
    if len(common) < max(len(names), len(trained.categories)):
        print(
            f"categories: the detector has {len(trained.categories)} and the dataset {len(names)}, "
            f"of which {len(common)} have the same name; only these are detected"
        )
    limits = detection_limits(values)
    if limits["score_threshold"] is None:
        limits["score_threshold"] = trained.config.detections.score_threshold
    detector = Detector(numbered, categories=values.categories or common, **limits)
    return detector, input_dataset(source)


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
        "IMAGE_OR_FOLDER_OR_PATTERN_OR_URL...\n"
        "       retinanet-jax predict --weights=NAME_OR_DIR_OR_FILE --output=DIR "
        "VIDEO_OR_STREAM...\n"
        "       retinanet-jax predict --weights=NAME_OR_DIR_OR_FILE --output=DIR --camera=NUMBER\n"
        "       retinanet-jax predict --weights=NAME_OR_DIR_OR_FILE --output=DIR "
        "--data=FOLDER_OR_FILE"
    ),
    description=(
        "Detects objects in images: files, all files in folders, URLs of http and https, and for - "
        "the image file that standard input contains. Writes OUTPUT/detections.json (COCO's "
        "results format with file names; boxes in pixels of the original image), the images with "
        "their detections drawn and, with --csv, a table. With --format, labels for the next "
        "training, too. With --data, the images and ids are those of a dataset. Videos, cameras "
        "and streams are annotated frame by frame. Exits with status 1 if an image could not be "
        "read, or a video not to its end."
    ),
    define_flags=define_flags,
    run=run,
    takes_arguments=True,
    memory_flag="--batch_size",
)
