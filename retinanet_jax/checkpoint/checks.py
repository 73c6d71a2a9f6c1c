"""Checks that a checkpoint fits the run that reads it: its network, categories and optimizer."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from retinanet_jax import stored_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.datasets import splits_training_data


def check_resumable(folder: pathlib.Path, training: Any) -> None:
    """Raise ValueError if `training` (Orbax metadata) is that of imported weights."""
    if set(getattr(training, "tree", training)) == {"step"}:
        raise ValueError(
            f"{folder}: imported weights, which training cannot resume from; to start from them "
            f"give --config.init.source=checkpoint --config.init.path={folder.parent.parent} "
            "and another --workdir."
        )


def check_averages(
    folder: pathlib.Path, saved: Any, expected: Mapping[str, Any], batch_size: int
) -> None:
    """Raise ValueError if a checkpoint has another number of moving averages than this run.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: Orbax metadata of the item `training`.
        expected: Shapes of the item `training`.
        batch_size: Images of a batch.
    """
    there = tuple(getattr(saved, "tree", saved)["normalizer"].shape)
    here = tuple(expected["normalizer"].shape)
    if there != here:
        fix = f"--config.loss.ema_images={batch_size // there[0] if there else 0}"
        if there and batch_size % there[0]:
            fix = f"a --config.data.batch_size that is a multiple of {there[0]}"
        raise ValueError(
            f"{folder}: moving averages of shape {there}, this run has {here}; to resume, give "
            f"{fix}."
        )


def check_shapes(path: pathlib.Path | str, saved: Any, expected: Any, description: str) -> None:
    """Check that two trees have arrays of the same names and shapes.

    Args:
        path: The file or folder that `saved` comes from.
        saved: A tree of arrays, or its Orbax metadata.
        expected: A tree of arrays or shapes.
        description: The content of `path` if the trees differ ("weights of another network").

    Raises:
        ValueError: If they differ; the message lists the first differing arrays.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape)
            for keys, leaf in leaves
        }

    there, here = shapes(getattr(saved, "tree", saved)), shapes(expected)
    differing = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if differing:
        listed = ", ".join(
            f"{name} {there.get(name)} (config: {here.get(name)})" for name in differing[:3]
        )
        raise ValueError(
            f"{path}: {description}; {len(differing)} arrays differ: {listed}. "
            "Use the config it was trained with, or another --workdir."
        )


def check_model(folder: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Raise ValueError if `config` describes another network than the config in a checkpoint.

    What is computed twice to save memory may differ, as on a device with less of it.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: The checkpoint's config.
        config: The config of this run.
    """
    for name, before, now in stored_config.differences(saved, config):
        if name.partition(".")[0] in stored_config.NETWORK_SECTIONS and name != "model.remat":
            fix = stored_config.config_flag(name, before)
            if (saved.init.source, config.init.source) == ("keras_resnet50", "checkpoint"):
                fix += "; of configs/finetune.py before 0.4.0: configs/finetune.py:imagenet"
            raise ValueError(
                f"{folder}: trained with config.{name}={before}, this run has {now}; "
                f"use the config it was trained with ({fix}), or another --workdir."
            )


def check_split(folder: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Raise ValueError if `config` holds out other training images than a checkpoint's run did.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: The checkpoint's config.
        config: The config of this run.
    """
    before, now = saved.data.split_groups, config.data.split_groups
    if splits_training_data(saved) and splits_training_data(config) and before != now:
        flag = stored_config.config_flag("data.split_groups", before)
        raise ValueError(
            f"{folder}: trained with config.data.split_groups={before}, this run has {now} and "
            f"would evaluate images that were trained on; add {flag}, or give another --workdir."
        )


def print_differences(folder: pathlib.Path, saved: ConfigDict, config: ConfigDict) -> None:
    """Print in one line which config fields a resumed run changes."""
    changed = [
        f"config.{name}={now} (was {before})"
        for name, before, now in stored_config.differences(saved, config)
    ]
    if changed:
        print(f"{folder}: resuming with {', '.join(changed)}", flush=True)


def check_categories(
    folder: pathlib.Path, saved: Sequence[Category], categories: Sequence[Category]
) -> None:
    """Raise ValueError if a dataset has other categories than a checkpoint, or another order.

    Only the names count: the ids are those of a dataset's files, or an imported detector's outputs.

    Args:
        folder: The checkpoint's folder, for the error message.
        saved: The checkpoint's categories.
        categories: The dataset's categories.
    """
    before, now = ([category.name for category in listed] for listed in (saved, categories))
    if before != now:
        differing = [c for c in saved if c.name not in now]
        differing += [c for c in categories if c.name not in before]
        raise ValueError(
            f"{folder}: trained on {len(saved)} categories, the dataset has {len(categories)}; "
            f"they differ first in {differing[0] if differing else 'their order'}. "
            "Give the --config and fields of its training, or another --workdir."
        )
