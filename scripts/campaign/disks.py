"""Disks that are full or read-only, a folder that is removed, and checkpoints that are damaged."""

import contextlib
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Container, Iterator
from typing import Any

from retinanet_jax.checkpoint import FOLDER
from scripts.campaign import runs
from scripts.campaign.runs import Ended, Reference

DISK_SIZE = "48m"
# When the disk becomes full: what the output contains then.
FULL_AT = {
    "before the start": None,
    "before the start, nothing compiled yet": None,
    "compilation": "compiling training",
    "step 1": "step 1/",
    "while the first checkpoint is written": "step 3/",
    "step 5": "step 5/",
    "evaluation": "evaluating step 6",
    "the last step": "step 12/",
}
READ_ONLY_AT = {"before the start": None, "step 2": "step 2/", "step 8": "step 8/"}


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Mount a small disk in memory at `folder`, for as long as the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_SIZE}", "campaign"]
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: pathlib.Path) -> None:
    """Fill the disk with a file."""
    with (folder / "filler").open("wb", buffering=0) as file:
        size = 2**20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def make_read_only(folder: pathlib.Path) -> None:
    """Let everything that opens a file in `folder` from now on find a read-only disk."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def run_with_trouble(workdir: pathlib.Path, at: str | None, trouble: Callable[[], object]) -> Ended:
    """Start a run, cause the trouble when the output contains `at`, and return how it ended."""
    if at is None:
        trouble()
        return runs.finish(workdir)[0]
    (process,) = runs.start(workdir)
    process.wait_until(lambda: at in process.stdout and is_writing(at, workdir))
    trouble()
    return process.end()


def is_writing(at: str, workdir: pathlib.Path) -> bool:
    """Return whether a checkpoint is being written, if that is what the trouble waits for."""
    return at != FULL_AT["while the first checkpoint is written"] or any(
        (workdir / FOLDER).glob("*tmp*")
    )


def problems_of_error(ended: Ended, path: pathlib.Path) -> list[str]:
    """Return what was wrong with the end of a run that could not write to `path`."""
    lines = ended.error.splitlines()
    problems = [] if ended.status == 1 else [f"status {ended.status}"]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        problems.append(f"{len(lines)} lines on stderr")
    elif str(path) not in lines[0]:
        problems.append("the line does not name the folder")
    return problems


def record_of(
    name: str, ended: Ended, workdir: pathlib.Path, reference: Reference
) -> dict[str, Any]:
    """Start the run again, and return the record of the trouble and of the run after it."""
    problems = problems_of_error(ended, workdir)
    (again,) = runs.finish(workdir)
    if problems or again.status:
        (workdir.parent.parent / f"{name}.txt").write_text(f"{ended.stdout}\n{ended.stderr}\n---\n")
    if again.status:
        problems.append(f"the next start ended with {again.status}: {again.error[-200:]}")
    else:
        problems += reference.problems(workdir)
    line = (ended.error.splitlines() or [""])[-1].replace(str(workdir), "WORKDIR")
    return {
        "name": name,
        "line": line[:400],
        "last_step": ended.last_step,
        "resumed_from": again.first_step,
        "problems": problems,
    }


def run(
    folder: pathlib.Path, reference: Reference, chosen: Container[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Run with each trouble, and yield their records.

    Args:
        folder: The campaign's folder.
        reference: The run without damage.
        chosen: The names of some troubles; None for all.
    """
    cases: dict[str, Callable[[str], dict[str, Any]]] = {}
    for at in FULL_AT:
        cases[f"disk full: {at}"] = lambda name, at=at: run_full(folder, reference, name, at)
    for at in READ_ONLY_AT:
        cases[f"read-only: {at}"] = lambda name, at=at: run_read_only(folder, reference, name, at)
    cases["workdir removed: step 5"] = lambda name: run_removed(folder, reference, name)
    for damage in DAMAGE:
        cases[f"checkpoint: {damage}"] = lambda name, damage=damage: run_damaged(
            folder, reference, name, damage
        )
    for name, case in cases.items():
        if chosen is None or name in chosen:
            yield case(name)


def run_full(folder: pathlib.Path, reference: Reference, name: str, at: str) -> dict[str, Any]:
    """Run on a disk that becomes full."""
    with disk(folder / "disk") as small:
        cache = None if "nothing compiled" in at else folder / "cache"
        workdir = runs.make_workdir(small / "run", cache)
        ended = run_with_trouble(workdir, FULL_AT[at], lambda: fill(small))
        (small / "filler").unlink()
        return record_of(name, ended, workdir, reference)


def run_read_only(folder: pathlib.Path, reference: Reference, name: str, at: str) -> dict[str, Any]:
    """Run on a disk that becomes read-only."""
    with disk(folder / "disk") as small:
        workdir = runs.make_workdir(small / "run", folder / "cache")
        ended = run_with_trouble(workdir, READ_ONLY_AT[at], lambda: make_read_only(workdir))
        subprocess.run(["umount", str(workdir)], check=True)
        return record_of(name, ended, workdir, reference)


def run_removed(folder: pathlib.Path, reference: Reference, name: str) -> dict[str, Any]:
    """Run in a folder that is removed."""
    workdir = runs.make_workdir(folder / "removed", folder / "cache")

    def remove() -> None:
        # At once, whatever the run is writing meanwhile.
        gone = workdir.rename(folder / "gone")
        shutil.rmtree(gone, ignore_errors=True)

    ended = run_with_trouble(workdir, "step 5/", remove)
    return record_of(name, ended, workdir, reference)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    """Return the largest file in a folder: in an item of a checkpoint, arrays."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: pathlib.Path, fraction: float) -> None:
    """Keep only the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])


def replace_by_earlier(folder: pathlib.Path) -> None:
    """Replace the network of a checkpoint by that of the one before."""
    earlier = folder.with_name(str(int(folder.name) - runs.CHECKPOINT_EVERY))
    shutil.rmtree(folder / "variables")
    shutil.copytree(earlier / "variables", folder / "variables")


DAMAGE: dict[str, Callable[[pathlib.Path], object]] = {
    "a bit of the parameters flipped": lambda step: flip(largest_file(step / "variables")),
    "a bit of the optimizer state flipped": lambda step: flip(largest_file(step / "training")),
    "the parameters truncated": lambda step: truncate(largest_file(step / "variables"), 0.5),
    "the parameters empty": lambda step: truncate(largest_file(step / "variables"), 0.0),
    "a file of arrays missing": lambda step: largest_file(step / "variables").unlink(),
    "the parameters of an earlier step": replace_by_earlier,
    "the item variables missing": lambda step: shutil.rmtree(step / "variables"),
    "the item training missing": lambda step: shutil.rmtree(step / "training"),
    "a bit of the config flipped": lambda step: flip(step / "config" / "metadata"),
    "the categories empty": lambda step: truncate(step / "categories" / "metadata", 0.0),
    "the digests truncated": lambda step: truncate(step / "digests.json", 0.5),
    "the digests missing": lambda step: (step / "digests.json").unlink(),
}


def run_damaged(
    folder: pathlib.Path, reference: Reference, name: str, damage: str
) -> dict[str, Any]:
    """Resume from a folder of which the newest checkpoint is damaged."""
    killed = folder / "killed-at-the-last-step"
    if not killed.exists():
        (process,) = runs.start(runs.make_workdir(killed, folder / "cache"))
        process.wait_until(lambda: "step 12/" in process.stdout)
        process.send(runs.SIGNALS["SIGKILL"])
        process.end()
    workdir = folder / "damaged"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(killed, workdir, symlinks=True)
    newest = runs.checkpoints(workdir)[-1]
    DAMAGE[damage](newest)
    (ended,) = runs.finish(workdir)
    output = f"{ended.stdout}{ended.error}"
    lines = [line for line in output.splitlines() if str(newest) in line]
    problems = [f"status {ended.status}"] if ended.status else reference.problems(workdir)
    # Without digests it is an incomplete checkpoint, such as an interrupted save leaves.
    if len(lines) != 1 and damage != "the digests missing":
        problems.append(f"{len(lines)} lines name the checkpoint")
    if ended.first_step == int(newest.name):
        problems.append("resumed from the damaged checkpoint")
    return {
        "name": name,
        "line": (lines or [""])[0].replace(str(workdir), "WORKDIR")[:400],
        "resumed_from": ended.first_step,
        "problems": problems,
    }


def table(records: list[dict[str, Any]]) -> str:
    """Return the troubles as a table in Markdown."""
    lines = ["| trouble | line | resumed from step | then right |", "| --- | --- | --- | --- |"]
    for record in records:
        right = "yes" if not record["problems"] else "; ".join(record["problems"])
        line = record["line"].replace("|", "\\|")
        lines.append(f"| {record['name']} | {line} | {record['resumed_from']} | {right} |")
    return "\n".join(lines)
