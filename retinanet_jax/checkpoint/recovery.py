"""The start of a run in a working directory with the checkpoints of earlier runs.

What a killed run has left is removed, and damaged checkpoints are renamed: then they are not in the
way when the run reaches their steps again, and nothing is lost that could be of use.
"""

import pathlib

from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from retinanet_jax.checkpoint import integrity
from retinanet_jax.checkpoint.integrity import DamagedError
from retinanet_jax.checkpoint.reading import (
    FOLDER,
    check,
    saved_ap,
    step_folders,
    step_of_first_host,
)

DAMAGED = "damaged"  # suffix of the folder of a damaged checkpoint


def recover(workdir: pathlib.Path) -> None:
    """Leave only checkpoints that a run can use; all hosts wait until this is done.

    Incomplete checkpoints are removed. Of the others the newest is checked, and if it is damaged,
    the one before. Damaged ones are renamed if an earlier one is intact.

    Args:
        workdir: The working directory of a run; it need not contain checkpoints.

    Raises:
        DamagedError: If all checkpoints are damaged.
        OSError: If one cannot be read, removed or renamed.
    """
    step_of_first_host(lambda: _recover(workdir / FOLDER))


def _recover(folder: pathlib.Path) -> int | None:
    """Do what `recover` does, on the first host; return the step of the newest intact one."""
    remove_incomplete(folder)
    newest: pathlib.Path | None = None
    damaged: list[tuple[pathlib.Path, DamagedError]] = []
    for step in reversed(step_folders(folder)):
        try:
            saved_ap(step)  # on which depends which checkpoints are kept
            if newest is None:
                check(step)
                newest = step
        except DamagedError as error:
            damaged.append((step, error))
    if damaged and newest is None:
        raise DamagedError(
            f"{damaged[0][1]}, and {folder} has no other checkpoint that is intact; put a copy of "
            "one there, or rename the folder to start the training again."
        )
    for step, error in damaged:
        print(f"{error}; renamed to {set_aside(step).name}, resuming from {newest}", flush=True)
    return int(newest.name) if newest else None


def remove_incomplete(folder: pathlib.Path) -> None:
    """Remove the incomplete checkpoints that a killed run left in `folder`, and print which.

    Orbax itself would do so in a thread that outlives its manager and interferes with the next one.
    """
    incomplete = [p for p in folder.glob("*") if p.name.isdigit() and not integrity.is_complete(p)]
    for path in sorted([*folder.glob(f"*{TMP_DIR_SUFFIX}*"), *incomplete]):
        integrity.remove(path)
        print(f"{path}: removed, an earlier run ended before it was complete", flush=True)


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Rename the folder of a damaged checkpoint, and return its new path."""
    names = [f"{folder.name}.{DAMAGED}"]
    while (aside := folder.with_name(names[-1])).exists():
        names.append(f"{folder.name}.{DAMAGED}-{len(names) + 1}")
    folder.rename(aside)
    return aside
