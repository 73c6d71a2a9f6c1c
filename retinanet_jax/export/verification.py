"""Whether an artifact finds what its checkpoint finds: both are run, on the same pictures."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from retinanet_jax import core
from retinanet_jax.export.servable import Found, Run, Servable, image_batch
from retinanet_jax.modeling import build_model, detect

BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4
# What may be the same detection at all: pixels, and score.
NEAR_BOX, NEAR_SCORE = 1.0, 1e-2
BATCH = 2  # pictures at a time, where any number may be


class Detected(NamedTuple):
    """What was found on one picture, best score first."""

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    categories: Int[np.ndarray, " n"]


class Difference(NamedTuple):
    """Between what an artifact finds and what it should find."""

    pictures: int
    detections: int  # that should be found
    box: float  # pixels: largest difference of a coordinate, of those that have a counterpart
    score: float
    unmatched: int  # without a counterpart of their category, on either side


def verified(
    servable: Servable, run: Run, pictures: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Difference:
    """The largest difference on `pictures`, rows of the artifact's inputs.

    Raises ValueError where it is more than rounding explains.
    """
    whole = Difference(0, 0, 0.0, 0.0, 0)
    expected = reference(servable)
    for images, sizes, count in batched(pictures, servable.batch_size or BATCH):
        both = zip(expected(images, sizes), separate(run(images, sizes)), strict=True)
        for want, have in itertools.islice(both, count):
            one = difference(want, have, sure_score(want, servable))
            whole = Difference(
                pictures=whole.pictures + 1,
                detections=whole.detections + one.detections,
                box=max(whole.box, one.box),
                score=max(whole.score, one.score),
                unmatched=whole.unmatched + one.unmatched,
            )
    if whole.box > BOX_TOLERANCE or whole.score > SCORE_TOLERANCE or whole.unmatched:
        raise ValueError(
            f"the artifact is not the detector: boxes differ by {whole.box:.2g} pixels, scores by "
            f"{whole.score:.2g}, and {whole.unmatched} of {whole.detections} detections on "
            f"{whole.pictures} pictures have no counterpart; it was removed."
        )
    return whole


def reference(servable: Servable):
    """The checkpoint's own detections, as evaluation has them: (images, sizes) -> `Detected`s."""
    trained = servable.trained
    model = build_model(trained.config, len(trained.categories))
    find = jax.jit(functools.partial(detect, model=model, config=trained.config))
    ids = np.array([category.id for category in trained.categories])

    def expected(images: np.ndarray, sizes: np.ndarray) -> list[Detected]:
        sizes = sizes.astype(np.float32)
        found = jax.device_get(
            find(trained.variables, image_batch(images, sizes, np.ones_like(sizes)))
        )
        return [
            Detected(core.yxyx_to_xyxy(boxes[mask]), scores[mask], ids[classes[mask]])
            for boxes, scores, classes, mask in zip(*found, strict=True)
        ]

    return expected


def batched(
    pictures: Sequence[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """`size` at a time and how many are real: the last batch is completed with its last picture."""
    for start in range(0, len(pictures), size):
        rows = list(pictures[start : start + size])
        count = len(rows)
        images, sizes = zip(*rows, *rows[-1:] * (size - count), strict=True)
        yield np.stack(images), np.stack(sizes), count


def separate(found: Found) -> list[Detected]:
    """The real rows of each picture; ValueError where something follows them."""
    pictures = []
    for boxes, scores, categories, count in zip(*found, strict=True):
        if np.any(boxes[count:]) or np.any(scores[count:]) or np.any(categories[count:]):
            raise ValueError("the artifact gives more than its count; it was removed.")
        pictures.append(Detected(boxes[:count], scores[:count], categories[:count]))
    return pictures


def sure_score(want: Detected, servable: Servable) -> float:
    """Above it, rounding does not decide whether a detection is among those that are given."""
    limits = servable.config.detections
    full = len(want.scores) == limits.max_detections
    last = want.scores[-1] if full else limits.score_threshold
    return float(last) + SCORE_TOLERANCE


def difference(want: Detected, have: Detected, sure: float) -> Difference:
    """Of one picture: each of `want`, best first, with the nearest left of `have` of its category.

    Without a counterpart count those alone that score above `sure`.
    """
    distance = np.abs(want.boxes[:, None] - have.boxes).max(axis=-1, initial=0)
    score = np.abs(want.scores[:, None] - have.scores)
    same = want.categories[:, None] == have.categories
    distance = np.where(same & (score <= NEAR_SCORE), distance, np.inf)
    boxes, scores, left = [0.0], [0.0], np.ones(len(have.scores), bool)
    unmatched = 0
    for row in range(len(want.scores)):
        column = int(distance[row].argmin()) if len(left) else -1
        if column < 0 or distance[row, column] > NEAR_BOX:
            unmatched += want.scores[row] > sure
            continue
        boxes.append(float(distance[row, column]))
        scores.append(float(score[row, column]))
        distance[:, column] = np.inf
        left[column] = False
    unmatched += np.sum(left & (have.scores > sure))
    return Difference(1, len(want.scores), max(boxes), max(scores), int(unmatched))


def tell(difference: Difference) -> str:
    """For a person."""
    return (
        f"{difference.detections} detections on {difference.pictures} pictures: boxes within "
        f"{difference.box:.2g} pixels of the checkpoint's, scores within {difference.score:.2g}, "
        "categories equal"
    )
