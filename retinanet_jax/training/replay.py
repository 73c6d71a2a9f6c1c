"""The file of a step that is not finite, and the replay of the step from it, without a dataset.

The file, WORKDIR/replay/step_S.npz, contains the whole batch, the state before the step, the config
and the names of the batch's images.
"""

import json
import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from retinanet_jax import sharding, stored_config
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Category
from retinanet_jax.modeling import build_model
from retinanet_jax.training.diagnosis import Diagnosis, ImageName, make_diagnose, shorten
from retinanet_jax.training.initialization import random_train_state
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, jit_train_step, state_shardings
from retinanet_jax.utils.files import open_atomically, to_json
from retinanet_jax.utils.progress import join_first

FOLDER = "replay"
# What Python's and numpy's readers of zip files raise, depending on the byte that is wrong.
DAMAGES = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, OverflowError),
    *(MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
)


class StoredStep(NamedTuple):
    """A step before it is taken; all arrays are in the host's memory."""

    step: int  # number of steps done after it
    config: ConfigDict
    categories: tuple[Category, ...]
    images: tuple[ImageName, ...]  # of the batch
    batch: Batch  # of all hosts
    state: TrainState


def path_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return the file of a step in a working directory."""
    return workdir / FOLDER / f"step_{step}.npz"


def to_host(tree: Any) -> Any:
    """Return arrays of the devices, of which each host may have a part, as whole numpy arrays."""
    return multihost_utils.process_allgather(tree, tiled=True)


def write_step(path: pathlib.Path, stored: StoredStep) -> None:
    """Write the file of a step completely or not at all.

    Args:
        path: The file; its folder is created if it does not exist.
        stored: The step.

    Raises:
        OSError: If the file cannot be written.
    """
    description = {
        "step": stored.step,
        "config": stored_config.config_to_json(stored.config),
        "categories": stored.categories,
        "images": stored.images,
    }
    arrays: dict[str, Any] = {
        "description": np.array(to_json(description)),
        **named_arrays(stored.batch._asdict(), "batch"),
        **named_arrays(saved_part(stored.state), "state"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as file:
        np.savez(file, **arrays)


def read_step(path: pathlib.Path, overrides: Mapping[str, Any]) -> StoredStep:
    """Read the file of a step.

    Args:
        path: The file.
        overrides: Values of config fields, by their dotted names, instead of those in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no such file, or if its state does not fit the config.
    """
    arrays = read_arrays(path)
    try:
        description = json.loads(str(arrays.pop("description")))
        stored = description["config"]
        categories = tuple(Category(*category) for category in description["categories"])
        images = tuple(ImageName(*image) for image in description["images"])
        step = int(description["step"])
        batch = Batch(**{name: arrays.pop(f"batch/{name}") for name in Batch._fields})
    except DAMAGES as error:
        raise damaged(path, error) from None
    try:
        config = stored_config.config_from_json(stored)
    except ValueError as error:
        raise ValueError(f"--replay={path}: {error}") from None
    print_overrides(config, overrides)
    config.update_from_flattened_dict(overrides)
    check_fields(config)
    return StoredStep(
        step, config, categories, images, batch, restore(path, arrays, config, len(categories))
    )


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name, after a check of their digests.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no file of arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--replay={path}: no such file.")
    try:
        with zipfile.ZipFile(path) as file:
            if name := file.testzip():
                raise zipfile.BadZipFile(f"{name} is damaged")
        with np.load(path) as file:
            return dict(file)
    except DAMAGES as error:
        raise damaged(path, error) from None


def damaged(path: pathlib.Path, error: BaseException) -> ValueError:
    """Return the error of a file that cannot be read.

    Args:
        path: The file.
        error: What was raised.
    """
    return ValueError(
        f"--replay={path}: no file of a step, or it is damaged ({type(error).__name__}: "
        f"{shorten(str(error))}); give WORKDIR/{FOLDER}/step_S.npz, as an error message names it."
    )


def print_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Print in one line which fields of a config are replaced."""
    if overrides:
        before = dict(stored_config.flatten(config))
        listed = (f"config.{name}={x} (was {before[name]})" for name, x in overrides.items())
        print(f"replaying with {', '.join(listed)}", flush=True)


def saved_part(state: TrainState) -> dict[str, Any]:
    """Return the arrays of a state that are stored: all but the flag of a step in flight."""
    return {name: x for name, x in state._asdict().items() if name != "is_finite"}


def named_arrays(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays of a tree by name, such as state/params/fpn/p6/bias."""
    leaves = jax.tree_util.tree_leaves_with_path({prefix: tree})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def restore(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], config: ConfigDict, num_classes: int
) -> TrainState:
    """Return the state that consists of named arrays.

    Args:
        path: The file that they come from, for the error message.
        arrays: The arrays, by the names that `named_arrays` gives.
        config: A run's config.
        num_classes: Number of classes that the network detects.

    Raises:
        ValueError: If the config has another network or optimizer.
    """
    optimizer = make_optimizer(config)
    shapes = saved_part(jax.eval_shape(lambda: random_train_state(config, num_classes, optimizer)))
    names = named_arrays(shapes, "state")
    there, here = ({name: x.shape for name, x in named.items()} for named in (arrays, names))
    differing = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if differing:
        raise ValueError(
            f"--replay={path}: the config has another network or optimizer than the step's state, "
            f"of which {join_first(differing)} differ; leave out the flags --config.FIELD=VALUE "
            "that change it."
        )
    leaves = [arrays[name] for name in names]
    return TrainState(**jax.tree.unflatten(jax.tree.structure(shapes), leaves))


def replay(path: pathlib.Path, overrides: Mapping[str, Any]) -> None:
    """Take a stored step again on the devices of this host, and print whether it is finite.

    Args:
        path: The file of the step.
        overrides: Values of config fields, by their dotted names, instead of those in the file.

    Raises:
        FloatingPointError: If the step is not finite. Its diagnosis is printed, too.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or does not fit the config or the devices.
    """
    stored = read_step(path, overrides)
    config, batch_size = stored.config, len(stored.images)
    devices, num_parts = jax.local_devices(), config.optimizer.accumulate
    if batch_size % num_parts:
        raise ValueError(
            f"config.optimizer.accumulate={num_parts} must divide the step's {batch_size} images."
        )
    part_size = batch_size // num_parts
    num_devices = math.gcd(part_size, len(devices) // config.space) * config.space
    mesh = sharding.make_mesh(config.space, devices[:num_devices])
    print(
        f"replaying step {stored.step} with {batch_size} images on {num_devices} devices, "
        f"{devices[0].device_kind}",
        flush=True,
    )
    model, optimizer = build_model(config, len(stored.categories)), make_optimizer(config)
    of_state = state_shardings(stored.state.opt_state, config, mesh)

    def state() -> TrainState:  # the step reuses its memory
        return jax.device_put(stored.state, of_state)

    batch = sharding.put_batch(stored.batch, sharding.batch_shardings(mesh))
    _, metrics = jit_train_step(model, optimizer, config, mesh)(state(), batch)
    if metrics["is_finite"]:
        print(
            f"step {stored.step} is finite here: loss {float(metrics['loss']):g}, gradient norm "
            f"{float(metrics['gradient_norm']):g}"
        )
        return
    diagnose = make_diagnose(model, optimizer, config, mesh)
    diagnosis = diagnose(state(), batch, stored.step, metrics, stored.images)
    print_diagnosis(diagnosis)
    raise FloatingPointError(diagnosis.summary())


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print each part of a step with numbers that are not finite, and its arrays."""
    for part, arrays in diagnosis.to_json()["arrays"].items():
        print(f"not finite in {part}:")
        for name, described in arrays.items():
            print(f"  {name}: {described['nonfinite']}")
