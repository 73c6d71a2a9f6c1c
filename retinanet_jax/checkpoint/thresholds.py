"""The score thresholds that `retinanet-jax analyze` stores in a checkpoint, in its file FILE.

They are the scores from which on the F1 of the detections is highest. Prediction and exports use
them; evaluation and training, which need detections of every score, do not.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from retinanet_jax.checkpoint import integrity
from retinanet_jax.checkpoint.integrity import DamagedError
from retinanet_jax.data.sources.base import Category
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.progress import one_line

FILE = "thresholds.json"  # in the folder of a checkpoint


class Thresholds(NamedTuple):
    """The scores above which detections are returned; each is at least 0 and less than 1.

    Attributes:
        overall: That of categories without one of their own.
        categories: Those of categories, by name.
    """

    overall: float
    categories: Mapping[str, float]

    def by_class(self, categories: Sequence[Category]) -> tuple[float, ...]:
        """Return the threshold of each class of a detector with these categories."""
        return tuple(self.categories.get(category.name, self.overall) for category in categories)


def read_thresholds(folder: pathlib.Path) -> Thresholds | None:
    """Return the thresholds that are stored in the checkpoint in `folder`; None if none are.

    Raises:
        DamagedError: If the file has no thresholds.
    """
    file, digests = folder / FILE, integrity.read_digests(folder)
    # A file that is not among the digests is not completely stored, see `store_thresholds`.
    if not (file.exists() if digests is None else FILE in digests):
        return None
    try:
        stored = json.loads(file.read_bytes())
        return _checked(Thresholds(stored["overall"], dict(stored["categories"])))
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{file} is damaged: it has no thresholds") from None


def store_thresholds(folder: pathlib.Path, thresholds: Thresholds) -> None:
    """Store thresholds in a complete checkpoint, in place of those that it may have.

    If this process is killed meanwhile, the checkpoint has the earlier ones, none, or these.

    Args:
        folder: The folder of the checkpoint.
        thresholds: The thresholds.

    Raises:
        ValueError: If a threshold is out of range.
        OSError: If the files cannot be written.
    """
    content = _checked(thresholds)._asdict()
    digests = integrity.read_digests(folder)
    if digests is None:  # written by a version before 0.5.0
        write_json(folder / FILE, content)
        return
    others = {name: digest for name, digest in digests.items() if name != FILE}
    if FILE in digests:  # the digest of the earlier ones must not remain when these are written
        integrity.write_digests(folder, others)
    write_json(folder / FILE, content)
    integrity.write_digests(folder, {**others, FILE: integrity.digest(folder / FILE)})


def _checked(thresholds: Thresholds) -> Thresholds:
    """Return the thresholds; ValueError if one is not a number, or out of range."""
    named: list[tuple[str, Any]] = [("all", thresholds.overall), *thresholds.categories.items()]
    for name, value in named:
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if not is_number or not 0 <= value < 1:
            raise ValueError(
                f"the score threshold of {one_line(name)[:50]!r} is {value!r}; it must be at least "
                "0 and less than 1."
            )
    return thresholds
