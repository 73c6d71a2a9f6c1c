"""The command `retinanet-jax export`, which writes a detector that runs without this package."""

import pathlib
from typing import Any

import jax
from absl import flags

from retinanet_jax.cli.common import (
    Command,
    define_checkpoint,
    define_detection_limits,
    output_path,
    require,
)
from retinanet_jax.compilation import use_compilation_cache
from retinanet_jax.export import verification
from retinanet_jax.export.artifact import FORMATS, export_detector, load_servable


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    """Define the flags of `export`."""
    define_checkpoint(values)
    flags.DEFINE_enum(
        "format", None, list(FORMATS), "The format of the artifact.", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "The folder to write; it must not exist.", flag_values=values
    )
    flags.DEFINE_list(
        "image_size",
        [],
        "The size of the input as HEIGHT,WIDTH in pixels, each a multiple of 32. The default is a "
        "square that can contain every image as the checkpoint's config resizes it.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "The number of images per call. By default an artifact accepts any number, in ONNX only 1.",
        flag_values=values,
    )
    define_detection_limits(values)
    flags.DEFINE_string(
        "images",
        None,
        "A folder of images to verify the artifact on. The default is a few synthetic images.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Write the verified artifact and print the size of its input."""
    require(values, checkpoint="DIR", format="NAME", output="DIR")
    jax.config.update("jax_platforms", "cpu")  # a GPU may multiply with fewer bits
    use_compilation_cache()
    output = output_path(values.output)
    servable = load_servable(
        values.checkpoint,
        image_size=[int(side) for side in values.image_size] or None,
        # An ONNX graph contains its shapes.
        batch_size=values.batch_size or (1 if values.format == "onnx" else None),
        score_threshold=values.score_threshold,
        max_detections=values.max_detections,
    )
    images = pathlib.Path(values.images).expanduser() if values.images else None
    print(f"writing {values.format}, then comparing it with the checkpoint", flush=True)
    difference = export_detector(values.format, servable, output, images)
    print(verification.summary(difference))
    height, width = servable.image_size
    batch = servable.batch_size or "any number of"
    plural = "image" if batch == 1 else "images"
    print(f"{output}: {values.format} for {batch} {plural} of {height} x {width} pixels")


COMMAND = Command(
    usage="retinanet-jax export --checkpoint=DIR --format=stablehlo|savedmodel|onnx --output=DIR",
    description=(
        "Writes the detector as an artifact that runs without this package, with a model card. The "
        "artifact is run on a few images and is only kept if its detections equal those of the "
        "checkpoint. docs/export.md shows how to load each format."
    ),
    define_flags=define_flags,
    run=run,
)
