"""The command `retinanet-jax pack`."""

from typing import Any

from absl import flags

from retinanet_jax.cli.common import Command, define_config, output_path, require
from retinanet_jax.input_pipeline import PARTS, pack_datasets


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `pack`."""
    define_config(
        values,
        argv,
        None,
        "The config, FILE or FILE:ARGUMENT, with the datasets and the sizes to resize them to. "
        "--config.FIELD=VALUE overrides a field.",
    )
    flags.DEFINE_string(
        "output",
        None,
        "The folder in which the folders train and eval are written.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "part", "both", [*PARTS, "both"], "Which of the config's datasets.", flag_values=values
    )


def run(values: Any, _: list[str]) -> None:
    """Pack the datasets and print the flags that make a run read them."""
    require(values, config="FILE", output="DIR")
    parts = PARTS if values.part == "both" else (values.part,)
    new_flags = pack_datasets(values.config, parts, output_path(values.output))
    print("to train from it, add to the run's flags:", *new_flags, sep="\n  ")


COMMAND = Command(
    usage=(
        "retinanet-jax pack --config=FILE[:ARGUMENT] --output=DIR [--part=train|eval|both] "
        "[--config.FIELD=VALUE ...]"
    ),
    description=(
        "Decodes and resizes the config's datasets once, at the largest short side that the config "
        "trains with and the one it evaluates at. Training from the result needs neither a decoder "
        "nor TensorFlow."
    ),
    define_flags=define_flags,
    run=run,
)
