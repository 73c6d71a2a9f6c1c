"""The command `retinanet-jax export-weights`, which writes weights for another library."""

from typing import Any

from absl import flags

from retinanet_jax.cli.common import Command, define_weights, output_path, require, weights_of
from retinanet_jax.weights import cached
from retinanet_jax.weights.convert import export_weights
from retinanet_jax.weights.presets import PRESETS


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    """Define the flags of `export-weights`."""
    flags.DEFINE_enum(
        "target", None, list(PRESETS), "The library that will load the file.", flag_values=values
    )
    define_weights(values)
    flags.DEFINE_string(
        "output",
        None,
        "The file to write; its suffix (.pth, .npz or .safetensors) determines the format.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Write the file and print the settings with which the target library builds the network."""
    require(values, target="NAME", weights="NAME_OR_DIR_OR_FILE", output="FILE")
    output = output_path(values.output)
    settings = export_weights(values.target, cached.checkpoint_folder(weights_of(values)), output)
    print(f"{output}: for {values.target}, with these settings:", *settings, sep="\n  ")


COMMAND = Command(
    usage=(
        "retinanet-jax export-weights --target=torchvision_v1|torchvision_v2|detectron2 "
        "--weights=NAME_OR_DIR_OR_FILE --output=FILE.pth|.npz|.safetensors"
    ),
    description=(
        "Writes a checkpoint's weights as a state dict for another library. A state dict contains "
        "only arrays, and the target library builds the network and the anchors itself, so a "
        "checkpoint with settings that the library lacks cannot be exported."
    ),
    define_flags=define_flags,
    run=run,
)
