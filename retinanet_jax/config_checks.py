"""Checks of a config before anything is done with it."""

import numbers
import operator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax.augmentation_presets import PRESETS
from retinanet_jax.config import default_config, flatten, unknown_choice, unknown_field
from retinanet_jax.data.value_range import parse_value_range

MAX_LEVELS = (5, 6, 7)  # of the feature pyramid, which begins at level 3
DTYPES = ("float32", "bfloat16", "float64")
EXIF_RULES = ("auto", "applied", "ignored")
# Parts of the network, for config.model.frozen_parts and config.model.remat.
FROZEN_PARTS = ("fpn", "class_head", "box_head")
REMAT_PARTS = ("stem", "c2", "c3", "c4", "c5", "fpn", "heads")
NONFINITE_RULES = ("stop", "skip")


def check_fields(config: ConfigDict) -> None:
    """Check that the config has exactly the fields of `default_config`.

    ml_collections itself checks types, except those of a tuple's elements.

    Raises:
        ValueError: If a field is unknown or missing, a tuple with elements of another type, or
            excluded by its value or that of another field.
    """
    known, values = dict(flatten(default_config())), dict(flatten(config))
    for name in sorted(values.keys() - known.keys()):
        raise ValueError(unknown_field(name))
    for name in sorted(known.keys() - values.keys()):
        raise ValueError(f"config.{name} is missing; start from config.default_config().")
    for name, example in known.items():
        if isinstance(example, tuple) and example and not has_elements_like(values[name], example):
            raise ValueError(
                f"config.{name}={values[name]} must have elements of the type of {example}."
            )
    check_dtype(config)
    check_levels(config)
    check_padding(config)
    check_parts(config)
    check_optimizer(config)
    check_average_and_patience(config)
    parse_value_range(config.data.value_range)
    if config.nonfinite not in NONFINITE_RULES:
        raise unknown_choice("nonfinite", config.nonfinite, NONFINITE_RULES)
    if config.data.exif not in EXIF_RULES:
        raise unknown_choice("data.exif", config.data.exif, EXIF_RULES)
    if config.data.augmentation not in ("", *PRESETS):
        raise unknown_choice("data.augmentation", config.data.augmentation, PRESETS)
    fraction = config.data.unmixed_fraction
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"config.data.unmixed_fraction={fraction} must be a fraction of the steps from 0 to 1; "
            "try 0.1."
        )


def check_dtype(config: ConfigDict) -> None:
    """Raise ValueError if the network cannot compute in the config's dtype."""
    if config.dtype not in DTYPES:
        raise unknown_choice("dtype", config.dtype, DTYPES)


def check_parts(config: ConfigDict) -> None:
    """Raise ValueError if a part of the network that is frozen or recomputed is unknown."""
    for field, parts in (("frozen_parts", FROZEN_PARTS), ("remat", REMAT_PARTS)):
        for name in config.model[field]:
            if name not in parts:
                raise unknown_choice(f"model.{field}", name, parts)


def check_average_and_patience(config: ConfigDict) -> None:
    """Raise ValueError if the average's decay or the number of evaluations is out of range."""
    decay = config.optimizer.ema_decay
    if not 0 <= decay < 1:
        raise ValueError(
            f"config.optimizer.ema_decay={decay:g} must be at least 0 and less than 1; give 0.9998 "
            "for an average over some thousand steps, or 0 for none."
        )
    if config.patience < 0:
        raise ValueError(
            f"config.patience={config.patience} must be a number of evaluations, or 0 to train to "
            "the last step in any case."
        )


def check_optimizer(config: ConfigDict) -> None:
    """Raise ValueError if a batch has no parts, or a stage no learning rate."""
    accumulate, layer_decay = config.optimizer.accumulate, config.optimizer.layer_decay
    if accumulate < 1:
        raise ValueError(
            f"config.optimizer.accumulate={accumulate} must be at least 1, the whole batch at once."
        )
    if not 0 < layer_decay <= 1:
        raise ValueError(
            f"config.optimizer.layer_decay={layer_decay} must be above 0 and at most 1, the same "
            "learning rate in all layers; config.model.frozen_stages is for stages without any."
        )


def check_levels(config: ConfigDict) -> None:
    """Raise ValueError if the network has no pyramid with the levels of the config's anchors."""
    anchors = config.anchors
    if anchors.min_level != 3 or anchors.max_level not in MAX_LEVELS:
        raise ValueError(
            f"config.anchors has levels {anchors.min_level} to {anchors.max_level}, but the "
            "network's pyramid begins at level 3 and ends at 5, 6 or 7; set "
            "config.anchors.min_level=3 and config.anchors.max_level=7. Smaller anchors have a "
            "smaller config.anchors.base_scale."
        )


def has_elements_like(value: Any, example: tuple[Any, ...]) -> bool:
    """Return whether a value is a tuple or list of any number of elements like those of `example`.

    Args:
        value: The value of a config field.
        example: A tuple of numbers, or of tuples of equally many numbers.
    """
    if not isinstance(value, tuple | list):
        return False
    shape = np.shape(example[0])
    arrays = [np.array(element, object) for element in value]
    return all(
        array.shape == shape and all(isinstance(number, numbers.Real) for number in array.flat)
        for array in arrays
    )


def check_padding(config: ConfigDict) -> None:
    """Raise ValueError if the padding is masked, but anchors or matching depend on it."""
    if config.model.padding == "masked":
        required_values = {"anchors.stride_rule": "nominal", "matching.ignore_padding": True}
        for name, required in required_values.items():
            value = operator.attrgetter(name)(config)
            if value != required:
                raise ValueError(
                    f"config.{name}={value} makes results depend on the padding, but "
                    f"config.model.padding='masked' excludes that; set config.{name}={required}, "
                    "or config.model.padding='plain'."
                )
