"""The transfer of a detector's weights to a run with other classes.

All arrays are taken from the checkpoint, except for the classification output, the only layer that
depends on the classes: its rows are taken for classes of the same name and stay random for the
others. `plan_transfer` decides which arrays are taken, `format_table` shows them to the user,
`check_transfer` raises an error for a checkpoint of another network, and `transfer_variables`
copies the arrays.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.base import Category
from retinanet_jax.stored_config import network_differences
from retinanet_jax.weights.resnet import MAX_NAMES, join_names

# The channels of this layer are in the order anchor, class.
CLASSIFICATION_OUTPUT = ("classification_head", "predict")
# Fields of the network that change results only in and near the padding, to which a run adapts.
PADDING_FIELDS = ("model.padding", "anchors.stride_rule")
# Fields that choose_anchors sets. A run adapts to other shapes of anchors, and their number is that
# of the channels.
ANCHOR_FIELDS = ("anchors.base_scale", "anchors.scales", "anchors.ratios")

Path = tuple[str, ...]


class TransferPlan(NamedTuple):
    """The arrays of a network and a checkpoint, in groups, by their names without collections."""

    transferred: tuple[str, ...]  # taken from the checkpoint
    reinitialized: tuple[str, ...]  # taken only for classes of the same name, otherwise random
    missing: tuple[str, ...]  # only in the network
    unexpected: tuple[str, ...]  # only in the checkpoint
    misshapen: tuple[str, ...]  # in both, with different shapes


def plan_transfer(
    source: Checkpoint, variables: Mapping[str, Any], categories: Sequence[Category]
) -> TransferPlan:
    """Return which arrays of a network can be taken from the checkpoint `source`.

    Args:
        source: The checkpoint of a detector.
        variables: The network's variables, as arrays or shapes.
        categories: The categories that the network detects.
    """
    saved, current = merge_collections(source.variables), merge_collections(variables)
    same_classes = [c.name for c in source.categories] == [c.name for c in categories]
    names: dict[str, list[str]] = {group: [] for group in TransferPlan._fields}
    for path in sorted({*saved, *current}):
        if path not in saved:
            group = "missing"
        elif path not in current:
            group = "unexpected"
        elif path[:2] == CLASSIFICATION_OUTPUT and not same_classes:
            # If the anchors of a cell differ too, no rows of any class correspond.
            anchors_per_cell = saved[path].shape[-1] / len(source.categories)
            fits = saved[path].shape[:-1] == current[path].shape[:-1]
            fits &= anchors_per_cell == current[path].shape[-1] / len(categories)
            group = "reinitialized" if fits else "misshapen"
        else:
            same_shape = saved[path].shape == current[path].shape
            group = "transferred" if same_shape else "misshapen"
        names[group].append("/".join(path))
    return TransferPlan(**{group: tuple(paths) for group, paths in names.items()})


def check_transfer(plan: TransferPlan, source: Checkpoint, config: ConfigDict) -> None:
    """Check that only the classification output differs between the two networks.

    Args:
        plan: The plan that `plan_transfer` returns for `source`.
        source: The checkpoint of a detector.
        config: The config of the run that starts from its weights.

    Raises:
        ValueError: If other arrays are missing, unexpected or misshapen, or if the config has
            fields that change the meaning of the arrays; the message lists the arrays and fields.
    """
    problems = [
        f"{group}: {join_names(names)}"
        for group in ("missing", "unexpected", "misshapen")
        if (names := getattr(plan, group))
    ]
    adapted = PADDING_FIELDS + (ANCHOR_FIELDS if config.choose_anchors else ())
    fields = [
        f"config.{name} is {saved} in the checkpoint and {current} in this run"
        for name, saved, current in network_differences(source.config, config)
        if name not in adapted
    ]
    if problems or fields:
        raise ValueError(
            f"{source.folder}: the weights do not fit this run's network; "
            f"{'; '.join(problems + fields[:MAX_NAMES])}. "
            "Use the checkpoint's config.model, config.anchors and config.input in this run."
        )


def format_table(plan: TransferPlan, source: Checkpoint, categories: Sequence[Category]) -> str:
    """Return a table that shows the user which weights of a checkpoint a run starts from.

    Args:
        plan: The plan that `plan_transfer` returns for `source`.
        source: The checkpoint of a detector.
        categories: The categories that the run's network detects.
    """
    modules = Counter(name.partition("/")[0] for name in plan.transferred)
    contents = plan._asdict() | {
        "transferred": [f"{module} {count}" for module, count in modules.items()]
    }
    lines = [
        f"weights of {source.folder} (step {source.step}, {len(source.categories)} classes) "
        f"for {len(categories)} classes"
    ]
    for (group, content), names in zip(contents.items(), plan, strict=True):
        if names or group != "misshapen":
            title = "re-initialized" if group == "reinitialized" else group
            lines.append(f"  {title:<14} {len(names):>4} arrays  {', '.join(content)}".rstrip())
    if plan.reinitialized:
        rows = shared_classes(source.categories, categories)
        shared = ", ".join(categories[k].name for k in rows)
        new = ", ".join(category.name for k, category in enumerate(categories) if k not in rows)
        lines += [
            f"  rows of the re-initialized arrays that are transferred, for {len(rows)} classes of "
            f"the same name: {shared or 'none'}",
            f"  new classes: {new or 'none'}",
        ]
    return "\n".join(lines)


def transfer_variables(
    source: Checkpoint, variables: Mapping[str, Any], categories: Sequence[Category]
) -> dict[str, Any]:
    """Return the variables with the arrays and rows that can be taken from the checkpoint `source`.

    Args:
        source: The checkpoint of a detector that `check_transfer` accepts.
        variables: The network's variables, with random values.
        categories: The categories that the network detects.
    """
    saved = merge_collections(source.variables)
    reinitialized = plan_transfer(source, variables, categories).reinitialized
    rows = shared_classes(source.categories, categories)

    def transfer(path: Path, leaf: Any) -> np.ndarray:
        if "/".join(path) not in reinitialized:
            return saved[path].astype(leaf.dtype)
        old = saved[path].reshape(*leaf.shape[:-1], -1, len(source.categories))  # ... a K
        new = np.array(leaf).reshape(*leaf.shape[:-1], -1, len(categories))
        new[..., list(rows)] = old[..., list(rows.values())]
        return new.reshape(leaf.shape)

    return {
        collection: traverse_util.unflatten_dict(
            {path: transfer(path, leaf) for path, leaf in traverse_util.flatten_dict(tree).items()}
        )
        for collection, tree in variables.items()
    }


def merge_collections(variables: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the arrays of all collections by their path in the network.

    Frozen and trained batch norms have the same four arrays in different collections: the scale and
    the bias of a trained norm are parameters, those of a frozen norm are statistics like its mean
    and var.
    """
    return {
        path: leaf
        for tree in variables.values()
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }


def shared_classes(old: Sequence[Category], new: Sequence[Category]) -> dict[int, int]:
    """Return, for each new class with the name of an old one, the index of the old one."""
    old_index = {category.name: k for k, category in reversed(list(enumerate(old)))}
    return {
        k: old_index[category.name] for k, category in enumerate(new) if category.name in old_index
    }
