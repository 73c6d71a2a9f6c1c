"""The flags of `predict` with which large images are seen in overlapping windows."""

from typing import Any

from absl import flags

from retinanet_jax.config import unknown_choice
from retinanet_jax.inference.tiled import MERGES, OVERLAP
from retinanet_jax.inference.tiles import check_tiles
from retinanet_jax.utils.progress import make_progress

# What the other flags are without --tile.
DEFAULTS = {"overlap": OVERLAP, "merge": "owner", "whole_image": True}


def define_tile_flags(values: flags.FlagValues) -> None:
    """Define the flags of `predict` about tiles.

    Args:
        values: The flags of the command.
    """
    flags.DEFINE_integer(
        "tile",
        None,
        "Detect in overlapping windows with this side, in pixels of the image, each of which the "
        "network sees as an image of that size; an object on a border is returned once. "
        "--batch_size is then the number of windows, and --max_detections limits those of each "
        "window. The default is to detect in the whole image.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "overlap",
        OVERLAP,
        "With --tile: the fraction of a window that its neighbor contains at least, above 0 and at "
        f"most 0.9. The default is {OVERLAP:g}.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "merge",
        "owner",
        "With --tile: how the detections of the windows are merged. owner, the default: a window "
        "owns the objects with centers nearer to its middle than to a neighbor's, and what "
        "several windows see of one object becomes one detection. nms: class-wise non-maximum "
        "suppression.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "whole_image",
        True,
        "With --tile: also detect in the whole image, for objects that are larger than a window. "
        "This is the default; --nowhole_image turns it off.",
        flag_values=values,
    )


def tile_options(values: Any) -> dict[str, Any] | None:
    """Return the arguments of `TiledDetector`; None without --tile.

    Args:
        values: The values of the flags.

    Raises:
        ValueError: If a value is out of range, or has no effect.
    """
    if values.tile is None:
        for name, default in DEFAULTS.items():
            if values[name].value != default:
                raise ValueError(f"--{name}={values[name].value} has no effect without --tile.")
        return None
    check_tiles(values.tile, values.overlap)
    if values.merge not in MERGES:
        raise unknown_choice("--merge", values.merge, MERGES)
    return {
        **{name: values[name].value for name in ("tile", *DEFAULTS)},
        "report": lambda name, count: make_progress(name, count, "windows"),
    }
