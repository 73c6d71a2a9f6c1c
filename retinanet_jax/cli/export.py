"""The command `retinanet-jax export`, which writes a detector that runs without this package."""

import os
from typing import Any

import jax
from absl import flags

from retinanet_jax.cli.common import (
    Command,
    define_detection_limits,
    define_weights,
    detection_limits,
    output_path,
    require,
    weights_of,
)
from retinanet_jax.compilation import use_compilation_cache
from retinanet_jax.export.artifact import (
    FORMATS,
    check_request,
    check_sizes,
    export_detector,
    load_servables,
)
from retinanet_jax.export.raw_verification import TOLERANCES
from retinanet_jax.export.tflite import check_fixed
from retinanet_jax.utils.remote import local_copy
from retinanet_jax.weights import cached


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    """Define the flags of `export`."""
    define_weights(values)
    flags.DEFINE_enum(
        "format", None, list(FORMATS), "The format of the artifact.", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "The folder to write; it must not exist.", flag_values=values
    )
    flags.DEFINE_list(
        "image_size",
        [],
        "The size of the input as HEIGHT,WIDTH in pixels, each a multiple of 32. The default is "
        "the smallest that can contain every image as evaluation resizes it. Of several sizes, "
        "such as 800x1344,1344x800, each has an artifact in a folder of its own in OUTPUT. With "
        "`dynamic`, an artifact in stablehlo or ONNX accepts every multiple of 128.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "batch_size",
        None,
        "The number of images per call, or `dynamic` for any number, which is the default of "
        "stablehlo and savedmodel. The default of ONNX and tflite is 1.",
        flag_values=values,
    )
    _define_contents(values)
    define_detection_limits(values)
    flags.DEFINE_string(
        "images",
        None,
        "A folder of images to verify the artifact on, and by which int8 chooses the range of each "
        "feature map. The default is a few synthetic images.",
        flag_values=values,
    )


def _define_contents(values: flags.FlagValues) -> None:
    """Define the flags of what the artifact computes, and in which precision."""
    flags.DEFINE_bool(
        "raw",
        False,
        "Whether to end the artifact before NMS: it returns the box of every anchor and its score "
        "for every category, and the program that runs it selects the detections. The format "
        "tflite is always raw.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        list(TOLERANCES),
        "The precision of tflite. The default is float32. In float16 the file is half as large; in "
        "int8, which requires --images, it is a quarter, and the convolutions compute with "
        "integers.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Write the verified artifacts, and print the size of the input of each."""
    require(values, weights="NAME_OR_DIR_OR_FILE", format="NAME", output="DIR")
    jax.config.update("jax_platforms", "cpu")  # a GPU may multiply with fewer bits
    use_compilation_cache()
    output = output_path(values.output)
    image_sizes = parse_sizes(values.image_size)
    batch_size = parse_batch_size(values.batch_size, values.format)
    images = local_copy(os.path.expanduser(values.images)) if values.images else None
    check_sizes(image_sizes, batch_size)
    if values.format == "tflite":
        check_fixed(image_sizes, batch_size)
    check_request(values.format, output, images, values.precision)
    raw = values.raw or values.format == "tflite"
    servables = load_servables(
        str(cached.checkpoint_folder(weights_of(values))),
        image_sizes=image_sizes,
        batch_size=batch_size,
        raw=raw,
        dtype="float32" if values.format == "tflite" else None,  # LiteRT lacks bfloat16
        **detection_limits(values),
    )
    verifications = export_detector(values.format, servables, output, images, values.precision)
    for servable, (folder, outcome) in zip(servables, verifications.items(), strict=True):
        print(outcome.summary())
        plural = "image" if batch_size == 1 else "images"
        size = "{} x {} pixels".format(*servable.image_size) if servable.image_size else "any size"
        print(
            f"{folder}: {values.format} for {batch_size or 'any number of'} {plural} of {size}"
            f"{', without NMS' if raw else ''}"
        )


def parse_batch_size(value: str | None, format_name: str) -> int | None:
    """Return the batch size in --batch_size, which may be missing; None for any number."""
    if value is None:
        # Where a program for any number of images is slower or not possible, it is not the default.
        return 1 if format_name in ("onnx", "tflite") else None
    if value == "dynamic":
        return None
    try:
        return int(value)
    except ValueError:
        raise ValueError(
            f"--batch_size={value} must be a number of images, such as 1, or dynamic."
        ) from None


def parse_sizes(items: list[str]) -> list[list[int]] | None:
    """Return the heights and widths in --image_size, HEIGHT,WIDTH or a list of HEIGHTxWIDTH.

    None means that it is `dynamic`.
    """
    if items == ["dynamic"]:
        return None
    sizes = items if any("x" in item for item in items) else ["x".join(items)] * bool(items)
    try:
        return [[int(side) for side in size.split("x")] for size in sizes]
    except ValueError:
        raise ValueError(
            f"--image_size={','.join(items)} must be HEIGHT,WIDTH in pixels, such as 480,640, or "
            "several sizes, such as 800x1344,1344x800, or dynamic."
        ) from None


COMMAND = Command(
    usage=(
        "retinanet-jax export --weights=NAME_OR_DIR_OR_FILE "
        "--format=stablehlo|savedmodel|onnx|tflite --output=DIR"
    ),
    description=(
        "Writes the detector as an artifact that runs without this package, with a model card. The "
        "artifact is run on a few images and is only kept if its detections equal those of "
        "`predict`. docs/export.md shows how to load each format."
    ),
    define_flags=define_flags,
    run=run,
)
