"""A trained detector's weights as the start of another run: which of them, and told in a table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import DEFINING, differences, plain
from retinanet_jax.data.sources.base import Category
from retinanet_jax.weights.resnet import LISTED, listed

# What may differ between the two configs' DEFINING sections: how training goes on, how random
# outputs start, and whether batch norms are frozen (below).
FREE = ("model.frozen_stages", "model.prior_probability")
NORMS_OF_FOUR_ARRAYS = {"frozen_batch", "batch"}
# The only layer that knows the classes; its channels are anchor-major, then class.
CLASSIFICATION_OUTPUT = ("classification_head", "predict")

Path = tuple[str, ...]


class Fit(NamedTuple):
    """Where the arrays of a network come from; names are paths without their collection."""

    kept: tuple[str, ...]
    reinitialized: tuple[str, ...]  # of the classification output: rows of other classes are random
    missing: tuple[str, ...]  # in the checkpoint
    unexpected: tuple[str, ...]  # in the checkpoint, and of no use to this network
    misshapen: tuple[str, ...]


def by_path(variables: Mapping[str, Any]) -> dict[Path, Any]:
    """The arrays by their path without its collection, which frozen and trained norms differ in.

    A batch norm's scale and bias are parameters, a frozen one's statistics like mean and var: the
    same four arrays, which mean the same.
    """
    return {
        path: leaf
        for tree in variables.values()
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }


def shared_classes(old: Sequence[Category], new: Sequence[Category]) -> dict[int, int]:
    """Number of each new class that the old ones have too, by name -> its number there."""
    numbers = {category.name: number for number, category in reversed(list(enumerate(old)))}
    return {k: numbers[one.name] for k, one in enumerate(new) if one.name in numbers}


def fit(trained: Checkpoint, variables: Mapping[str, Any], categories: Sequence[Category]) -> Fit:
    """What of `trained` the network of `variables` (arrays or shapes) and `categories` can take."""
    have, want = by_path(trained.variables), by_path(variables)
    same_classes = [c.name for c in trained.categories] == [c.name for c in categories]
    groups: dict[str, list[str]] = {name: [] for name in Fit._fields}
    for path in sorted({*have, *want}):
        if path not in have:
            kind = "missing"
        elif path not in want:
            kind = "unexpected"
        elif path[:2] == CLASSIFICATION_OUTPUT and not same_classes:
            # Where the anchors of a cell differ too, no class has rows to keep.
            per_class = have[path].shape[-1] / len(trained.categories)
            fits = have[path].shape[:-1] == want[path].shape[:-1]
            fits &= per_class == want[path].shape[-1] / len(categories)
            kind = "reinitialized" if fits else "misshapen"
        else:
            kind = "kept" if have[path].shape == want[path].shape else "misshapen"
        groups[kind].append("/".join(path))
    return Fit(**{kind: tuple(names) for kind, names in groups.items()})


def check(fitted: Fit, trained: Checkpoint, config: ConfigDict) -> None:
    """Raises ValueError, listing the arrays, where others than the classification output differ.

    And where they fit, but the config gives them another meaning.
    """
    found = list(differences(plain(trained.config), plain(config)))
    differing = [
        f"config.{name} is {have} there and {want} here"
        for name, have, want in found
        if name.partition(".")[0] in DEFINING and name not in FREE
        if not (name == "model.norm" and {have, want} <= NORMS_OF_FOUR_ARRAYS)
    ]
    lists = {name: getattr(fitted, name) for name in ("missing", "unexpected", "misshapen")}
    wrong = [f"{name}: {listed(names)}" for name, names in lists.items() if names]
    if wrong or differing:
        raise ValueError(
            f"{trained.folder}: its weights can't start this run's network; "
            f"{'; '.join(wrong + differing[:LISTED])}. "
            "Give this run the checkpoint's config.model, config.anchors and config.input."
        )


def table(fitted: Fit, trained: Checkpoint, categories: Sequence[Category]) -> str:
    """The lines that tell a person what a run starts from."""
    parts: dict[str, int] = {}
    for name in fitted.kept:
        part = name.partition("/")[0]
        parts[part] = parts.get(part, 0) + 1
    names = {
        "kept": ", ".join(f"{part} {count}" for part, count in parts.items()),
        "re-initialised": ", ".join(fitted.reinitialized),
        "missing": ", ".join(fitted.missing),
        "unexpected": ", ".join(fitted.unexpected),
        "misshapen": ", ".join(fitted.misshapen),
    }
    lines = [
        f"weights of {trained.folder} (step {trained.step}, {len(trained.categories)} classes) "
        f"for {len(categories)} classes"
    ]
    for kind, group in zip(names, fitted, strict=True):
        if group or kind != "misshapen":
            lines.append(f"  {kind:<14} {len(group):>4} arrays  {names[kind]}".rstrip())
    if fitted.reinitialized:
        rows = shared_classes(trained.categories, categories)
        same = ", ".join(categories[k].name for k in rows)
        new = ", ".join(one.name for k, one in enumerate(categories) if k not in rows)
        lines += [
            f"  of the re-initialised, the rows of {len(rows)} classes that both have are kept: "
            f"{same or 'none'}",
            f"  new classes: {new or 'none'}",
        ]
    return "\n".join(lines)


def transferred(
    trained: Checkpoint, variables: Mapping[str, Any], categories: Sequence[Category]
) -> dict[str, Any]:
    """`variables` with all that `trained` has for them; `fit` and `check` say that it fits."""
    have = by_path(trained.variables)
    names = fit(trained, variables, categories).reinitialized
    rows = shared_classes(trained.categories, categories)

    def taken(path: Path, leaf: Any) -> np.ndarray:
        if "/".join(path) not in names:
            return have[path].astype(leaf.dtype)
        old = have[path].reshape(*leaf.shape[:-1], -1, len(trained.categories))  # ... A K
        new = np.array(leaf).reshape(*leaf.shape[:-1], -1, len(categories))
        new[..., list(rows)] = old[..., list(rows.values())]
        return new.reshape(leaf.shape)

    return {
        name: traverse_util.unflatten_dict(
            {path: taken(path, leaf) for path, leaf in traverse_util.flatten_dict(tree).items()}
        )
        for name, tree in variables.items()
    }
