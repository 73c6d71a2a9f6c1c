"""Verification of an artifact: its detections are compared with those of its checkpoint."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from retinanet_jax import core
from retinanet_jax.data.batch import Batch
from retinanet_jax.export.servable import ArtifactFunction, ArtifactOutputs, Servable
from retinanet_jax.modeling import build_model, detect

# The largest differences that rounding can cause, of a coordinate in pixels and of a score.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4
# The largest differences between two detections that are compared with each other at all.
NEAR_BOX, NEAR_SCORE = 1.0, 1e-2
BATCH_SIZE = 2  # images per call, where the artifact accepts any number


class DetectionArrays(NamedTuple):
    """The detections of one image, best score first."""

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    categories: Int[np.ndarray, " n"]


class DetectionDifference(NamedTuple):
    """How much the detections of an artifact differ from the expected ones.

    Attributes:
        num_images: Number of compared images.
        num_detections: Number of expected detections.
        box: Largest difference of a coordinate in pixels, over detections with a counterpart.
        score: Largest difference of a score, over detections with a counterpart.
        num_unmatched: Number of detections, expected or actual, that have no counterpart of their
            category.
    """

    num_images: int
    num_detections: int
    box: float
    score: float
    num_unmatched: int


def summary(difference: DetectionDifference) -> str:
    """Return the result of the verification as a line for the user."""
    num_images, num_detections, box, score, _ = difference
    if not num_detections:
        return (
            f"not verified: the checkpoint has no detections on the {num_images} images; verify on "
            "images of the objects it was trained to detect, or lower the score threshold"
        )
    return (
        f"verified: {num_detections} detections on {num_images} images, boxes within {box:.2g} "
        f"pixels of the checkpoint's, scores within {score:.2g}, categories equal"
    )


def verify(
    servable: Servable, artifact: ArtifactFunction, images: Sequence[tuple[np.ndarray, np.ndarray]]
) -> DetectionDifference:
    """Return the largest differences between the artifact's and the checkpoint's detections.

    Args:
        servable: The function that was exported.
        artifact: The function that runs the artifact.
        images: Inputs, as `Servable.prepare` returns them for each image.

    Raises:
        ValueError: If the detections differ by more than rounding can cause.
    """
    total = DetectionDifference(0, 0, 0.0, 0.0, 0)
    reference = make_reference(servable)
    for batch, sizes, count in padded_batches(images, servable.batch_size or BATCH_SIZE):
        pairs = zip(reference(batch, sizes), split_outputs(artifact(batch, sizes)), strict=True)
        for expected, actual in itertools.islice(pairs, count):
            difference = compare_detections(expected, actual, certain_score(expected, servable))
            total = DetectionDifference(
                num_images=total.num_images + 1,
                num_detections=total.num_detections + difference.num_detections,
                box=max(total.box, difference.box),
                score=max(total.score, difference.score),
                num_unmatched=total.num_unmatched + difference.num_unmatched,
            )
    if total.box > BOX_TOLERANCE or total.score > SCORE_TOLERANCE or total.num_unmatched:
        raise ValueError(
            "The artifact's detections differ from the checkpoint's: boxes differ by "
            f"{total.box:.2g} pixels (at most {BOX_TOLERANCE} is allowed), scores by "
            f"{total.score:.2g} (at most {SCORE_TOLERANCE}), and {total.num_unmatched} detections "
            f"have no counterpart; {total.num_detections} are expected on {total.num_images} "
            "images. The artifact was removed."
        )
    return total


def make_reference(
    servable: Servable,
) -> Callable[[np.ndarray, np.ndarray], list[DetectionArrays]]:
    """Return a function `(images, sizes) -> detections of the checkpoint`, as in evaluation."""
    checkpoint = servable.checkpoint
    model = build_model(checkpoint.config, len(checkpoint.categories))
    compiled = jax.jit(functools.partial(detect, model=model, config=checkpoint.config))
    ids = np.array([category.id for category in checkpoint.categories])

    def reference(images: np.ndarray, sizes: np.ndarray) -> list[DetectionArrays]:
        sizes = sizes.astype(np.float32)
        batch = Batch.of_images(images, sizes, np.ones_like(sizes))
        detections = jax.device_get(compiled(checkpoint.variables, batch))
        return [
            DetectionArrays(
                np.asarray(core.yxyx_to_xyxy(boxes[mask])), scores[mask], ids[classes[mask]]
            )
            for boxes, scores, classes, mask in zip(*detections, strict=True)
        ]

    return reference


def padded_batches(
    inputs: Sequence[tuple[np.ndarray, np.ndarray]], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (images, sizes, number of real images) of `batch_size` images each.

    The last batch is filled up with copies of its last image.
    """
    for start in range(0, len(inputs), batch_size):
        examples = list(inputs[start : start + batch_size])
        count = len(examples)
        images, sizes = zip(*examples, *examples[-1:] * (batch_size - count), strict=True)
        yield np.stack(images), np.stack(sizes), count


def split_outputs(outputs: ArtifactOutputs) -> list[DetectionArrays]:
    """Return the detections of each image, without the padding.

    Raises:
        ValueError: If the padding is not zero.
    """
    detections = []
    for boxes, scores, categories, count in zip(*outputs, strict=True):
        if np.any(boxes[count:]) or np.any(scores[count:]) or np.any(categories[count:]):
            raise ValueError(
                f"The artifact returns values after its {count} detections, where zeros are "
                "required. The artifact was removed."
            )
        detections.append(DetectionArrays(boxes[:count], scores[:count], categories[:count]))
    return detections


def certain_score(expected: DetectionArrays, servable: Servable) -> float:
    """Return the score above which rounding cannot decide whether a detection is returned.

    A lower score is near the threshold or, if an image has the largest number of detections, near
    the last of their scores.
    """
    limits = servable.config.detections
    is_full = len(expected.scores) == limits.max_detections
    lowest = expected.scores[-1] if is_full else limits.score_threshold
    return float(lowest) + SCORE_TOLERANCE


def compare_detections(
    expected: DetectionArrays, actual: DetectionArrays, certain_score: float
) -> DetectionDifference:
    """Return the difference between the detections of one image.

    Each expected detection, best first, is compared with the nearest actual one of its category
    that is not yet the counterpart of another.

    Args:
        expected: The detections of the reference.
        actual: The detections to check.
        certain_score: Detections without a counterpart count only if they score more than this.
    """
    distance = np.abs(expected.boxes[:, None] - actual.boxes).max(axis=-1, initial=0)
    score_distance = np.abs(expected.scores[:, None] - actual.scores)
    is_candidate = expected.categories[:, None] == actual.categories
    is_candidate &= score_distance <= NEAR_SCORE
    distance = np.where(is_candidate, distance, np.inf)
    box_differences, score_differences = [0.0], [0.0]
    is_free = np.ones(len(actual.scores), bool)
    num_unmatched = 0
    for i in range(len(expected.scores)):
        j = int(distance[i].argmin()) if len(is_free) else -1
        if j < 0 or distance[i, j] > NEAR_BOX:
            num_unmatched += expected.scores[i] > certain_score
            continue
        box_differences.append(float(distance[i, j]))
        score_differences.append(float(score_distance[i, j]))
        distance[:, j] = np.inf
        is_free[j] = False
    num_unmatched += np.sum(is_free & (actual.scores > certain_score))
    return DetectionDifference(
        num_images=1,
        num_detections=len(expected.scores),
        box=max(box_differences),
        score=max(score_differences),
        num_unmatched=int(num_unmatched),
    )
