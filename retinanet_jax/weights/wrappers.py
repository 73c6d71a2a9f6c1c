"""State dicts in checkpoints: where in a file the network is, and its arrays by its own names.

Training scripts keep a state dict under a key of their own, next to the optimizer's state. They
also wrap the network in other modules, and then all its names begin with an attribute of those.
Both are one prefix here: each array has the name of all keys that lead to it, joined by dots, and
the network is what has the first block of a ResNet.
"""

import collections
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from retinanet_jax.utils.progress import join_first
from retinanet_jax.weights.unpickle import MAX_LENGTH, Array, Inert

# The usual keys of a state dict.
WEIGHTS_KEYS = (
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network"),
    *("weights", "params", "blobs"),
)
# A word in a key or attribute of averaged weights, which training scripts evaluate.
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])", re.IGNORECASE)
# Attributes that wrappers of PyTorch put into names: DataParallel, compile, FSDP, checkpointing.
WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
EXTRA_STATE = "_extra_state"  # the end of the names under which modules keep more than arrays
MAX_NAMES = 5  # in a message
MAX_PATH = 2_000  # characters of the keys that lead to an array
# The first block of a ResNet in the names of torchvision, detectron2 and Caffe2. What precedes a
# classifier's or a detector's own name is the prefix.
FIRST_BLOCK = re.compile(
    r"((?:.*?\.)??)(?:(?:backbone\.(?:body|bottom_up)\.)?(?:layer1|res2)\.0\.conv1\.weight"
    r"|res2_0_branch2a_w)"
)


class Leaf(NamedTuple):
    """A value in a checkpoint: an array, or an object that is not one."""

    value: Any  # Array, np.ndarray or Inert
    container: str  # the keys of the dict that has it, with a dot after each; "" for the outermost

    @property
    def is_array(self) -> bool:
        """Whether it is an array."""
        return isinstance(self.value, Array | np.ndarray)


def leaves(content: Any) -> dict[str, Leaf]:
    """Return the arrays and inert objects in dicts and lists, by the keys that lead to them.

    What wrappers put into the names of a state dict is removed from them.
    """
    if not isinstance(content, dict | list | tuple):
        return {"": Leaf(content, "")}
    by_name: dict[str, Leaf] = {}
    visited: set[int] = set()  # a dict may contain itself
    queue = collections.deque([("", content)])
    while queue:
        container, values = queue.popleft()
        if id(values) in visited or len(container) > MAX_PATH:
            continue
        visited.add(id(values))
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            text = _text(key)
            if isinstance(value, dict | list | tuple):
                if not text.endswith(EXTRA_STATE):
                    queue.append((f"{container}{text}.", value))
            elif isinstance(value, Array | np.ndarray | Inert):
                name = container + WRAPPERS.sub("", text)
                name = f"{container}{text}" if name in by_name else name
                by_name[name] = Leaf(value, container)
    return by_name


def _text(key: Any) -> str:
    """Return a key as text; that of a number without limit would be without limit, too."""
    is_index = isinstance(key, int) and 0 <= key < 1 << 32
    return key if isinstance(key, str) else str(key) if is_index else type(key).__name__


def state_dict(content: Any, path: pathlib.Path) -> dict[str, Array | np.ndarray]:
    """Return the arrays of a ResNet or detector by its own names, wherever they are in a file.

    What precedes the name of the backbone's first block, as in "model.module.", is removed. Without
    such a block the arrays are those of a dict under one of WEIGHTS_KEYS, or else of the outermost.

    Args:
        content: What the file contains.
        path: The file, for messages.

    Raises:
        ValueError: If there are no arrays by name, something else among them, or several networks
            of which not one is the average of the others.
    """
    by_name = leaves(content)
    networks = _networks(by_name)
    modules = [leaf.value for leaf in by_name.values() if _is_module(leaf.value)]
    if modules and not networks:
        raise ValueError(
            f"weights file {path} contains a whole module ({modules[0].name[:MAX_LENGTH]}), which "
            "only its own code can load; where that is installed, save its state dict: "
            'torch.save(model.state_dict(), "weights.pth").'
        )
    candidates = networks or _usual_dict(by_name)
    prefix = _choose(candidates, path)
    arrays = {}
    for name, leaf in by_name.items():
        own = name.removeprefix(prefix)
        if not own or own.endswith(EXTRA_STATE) or not _belongs(name, leaf, prefix, candidates):
            continue
        if networks and "." not in own and (not leaf.is_array or _is_counter(leaf)):
            continue  # no array of a network has such a name
        if not leaf.is_array:
            raise ValueError(
                f"weights file {path} contains {_describe(leaf.value)} under {own[:MAX_LENGTH]!r}; "
                "only arrays by name are read."
            )
        arrays[own] = leaf.value
    if not arrays:
        raise ValueError(
            f"weights file {path} contains {_describe(content)} and not arrays by name; give a "
            "file with a dict of arrays."
        )
    if networks:
        _warn_of_others(by_name, prefix, networks, path)
    return arrays


def _networks(by_name: Mapping[str, Leaf]) -> dict[str, str | None]:
    """Return the prefix of each network, and the keys of the dict that has it.

    For a network with parts in several dicts, None takes the place of the keys.
    """
    networks = {}
    for name, leaf in by_name.items():
        match = FIRST_BLOCK.fullmatch(name)
        if match and leaf.is_array:
            networks[match[1]] = leaf.container if match[1].startswith(leaf.container) else None
    return networks


def _usual_dict(by_name: Mapping[str, Leaf]) -> dict[str, str | None]:
    """Return the keys of a dict with arrays under one of WEIGHTS_KEYS, or of the outermost dict."""
    for leaf in by_name.values():
        *_, key, _ = ("", *leaf.container.split("."))
        if leaf.is_array and key in WEIGHTS_KEYS:
            return {leaf.container: leaf.container}
    return {"": ""}


def _choose(networks: Mapping[str, str | None], path: pathlib.Path) -> str:
    """Return the prefix of the network to read: of several, the average or the usual one."""
    prefixes = list(networks)
    if len(prefixes) == 1:
        return prefixes[0]
    averaged = [prefix for prefix in prefixes if AVERAGED.search(prefix)]
    usual = [p for p in prefixes if (networks[p] or "").split(".")[0] in WEIGHTS_KEYS]
    chosen = averaged or usual
    if len(chosen) != 1:
        raise ValueError(
            f"weights file {path} has several networks, with names that begin with "
            f"{_join(sorted(prefixes))}; save the state dict of one of them."
        )
    logging.warning(
        f"weights file {path} has several networks: the arrays under "
        f"{chosen[0][:MAX_LENGTH]!r} are read, and not those under "
        f"{_join(prefix for prefix in prefixes if prefix != chosen[0])}."
    )
    return chosen[0]


def _belongs(name: str, leaf: Leaf, prefix: str, networks: Mapping[str, str | None]) -> bool:
    """Whether a value is of the network with a prefix: in its dict, or in those of its parts."""
    container = networks[prefix]
    if container is None:
        return name.startswith(prefix) and leaf.container.count(".") == prefix.count(".") + 1
    return name.startswith(prefix) and leaf.container == container


def _warn_of_others(
    by_name: Mapping[str, Leaf], prefix: str, networks: Mapping[str, str | None], path: pathlib.Path
) -> None:
    """Warn of arrays of other modules in the network's dict, and of an average without names."""
    container, all_prefixes = networks[prefix] or "", tuple(networks)
    others = [
        name.removeprefix(container)
        for name, leaf in by_name.items()
        if leaf.is_array and leaf.container == container
        if not name.startswith(all_prefixes) and not _is_counter(leaf)
    ]
    if others:
        logging.warning(
            f"weights file {path}: the arrays under {prefix[:MAX_LENGTH]!r} are read; others are "
            f"not of that network: {_join(others)}."
        )
    averages = [
        leaf.container if leaf.is_array else name
        for name, leaf in by_name.items()
        if (leaf.is_array and not _is_counter(leaf)) or _is_module(leaf.value)
    ]
    averages = sorted({name for name in averages if AVERAGED.search(name)})
    if averages and not AVERAGED.search(prefix):
        logging.warning(
            f"weights file {path}: the arrays under {prefix[:MAX_LENGTH]!r} are read; averages "
            f"under {_join(averages)} are not, since they are no state dict."
        )


def _is_counter(leaf: Leaf) -> bool:
    """Whether an array is a single number."""
    return leaf.value.shape in ((), (1,))


def _is_module(value: Any) -> bool:
    """Whether a value is a whole module of PyTorch."""
    return isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state


def _describe(value: Any) -> str:
    """Return what a value is, with an article."""
    if isinstance(value, Array | np.ndarray):
        return "an array"
    name = value.name[:MAX_LENGTH] if isinstance(value, Inert) else type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _join(names: Iterable[str]) -> str:
    """Return the first names in quotes, and how many more there are."""
    return join_first([repr(name[:MAX_LENGTH]) for name in names], MAX_NAMES)
