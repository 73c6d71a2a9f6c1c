"""The flags of `predict` about what is written: drawings, a table, labels and crops."""

from typing import Any

from absl import flags

from retinanet_jax.config import unknown_choice
from retinanet_jax.inference.formats import FORMATS
from retinanet_jax.inference.predictions import COLUMNS


def define_output_flags(values: flags.FlagValues) -> None:
    """Define the flags of `predict` about what is written.

    Args:
        values: The flags of the command.
    """
    flags.DEFINE_bool(
        "draw",
        True,
        "Also write each image with its detections drawn. This is the default; --nodraw turns it "
        "off.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "draw_threshold",
        0.5,
        "Only detections with at least this score, from 0 to 1, are drawn; detections.json "
        "contains all detections. The default is 0.5.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "csv",
        False,
        f"Also write detections.csv with the columns {', '.join(COLUMNS)}.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "format",
        [],
        f"Also write labels for these images, in one or more of the formats {', '.join(FORMATS)}, "
        "separated by commas. Each is a dataset in the folder OUTPUT/FORMAT, which refers to the "
        "images where they are, and which the flag --data of the other commands opens. The "
        "default is none.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "save_crops",
        False,
        "Also write the part of the image that each detection shows, as "
        "OUTPUT/crops/CATEGORY/IMAGE_NUMBER.jpg. Crops of earlier runs are removed. The default is "
        "not to write crops.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "label_threshold",
        None,
        "Only detections with at least this score, from 0 to 1, become labels (--format) and crops "
        "(--save_crops). The default is --draw_threshold, so that the drawings show the labels.",
        flag_values=values,
    )


def output_options(values: Any) -> dict[str, Any]:
    """Return the arguments of `predict_images` about what is written.

    Args:
        values: The values of the flags.

    Raises:
        ValueError: If a format is unknown, or a threshold is out of range or has no effect.
    """
    formats, threshold = list(dict.fromkeys(values.format)), values.label_threshold
    for name in formats:
        if name not in FORMATS:
            raise unknown_choice("--format", name, FORMATS)
    if threshold is not None and not (formats or values.save_crops):
        raise ValueError(
            f"--label_threshold={threshold:g} has no effect without --format or --save_crops; give "
            "one of them, or --score_threshold to limit all detections."
        )
    for name in ("draw_threshold", "label_threshold"):
        given = values[name].value
        if given is not None and not 0 <= given <= 1:
            raise ValueError(f"--{name}={given:g} must be from 0 to 1, as scores are; try 0.5.")
    return {
        "draw_threshold": values.draw_threshold if values.draw else None,
        "table": values.csv,
        "formats": formats,
        "save_crops": values.save_crops,
        "label_threshold": values.draw_threshold if threshold is None else threshold,
    }
