"""The command `retinanet-jax inspect`, which reports problems of a dataset before training."""

from typing import Any

from absl import flags, logging

from retinanet_jax.cli.common import (
    Command,
    default_config_file,
    define_config,
    define_data,
    output_path,
    require,
    use_data,
)
from retinanet_jax.cli.device_variant import assume_batch_size, use_device
from retinanet_jax.data_report.report import MAX_IMAGES, make_report


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `inspect`."""
    define_config(
        values,
        argv,
        default_config_file(argv, None),
        "The config, FILE or FILE:ARGUMENT, of the run that the dataset is meant for. "
        "--config.FIELD=VALUE overrides a field. The default with --data is configs/finetune.py.",
    )
    define_data(values)
    flags.DEFINE_string(
        "output",
        None,
        "The folder that the report is written to. Of the files in it, only those of earlier "
        "reports are replaced.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_images",
        MAX_IMAGES,
        f"The largest number of images to decode and to match with anchors; 0 means all. The "
        f"default is {MAX_IMAGES}.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Write the report; the command succeeds whatever the findings are."""
    require(values, config="FILE", output="DIR")
    use_device(values, values.config)
    assume_batch_size(values.config)
    use_data(values, values.config)
    logging.set_verbosity(logging.ERROR)  # the warnings of datasets are among the findings
    make_report(values.config, output_path(values.output), values.max_images)


COMMAND = Command(
    usage="retinanet-jax inspect --output=DIR [--data=FOLDER_OR_FILE] [--config=FILE[:ARGUMENT]] "
    "[--config.FIELD=VALUE ...]",
    description=(
        "Reports the problems of the config's datasets, the most severe first, and how well the "
        "config's anchors and buckets fit them. Writes report.txt, report.json, histograms and "
        "augmented images as the network sees them to the output folder."
    ),
    define_flags=define_flags,
    run=run,
)
