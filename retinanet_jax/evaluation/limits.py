"""The limits on the detections that a detector returns."""

import difflib
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from retinanet_jax.checkpoint import Checkpoint

MAX_SUGGESTIONS = 10  # category names that an error message lists
# The type and the values that each limit may have, and this rule in words.
LIMITS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "score_threshold": (Real, lambda x: 0 <= x < 1, "at least 0 and less than 1; try 0.05"),
    "iou_threshold": (Real, lambda x: 0 <= x <= 1, "from 0 to 1; try 0.5"),
    "class_agnostic": (bool | np.bool_, lambda _: True, "True or False"),
    "max_detections": (Integral, lambda x: x >= 1, "at least 1 and an integer; try 100"),
}


def with_limits(config: ConfigDict, **limits: float | None) -> ConfigDict:
    """Return a copy of a config with these limits in place of its own; None keeps its own.

    Args:
        config: A run's config; its section `detections` has a field for each limit.
        **limits: New values of those fields, see LIMITS.

    Raises:
        ValueError: If a limit is invalid, or the config's method of NMS does not use it.
    """
    config = config.copy_and_resolve_references()
    for name, limit in limits.items():
        if limit is None:
            continue
        accepted_type, is_valid, rule = LIMITS[name]
        if not isinstance(limit, accepted_type) or not is_valid(limit):
            raise ValueError(f"{name}={limit!r} must be {rule}.")
        if name == "iou_threshold" and config.detections.nms == "soft_gaussian":
            raise ValueError(
                f"iou_threshold={limit} has no effect with the checkpoint's "
                "config.detections.nms=soft_gaussian, which has no threshold; leave it out."
            )
        config.detections[name] = type(config.detections[name])(limit)
    return config


def class_mask(checkpoint: Checkpoint, names: Iterable[str] | None) -> Bool[np.ndarray, " K"]:
    """Return for each class of a checkpoint whether its name is among `names`.

    Args:
        checkpoint: The checkpoint, which contains the categories.
        names: Names of categories; None for all.

    Raises:
        ValueError: If a name is unknown.
    """
    known = [category.name for category in checkpoint.categories]
    if names is None:
        return np.ones(len(known), bool)
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            similar = " or ".join(difflib.get_close_matches(name, known, 3))
            examples = ", ".join(known[:MAX_SUGGESTIONS])
            hint = f"did you mean {similar}?" if similar else f"it has, for example, {examples}."
            raise ValueError(
                f"category {name!r} is not among the {len(known)} categories of "
                f"{checkpoint.folder}; {hint}"
            )
    return np.array([name in names for name in known])
