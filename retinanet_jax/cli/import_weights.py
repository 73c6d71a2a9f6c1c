"""The command `retinanet-jax import-weights`, which converts another library's weights."""

from typing import Any

from absl import flags

from retinanet_jax.cli.common import Command, define_config, output_path, require
from retinanet_jax.weights.convert import import_weights, next_commands
from retinanet_jax.weights.presets import PRESETS


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `import-weights`."""
    flags.DEFINE_enum(
        "source", None, list(PRESETS), "The library that trained the weights.", flag_values=values
    )
    flags.DEFINE_string(
        "input",
        None,
        "A file, a URL, or the name of a published file, which is downloaded if it is missing.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "The folder to write; it must not exist.", flag_values=values
    )
    flags.DEFINE_enum(
        "outputs",
        "coco",
        ["coco", "all"],
        "Which of torchvision's 91 outputs to keep: the 80 that COCO uses, or all. The default is "
        "coco.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "categories",
        [],
        "The category names of the outputs, separated by commas. The default is COCO's.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "norm_epsilon",
        None,
        "The epsilon of the backbone's norms. The default is that of the source library.",
        flag_values=values,
    )
    define_config(
        values,
        argv,
        None,
        "The config that the weights were trained with, FILE or FILE:ARGUMENT. The default is the "
        "preset of the source library with the backbone that the file contains.",
    )


def run(values: Any, _: list[str]) -> None:
    """Write the checkpoint and print the commands that use it."""
    require(values, source="NAME", input="FILE_OR_URL_OR_NAME", output="DIR")
    checkpoint = import_weights(
        values.source,
        values.input,
        output_path(values.output),
        outputs=values.outputs,
        category_names=values.categories,
        norm_epsilon=values.norm_epsilon,
        config=values.config,
    )
    model = checkpoint.config.model
    print(
        f"{checkpoint.folder}: {model.backbone}, {len(checkpoint.categories)} classes, "
        f"norm_epsilon {model.norm_epsilon:g}; commands that use it:",
        *next_commands(values.source, checkpoint),
        sep="\n  ",
    )


COMMAND = Command(
    usage=(
        "retinanet-jax import-weights --source=torchvision_v1|torchvision_v2|detectron2 "
        "--input=FILE_OR_URL_OR_NAME --output=DIR"
    ),
    description=(
        "Converts a detector that torchvision or detectron2 trained to a checkpoint for "
        "prediction, evaluation, export and fine-tuning."
    ),
    define_flags=define_flags,
    run=run,
)
