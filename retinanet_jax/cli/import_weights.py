"""The command `retinanet-jax import-weights`, which converts another library's weights."""

from typing import Any

from absl import flags

from retinanet_jax.cli.common import Command, define_config, output_path, require
from retinanet_jax.weights.convert import import_weights, next_commands
from retinanet_jax.weights.presets import PRESETS


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `import-weights`."""
    flags.DEFINE_enum(
        "source",
        None,
        list(PRESETS),
        "The library that trained the weights. By default it is recognized by the names of the "
        "arrays.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "input",
        None,
        "A file, a URL, or the name of published weights, such as torchvision_v2, which are "
        "downloaded if they are missing.",
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
        "The category names of the outputs, separated by commas; torchvision's output 0 may be "
        "left out if it is the background. The default is COCO's.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "norm_epsilon",
        None,
        "The epsilon of the backbone's norms, which the file of a fine-tuned torchvision_v1 does "
        "not show: 0 if the model was built with weights=COCO_V1, and otherwise 1e-5.",
        flag_values=values,
    )
    define_config(
        values,
        argv,
        None,
        "The config that the weights were trained with, FILE or FILE:ARGUMENT, for what the file "
        "does not show, such as anchors. The default is the preset of the source library.",
    )


def run(values: Any, _: list[str]) -> None:
    """Write the checkpoint and print the commands that use it."""
    require(values, input="FILE_OR_URL_OR_NAME", output="DIR")
    imported = import_weights(
        values.source,
        values.input,
        output_path(values.output),
        outputs=values.outputs,
        category_names=values.categories,
        norm_epsilon=values.norm_epsilon,
        config=values.config,
    )
    folder, num_classes = imported.checkpoint.folder, len(imported.checkpoint.categories)
    print(f"{folder}: {imported.source}, {num_classes} classes;", *imported.reasons, sep="\n  ")
    print("commands that use it:", *next_commands(imported), sep="\n  ")


COMMAND = Command(
    usage=(
        "retinanet-jax import-weights --input=FILE_OR_URL_OR_NAME --output=DIR "
        "[--source=torchvision_v1|torchvision_v2|detectron2]"
    ),
    description=(
        "Converts a detector that torchvision or detectron2 trained to a checkpoint for "
        "prediction, evaluation, export and fine-tuning."
    ),
    define_flags=define_flags,
    run=run,
)
