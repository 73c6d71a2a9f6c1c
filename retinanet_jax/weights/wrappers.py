"""State dicts in checkpoints: which dict of a file has the weights, and the prefix of its names.

Training scripts keep a state dict under a key of their own, next to the optimizer's state. They
also wrap the network in other modules, and then all its names begin with an attribute of those.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from retinanet_jax.weights.unpickle import MAX_LENGTH, Array, Inert

# The keys of a state dict. Where a file has averaged weights too, they are those that its training
# script evaluates, and that are read.
AVERAGED_KEYS = ("model_ema", "ema", "ema_model", "ema_state_dict", "state_dict_ema")
WEIGHTS_KEYS = (
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network"),
    *("weights", "params", "blobs"),
)
EXTRA_STATE = "_extra_state"  # the end of the names under which modules keep more than arrays
MAX_NAMES = 5  # in a message
MAX_DICTS = 100  # that are searched; nested deeper, they would overflow the stack
# The first block of a ResNet in torchvision's and detectron2's names. What precedes a classifier's
# or a detector's own name is the prefix of a wrapper.
FIRST_BLOCK = re.compile(
    r"((?:.*?\.)??)(?:backbone\.(?:body|bottom_up)\.)?(?:layer1|res2)\.0\.conv1\.weight"
)


def state_dict(content: Any, path: pathlib.Path) -> dict[str, Array]:
    """Return the arrays by name of a file's content, at the top or inside a checkpoint.

    Args:
        content: What the file's pickle contains.
        path: The file, for messages.

    Raises:
        ValueError: If there are no arrays by name, or something else among them.
    """
    _refuse_module(content, path)
    weights = _find(content, path, set()) or content
    if not weights or not isinstance(weights, dict):
        raise ValueError(
            f"weights file {path} contains {_describe(content)} and not arrays by name; give a "
            "file with a dict of arrays."
        )
    arrays = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(
                f"weights file {path} contains {_describe(value)} under a key that is no text but "
                f"{_describe(name)}; only arrays by name are read."
            )
        if isinstance(value, Array):
            arrays[name] = value
        elif not name.endswith(EXTRA_STATE):
            raise ValueError(
                f"weights file {path} contains {_describe(value)} under {name[:MAX_LENGTH]!r}; "
                f"only arrays by name are read, at the top or under one of "
                f"{', '.join(WEIGHTS_KEYS)}."
            )
    return arrays


def _find(content: Any, path: pathlib.Path, visited: set[int]) -> dict | None:
    """Return the dict of arrays in a checkpoint, however deep, or None.

    Args:
        content: A value of the checkpoint.
        path: The file, for messages.
        visited: The ids of the dicts that were searched; a dict may contain itself.
    """
    if not isinstance(content, dict) or id(content) in visited or len(visited) > MAX_DICTS:
        return None
    visited.add(id(content))
    matches = {}
    for key in AVERAGED_KEYS + WEIGHTS_KEYS:
        arrays = _find(content.get(key), path, visited)
        if arrays is not None:
            matches[key] = arrays
    if matches:
        used, *others = matches
        if others:
            logging.warning(
                f"weights file {path} has arrays under {used!r}, which are read, and others under "
                f"{_join(others)}."
            )
        return matches[used]
    for value in content.values():
        _refuse_module(value, path)
    parts = {key: value for key, value in content.items() if _is_part(key, value)}
    if parts:
        arrays = {key: value for key, value in content.items() if isinstance(value, Array)}
        for key, part in parts.items():
            arrays |= {f"{key}.{name}": value for name, value in part.items()}
        return arrays
    return content if any(isinstance(value, Array) for value in content.values()) else None


def _is_part(key: Any, value: Any) -> bool:
    """Whether a value of a checkpoint is itself a dict of arrays by name."""
    return (
        isinstance(key, str)
        and not key.endswith(EXTRA_STATE)
        and isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(array, Array) for array in value.values())
    )


def _refuse_module(value: Any, path: pathlib.Path) -> None:
    """Raise ValueError if a value is a whole module of PyTorch."""
    if isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state:
        raise ValueError(
            f"weights file {path} contains a whole module ({value.name[:MAX_LENGTH]}), which only "
            "its own code can load; where that is installed, save its state dict: "
            'torch.save(model.state_dict(), "weights.pth").'
        )


def _describe(value: Any) -> str:
    """Return what a value is, with an article."""
    if isinstance(value, Array):
        return "an array"
    name = value.name[:MAX_LENGTH] if isinstance(value, Inert) else type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _join(names: Iterable[str]) -> str:
    """Return the first names in quotes, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(repr(name[:MAX_LENGTH]) for name in names[:MAX_NAMES]) + more


def without_prefix(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a ResNet or detector by its own names, without those of a wrapper.

    What precedes the name of the backbone's first block, as in "module.model.", is removed. Arrays
    without it in their names are of other modules, and left out. Without such a block, the names
    remain.

    Args:
        arrays: The arrays of a state dict by name.
        path: The file, for messages.

    Raises:
        ValueError: If there are several such networks and not one is the average of the others.
    """
    # torch.compile puts this before the names of the module that it compiles.
    arrays = {re.sub(r"(?<![^.])_orig_mod\.", "", name): array for name, array in arrays.items()}
    prefixes = {match[1] for match in map(FIRST_BLOCK.fullmatch, arrays) if match}
    if len(prefixes) > 1:
        averaged = {p for p in prefixes if set(p.split(".")) & set(AVERAGED_KEYS)}
        if len(averaged) != 1:
            raise ValueError(
                f"weights file {path} has several networks, with names that begin with "
                f"{_join(sorted(prefixes))}; save the state dict of one of them."
            )
        prefixes = averaged
    prefix = prefixes.pop() if prefixes else ""
    others = [name for name in arrays if not name.startswith(prefix)]
    if any(np.size(arrays[name]) > 1 for name in others):  # not only counters
        logging.warning(
            f"weights file {path}: the arrays under {prefix[:MAX_LENGTH]!r} are read; others are "
            f"not of that network: {_join(others)}."
        )
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
