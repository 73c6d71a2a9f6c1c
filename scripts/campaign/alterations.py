"""Checkpoints of which a bit is flipped or a file truncated: detected, or harmless, never used."""

import collections
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from retinanet_jax import checkpoint
from scripts.campaign import runs
from scripts.campaign.runs import Reference

OUTCOMES = ("detected", "harmless", "loaded", "traceback")
DETECTED = (ValueError, OSError)  # which the commands print in one line


def alter(path: pathlib.Path, random: np.random.Generator) -> str:
    """Flip a bit of a file, or truncate it, and return which."""
    content = bytearray(path.read_bytes())
    position = int(random.integers(len(content)))
    if random.random() < 0.3:
        path.write_bytes(content[:position])
        return "truncated"
    content[position] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    return "flipped"


def outcome(
    folder: pathlib.Path, expected: checkpoint.Checkpoint, expected_arrays: dict[str, np.ndarray]
) -> tuple[str, str]:
    """Load an altered checkpoint; return one of OUTCOMES and the error message."""
    try:
        loaded = checkpoint.load(folder)
        # Resuming reads the item `training`, too, of which loading reads only the step.
        arrays = runs.arrays(folder)
    except DETECTED as error:
        message = str(error)
        return ("traceback" if "\n" in message else "detected"), message
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    same = runs.same_arrays(arrays, expected_arrays) and (
        loaded.config.to_json() == expected.config.to_json()
        and loaded.categories == expected.categories
        and loaded.step == expected.step
    )
    return ("harmless" if same else "loaded"), ""


def run(
    folder: pathlib.Path, reference: Reference, count: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Alter copies of a checkpoint `count` times, and yield the record of each.

    Half of the files are chosen by their sizes, half regardless of them, so that the small ones
    are altered as well.
    """
    original = runs.checkpoints(folder / "reference-1")[-1]
    expected = checkpoint.load(original)
    names = sorted(str(p.relative_to(original)) for p in original.rglob("*") if p.is_file())
    names = [name for name in names if (original / name).stat().st_size]
    sizes = np.array([(original / name).stat().st_size for name in names])
    random = np.random.default_rng(seed)
    copy = folder / "altered" / original.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(original, copy)
    for number in range(count):
        name = str(random.choice(names, p=sizes / sizes.sum() if number % 2 else None))
        method = alter(copy / name, random)
        result, message = outcome(copy, expected, reference.steps[expected.step])
        shutil.copyfile(original / name, copy / name)
        yield {
            "name": f"{name} {method}",
            "method": method,
            "outcome": result,
            "message": message,
            "problems": [f"{result} {message}"] if result in ("loaded", "traceback") else [],
        }


def table(records: list[dict[str, Any]]) -> str:
    """Return the counts as a table in Markdown."""
    lines = [f"| | {' | '.join(OUTCOMES)} |", f"| --- |{' --- |' * len(OUTCOMES)}"]
    for method in ("flipped", "truncated"):
        counts = collections.Counter(r["outcome"] for r in records if r["method"] == method)
        lines.append(f"| {method} | {' | '.join(str(counts[name]) for name in OUTCOMES)} |")
    return "\n".join(lines)
