"""The command `retinanet-jax convert`, which writes a dataset of any format as COCO's JSON."""

from typing import Any

from absl import flags

from retinanet_jax.cli.common import Command, define_data, output_path, require
from retinanet_jax.config import default_config
from retinanet_jax.datasets import convert_dataset, use_dataset
from retinanet_jax.utils.paths import is_remote, to_path


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    """Define the flags of `convert`."""
    define_data(values, "The dataset")
    flags.DEFINE_string(
        "output",
        None,
        "The JSON file to write; it must not exist. The evaluation data of a dataset with splits "
        "is written next to it, with _eval before the suffix.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "categories",
        [],
        "The names of the categories in the order of their ids, separated by commas, for formats "
        "that do not list them. The default is those in the dataset, sorted.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Convert the dataset and print what was written."""
    require(values, data="FOLDER_OR_FILE", output="FILE.json")
    if is_remote(values.data):
        raise ValueError(
            f"--data={values.data}: must be on a local disk, because the file names in the JSON "
            "are relative to its folder; copy the dataset first."
        )
    config = default_config()
    config.data.categories = tuple(values.categories)
    print(use_dataset(config, to_path(values.data), given=("data.validation_fraction",)))
    for line in convert_dataset(config, output_path(values.output)):
        print(line, flush=True)


COMMAND = Command(
    usage="retinanet-jax convert --data=FOLDER_OR_FILE --output=FILE.json [--categories=NAME,NAME]",
    description=(
        "Writes the boxes of a dataset as COCO's JSON: images, annotations and categories. The "
        "images stay where they are, and their file names are relative to the folder of the JSON."
    ),
    define_flags=define_flags,
    run=run,
)
