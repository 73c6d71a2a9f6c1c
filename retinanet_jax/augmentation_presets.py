"""The presets of augmentation: light, medium and strong."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax.config import choose, default_config, flatten

# Runs store the name of their preset, so these values never change; others have another name. All
# of the fields are off by default. docs/data.md has them as a table.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "light": {
        "color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02},
        "affine": {"rotation": 0.0, "shear": 0.0, "scale": (0.8, 1.25), "translation": 0.1},
        "min_visible": 0.1,
    },
    "medium": {
        "color_jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.4, "hue": 0.03},
        "affine": {"rotation": 5.0, "shear": 2.0, "scale": (0.6, 1.4), "translation": 0.1},
        "mosaic": 0.3,
        "copy_paste": 0.1,
        "gray": 0.02,
        "blur": 0.05,
        "jpeg": 0.1,
        "cutout": 0.1,
        "min_visible": 0.1,
    },
    "strong": {
        "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.6, "hue": 0.05},
        "affine": {"rotation": 10.0, "shear": 5.0, "scale": (0.5, 1.5), "translation": 0.2},
        "mosaic": 0.7,
        "mixup": 0.1,
        "copy_paste": 0.2,
        "gray": 0.05,
        "blur": 0.1,
        "jpeg": 0.2,
        "cutout": 0.2,
        "min_visible": 0.1,
    },
}


def augmented_data(config: ConfigDict) -> ConfigDict:
    """Return a copy of `config.data` in which its preset has set the fields that are off.

    A strength of `color_jitter` and a range of `affine` is a field of its own.

    Args:
        config: A run's config.

    Raises:
        ValueError: If there is no such preset.
    """
    data = config.data.copy_and_resolve_references()
    if not data.augmentation:
        return data
    preset = choose("data.augmentation", data.augmentation, PRESETS)
    values, off = dict(flatten(data)), dict(flatten(default_config().data))
    is_off = {name: np.array_equal(values[name], off[name]) for name, _ in flatten(preset)}
    data.update_from_flattened_dict({k: value for k, value in flatten(preset) if is_off[k]})
    return data


def check_off_fields(config: ConfigDict, given: Set[str]) -> None:
    """Check that no field is given as off that the preset sets, since it would be set all the same.

    Args:
        config: A run's config.
        given: The names of the fields that the command line sets.

    Raises:
        ValueError: If there is such a field.
    """
    set_by_preset = dict(flatten(augmented_data(config), "data."))
    for name, value in flatten(config.data, "data."):
        if name in given and not np.array_equal(value, set_by_preset[name]):
            raise ValueError(
                f"--config.{name}={value} is off, and so "
                f"--config.data.augmentation={config.data.augmentation} sets it to "
                f"{set_by_preset[name]}; leave it out, or give the preset's other values one by "
                "one instead of the preset (docs/data.md)."
            )
