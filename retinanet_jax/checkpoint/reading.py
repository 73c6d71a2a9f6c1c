"""Reading of checkpoints: which one of a working directory, its items and its AP."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from retinanet_jax import stored_config
from retinanet_jax.checkpoint import integrity
from retinanet_jax.checkpoint.failures import silence_orbax
from retinanet_jax.checkpoint.finite import not_finite
from retinanet_jax.checkpoint.integrity import DamagedError
from retinanet_jax.checkpoint.thresholds import Thresholds, read_thresholds
from retinanet_jax.data.sources.base import Category
from retinanet_jax.utils.paths import scheme_of, to_path
from retinanet_jax.utils.progress import join_first, one_line
from retinanet_jax.utils.remote import local_copy

FOLDER = "checkpoints"
AP_FILE = "metrics/metrics"  # in the folder of a checkpoint
NOT_MEASURED = -1.0  # AP of a checkpoint that was not evaluated: lower than any other


def item_handlers() -> dict[str, Any]:
    """Return each item's handler; without them Orbax cannot read what another process wrote."""
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "categories": ocp.JsonCheckpointHandler(),
    }


class Checkpoint(NamedTuple):
    """A checkpoint in memory: all that prediction, evaluation and exports need."""

    variables: dict[str, Any]  # numpy arrays
    config: ConfigDict
    categories: tuple[Category, ...]
    step: int
    folder: pathlib.Path
    thresholds: Thresholds | None = None  # that `analyze` has stored

    @property
    def score_thresholds(self) -> tuple[float, ...] | None:
        """The stored threshold of each class; None if none are stored."""
        return self.thresholds and self.thresholds.by_class(self.categories)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint to the host, whatever devices it was saved on.

    Its files are compared with their digests first. All hosts read what the first host has chosen.

    Args:
        path: A working directory, of which the checkpoint with the highest AP is read (the newest
            if none was evaluated), or the folder of one step. In a working directory, damaged
            checkpoints are skipped with a line that names the file.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        DamagedError: If the checkpoint, or each of those in the working directory, is damaged.
        ValueError: If another version of this package wrote it, with fields that are unknown here.
    """
    path = to_path(path)
    while True:
        folder = _choose_together(path)
        try:
            return _read(folder)
        except Exception:
            # A run that is training may have deleted it meanwhile, in favor of a better one.
            if folder.exists() and integrity.is_complete(folder):
                raise


def _choose_together(path: pathlib.Path) -> pathlib.Path:
    """Return, on all hosts, the folder that `choose` returns on the first one."""

    def step() -> int | None:
        folder = choose(path)
        return None if folder == path else int(folder.name)

    chosen = step_of_first_host(step)
    return path if chosen is None else _steps_folder(path) / str(chosen)


def step_of_first_host(choose_step: Callable[[], int | None]) -> int | None:
    """Return, on all hosts, the step that a function returns on the first one, or None."""
    step = choose_step() if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        common = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
        step = None if common < 0 else common
    return step


def choose(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of the best checkpoint that is not damaged, and print which are.

    Args:
        path: A working directory, or the folder of one step.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        DamagedError: If all of them are damaged.
    """
    damage: list[DamagedError] = []
    for folder in candidates(path):
        try:
            check(folder)
        except DamagedError as error:
            if not folder.exists():  # deleted by a run that is training
                return choose(path)
            damage.append(error)
        else:
            for error in damage:
                print(f"{error}; skipped, {folder} is used", flush=True)
            return folder
    others = f"; {len(damage) - 1} other checkpoints here are damaged, too" if damage[1:] else ""
    raise DamagedError(f"{damage[0]}{others}; give another checkpoint.")


def check(folder: pathlib.Path) -> None:
    """Check that all files of a checkpoint are as they were written.

    One of an earlier version, which has no digests, is read instead, and must be finite.

    Raises:
        DamagedError: If a file is missing, altered or unreadable, or an array is not finite.
    """
    if not integrity.verify(folder):
        with unreadable_is_damaged(folder):
            variables = _read(folder).variables
            handler: Any = ocp.PyTreeCheckpointHandler()
            shapes = handler.metadata(folder / "training").tree
            training = _restore(folder, {"training": handler}, training=_as_numpy(shapes))
        if names := not_finite({**variables, **training["training"]}):
            raise DamagedError(f"{folder} has arrays that are not finite: {join_first(names)}")


@contextlib.contextmanager
def unreadable_is_damaged(folder: pathlib.Path) -> Iterator[None]:
    """Raise DamagedError in place of the errors with which reading a checkpoint may end.

    Orbax, tensorstore and the parsers below them raise errors of a dozen types.
    """
    try:
        yield
    except (DamagedError, PermissionError, MemoryError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise DamagedError(f"{folder} is damaged: it cannot be read ({cause})") from None


def _read(folder: pathlib.Path) -> Checkpoint:
    """Read a checkpoint to this host."""
    files = folder if scheme_of(folder) in ("", "gs") else local_copy(folder)  # Orbax reads these
    # Unlike the standard handler, this handler can read a part of an item.
    handlers = {**item_handlers(), "training": ocp.PyTreeCheckpointHandler()}
    shapes = handlers["variables"].metadata(files / "variables").tree
    saved = _restore(
        files,
        handlers,
        # Without a target Orbax requires the devices that the arrays were saved on.
        variables=ocp.args.StandardRestore(
            jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        ),
        training=_as_numpy({"step": np.zeros((), np.int32)}),
        config=ocp.args.JsonRestore(),
        categories=ocp.args.JsonRestore(),
    )
    return Checkpoint(
        variables={"batch_stats": {}, **saved["variables"]},
        config=_parse_config(folder, saved["config"]),
        categories=to_categories(saved["categories"]),
        step=int(saved["training"]["step"]),
        folder=folder,
        thresholds=read_thresholds(folder),
    )


def _as_numpy(shapes: Any) -> ocp.args.PyTreeRestore:
    """Return arguments for reading the arrays of a tree, which may be a part of the item."""
    types = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), shapes)
    return ocp.args.PyTreeRestore(shapes, restore_args=types, partial_restore=True)


def _restore(folder: pathlib.Path, handlers: Mapping[str, Any], **items: Any) -> dict[str, Any]:
    """Return items of a checkpoint, without waiting for other hosts."""
    silence_orbax()
    index = jax.process_index()
    this_host = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    handler = ocp.CompositeCheckpointHandler(**handlers)
    with contextlib.closing(
        ocp.Checkpointer(handler, multiprocessing_options=this_host)
    ) as checkpointer:
        return checkpointer.restore(folder, args=ocp.args.Composite(**items))


def read_config(folder: pathlib.Path) -> ConfigDict:
    """Return the config of the checkpoint in `folder`; a single host may call this.

    Raises:
        DamagedError: If it cannot be read.
        ValueError: If another version of this package wrote it, with fields that are unknown here.
    """
    # Not with Orbax, which waits for all hosts.
    file = folder / "config" / "metadata"
    with unreadable_is_damaged(folder):
        stored = json.loads(file.read_text())
    return _parse_config(folder, stored)


def best_config(path: pathlib.Path) -> ConfigDict:
    """Return the config of the best checkpoint of a working directory that has a readable one.

    Args:
        path: A working directory, or the folder of one step.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        DamagedError: If none has a readable config.
        ValueError: As in `read_config`.
    """
    folders = candidates(path)
    for folder in folders[:-1]:
        with contextlib.suppress(DamagedError):
            return read_config(folder)
    return read_config(folders[-1])


def newest_config(workdir: pathlib.Path) -> ConfigDict | None:
    """Return the config of the newest checkpoint with a readable one; None if there is none.

    Raises:
        ValueError: As in `read_config`.
    """
    for folder in reversed(step_folders(workdir / FOLDER)):
        with contextlib.suppress(DamagedError):
            return read_config(folder)
    return None


def _parse_config(folder: pathlib.Path, stored: Mapping[str, Any]) -> ConfigDict:
    """Return the config that a checkpoint stores as JSON; error messages begin with its folder."""
    try:
        return stored_config.config_from_json(stored)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def find(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of one step's checkpoint: `path` itself, or the best one in it.

    Its files are not checked.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    return candidates(path)[0]


def candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints of a working directory, best first, or that of one step.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    if any((path / name).exists() for name in ("variables", "config", integrity.DIGESTS)):
        if not integrity.is_complete(path):
            raise FileNotFoundError(
                f"{path}: an incomplete checkpoint, which a run has not finished to write; give "
                "another one, or the working directory of the run."
            )
        return [path]
    steps = step_folders(_steps_folder(path))
    if not steps:
        raise FileNotFoundError(
            f"{path}: no checkpoint here; give the working directory of a training run, or one of "
            f"its {FOLDER}/STEP folders."
        )
    return sorted(steps, key=lambda step: (_rank(step), int(step.name)), reverse=True)


def _steps_folder(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of the checkpoints of a working directory, which may be given itself."""
    return path if path.name == FOLDER else path / FOLDER


def _rank(folder: pathlib.Path) -> float:
    """Return the AP of a checkpoint; a damaged one is first, so that the damage is found."""
    try:
        return saved_ap(folder)
    except DamagedError:
        return float("inf")


def newest_step(workdir: pathlib.Path) -> int:
    """Return the step of the newest checkpoint of a working directory; 0 if there is none."""
    return max((int(folder.name) for folder in step_folders(workdir / FOLDER)), default=0)


def step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints in a folder, in the order of their steps.

    They may be damaged.
    """
    complete = [p for p in folder.glob("*") if p.name.isdigit() and integrity.is_complete(p)]
    return sorted(complete, key=lambda path: int(path.name))


def has_ap(folder: pathlib.Path) -> bool:
    """Return whether the AP of a checkpoint was recorded, even if it is undefined."""
    digests = integrity.read_digests(folder)
    return (folder / AP_FILE).exists() if digests is None else AP_FILE in digests


def saved_ap(folder: pathlib.Path) -> float:
    """Return the AP of a checkpoint; NOT_MEASURED if it is undefined or not (yet) known.

    Raises:
        DamagedError: If it cannot be read, or was altered.
    """
    if not has_ap(folder):
        return NOT_MEASURED
    file = folder / AP_FILE
    if digests := integrity.read_digests(folder):
        integrity.verify_file(file, digests[AP_FILE])
    try:
        return float(json.loads(file.read_text())["AP"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{file} is damaged: it has no AP") from None


def read_categories(folder: pathlib.Path) -> tuple[Category, ...]:
    """Return the categories of the checkpoint in `folder`; a single host may call this."""
    return to_categories(json.loads((folder / "categories" / "metadata").read_text()))


def to_categories(saved: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Return the categories that a checkpoint stores as JSON."""
    return tuple(Category(**category) for category in saved)
