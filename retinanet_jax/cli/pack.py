"""The command `retinanet-jax pack`, which decodes and resizes datasets once."""

from typing import Any

from absl import flags

from retinanet_jax.cli.common import (
    Command,
    default_config_file,
    define_config,
    define_data,
    output_path,
    require,
    use_data,
)
from retinanet_jax.cli.device_variant import use_device
from retinanet_jax.input_pipeline import PARTS, pack_datasets


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `pack`."""
    define_config(
        values,
        argv,
        default_config_file(argv, None),
        "The config, FILE or FILE:ARGUMENT, with the datasets and the sizes to resize them to. "
        "--config.FIELD=VALUE overrides a field. The default with --data is configs/finetune.py,"
        " with the argument for this machine's device.",
    )
    define_data(values)
    flags.DEFINE_string(
        "output",
        None,
        "The folder to which the folders train and eval are written.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "part",
        "both",
        [*PARTS, "both"],
        "Which of the config's datasets to pack. The default is both.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Pack the datasets and print the flags with which a run reads them."""
    require(values, config="FILE", output="DIR")
    use_device(values, values.config)
    use_data(values, values.config)
    parts = PARTS if values.part == "both" else (values.part,)
    new_flags = pack_datasets(values.config, parts, output_path(values.output))
    print("to train on the packed images, add these flags:", *new_flags, sep="\n  ")


COMMAND = Command(
    usage=(
        "retinanet-jax pack --output=DIR [--data=FOLDER_OR_FILE] [--config=FILE[:ARGUMENT]] "
        "[--part=train|eval|both] [--config.FIELD=VALUE ...]"
    ),
    description=(
        "Decodes and resizes the config's datasets once: the training images to the largest short "
        "side of training, the evaluation images to that of evaluation. Training on the result "
        "requires neither a decoder nor TensorFlow."
    ),
    define_flags=define_flags,
    run=run,
)
