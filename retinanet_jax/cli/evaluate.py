"""The command `retinanet-jax evaluate`: the average precision of a checkpoint, or of detections."""

import functools
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from retinanet_jax.cli.common import Command, output_path
from retinanet_jax.cli.evaluation_config import evaluation_config, use_evaluation_data
from retinanet_jax.cli.train import define_run_flags, run_mode
from retinanet_jax.cli.tta import define_tta, evaluate_augmented, tta_options
from retinanet_jax.evaluation.results_file import evaluate_file
from retinanet_jax.utils.paths import to_path


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `evaluate`."""
    define_run_flags(values, argv)
    define_tta(values)
    define_detections(values)
    flags.DEFINE_string(
        "output",
        None,
        "With --detections, the folder that evaluation.json is written to. Of the files in it, "
        "only those of earlier runs are replaced. The default is to print the metrics only.",
        flag_values=values,
    )


def define_detections(values: flags.FlagValues) -> None:
    """Define --detections."""
    flags.DEFINE_string(
        "detections",
        None,
        "A file of detections in COCO's results format, of this or another program, instead of a "
        "checkpoint. Its ids of images and categories are those of --data.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> int:
    """Evaluate the best checkpoint in the workdir, or a file of detections."""
    tta = tta_options(values)
    if tta:
        check_tta(values)
    if values.detections:
        config = config_of_detections(values)
        output = output_path(values.output) if values.output else None
        workdir = to_path(values.workdir or ".")
        evaluate_file(to_path(values.detections), config, workdir, output)
        return 0
    if not values.workdir:
        raise ValueError(
            "no --workdir: give that of a run, or --detections=FILE --data=FOLDER_OR_FILE to "
            "evaluate a file of detections."
        )
    if values.output:
        raise ValueError(
            f"--output={values.output} is only used with --detections; the evaluation of a "
            "checkpoint is written to WORKDIR/eval."
        )
    evaluate = functools.partial(evaluate_augmented, **tta) if tta else None
    return run_mode(values, "evaluate", evaluate=evaluate)


def check_tta(values: Any) -> None:
    """Raise ValueError if --tta is given with a flag that excludes it."""
    if values.detections:
        raise ValueError(
            f"--tta changes how a checkpoint detects objects, and --detections={values.detections} "
            "has been detected; leave one of them out."
        )
    if values.distributed:
        raise ValueError("--tta is computed by one device of one host; leave --distributed out.")


def config_of_detections(values: Any) -> ConfigDict:
    """Return the config that names the dataset of --detections.

    Raises:
        ValueError: If no dataset is given.
    """
    if values.workdir:
        return evaluation_config(values, to_path(values.workdir))
    if not values.data and values["config"].using_default_value:
        raise ValueError(
            f"--detections={values.detections}: give --data=FOLDER_OR_FILE, the dataset that they "
            "were computed from, or the --workdir of a run that was evaluated on it."
        )
    if values.data:
        use_evaluation_data(values, values.config, trained=None)
    return values.config


COMMAND = Command(
    usage=(
        "retinanet-jax evaluate --workdir=DIR [--data=FOLDER_OR_FILE] "
        "[--weights=NAME_OR_DIR_OR_FILE] [--config=FILE[:ARGUMENT]] [--config.FIELD=VALUE ...]\n"
        "       retinanet-jax evaluate --detections=FILE --data=FOLDER_OR_FILE [--output=DIR]"
    ),
    description=(
        "Computes the COCO average precision of the best checkpoint in the workdir (the newest if "
        "none was evaluated) on the evaluation dataset of its own config, or on --data. Writes the "
        "metrics, the detections and some images with their detections to WORKDIR/eval; those of "
        "other data than the run's, or with other settings, to a folder in it. With --detections, "
        "computes that of a file of detections, of this or another program."
    ),
    define_flags=define_flags,
    run=run,
    memory_flag="--config.data.eval_batch_size",
)
