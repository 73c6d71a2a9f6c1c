"""Verification of an artifact without NMS: its outputs are compared with those of the network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from retinanet_jax.compilation import compiled_off_the_clock
from retinanet_jax.data.image_files import ImageLike
from retinanet_jax.export.comparison import BOX_TOLERANCE, SCORE_TOLERANCE
from retinanet_jax.export.raw import RawOutputs, RawServable
from retinanet_jax.export.servable import ArtifactFunction
from retinanet_jax.export.verification import artifact_outputs
from retinanet_jax.utils.progress import format_count, make_progress


class Tolerance(NamedTuple):
    """The largest differences that are accepted; the names are those of `RawVerification`.

    In int8 single boxes and scores may differ much, such as where two categories are almost equally
    probable, so only the means are limited.
    """

    box: float = float("inf")
    score: float = float("inf")
    mean_box: float = float("inf")
    mean_score: float = float("inf")


# By the precision of the artifact's weights. In a detector of playing cards (R50, 480 x 480 pixels)
# float16 changes boxes by up to 0.04 pixels and scores by up to 3e-4. Int8 changes them on average
# by 0.4 pixels and 0.008, and AP by 0.006.
TOLERANCES = {
    "float32": Tolerance(BOX_TOLERANCE, SCORE_TOLERANCE),
    "float16": Tolerance(box=0.5, score=5e-3),
    "int8": Tolerance(mean_box=3, mean_score=0.03),
}


# The differences in words, by their name.
MEASURED = {
    "box": "boxes by up to {:.2g} pixels",
    "score": "scores by up to {:.2g}",
    "mean_box": "boxes on average by {:.2g} pixels",
    "mean_score": "scores on average by {:.2g}",
}


class RawVerification(NamedTuple):
    """How much the outputs of an artifact without NMS differ from those of the checkpoint.

    Attributes:
        num_images: Number of compared images.
        num_boxes: Number of compared boxes: of the anchors with a score above the score threshold.
        box: Largest difference of a coordinate of these boxes, in pixels of the artifact's input.
        score: Largest difference of a score, over all anchors and classes.
        mean_box: Mean difference of a coordinate of the compared boxes, in pixels.
        mean_score: Mean over the compared boxes of the largest difference of a score.
    """

    num_images: int = 0
    num_boxes: int = 0
    box: float = 0.0
    score: float = 0.0
    mean_box: float = 0.0
    mean_score: float = 0.0

    def including(self, other: "RawVerification") -> "RawVerification":
        """Return the difference of these images and other images together."""
        num_boxes = self.num_boxes + other.num_boxes

        def mean(a: float, b: float) -> float:
            return (a * self.num_boxes + b * other.num_boxes) / max(num_boxes, 1)

        return RawVerification(
            num_images=self.num_images + other.num_images,
            num_boxes=num_boxes,
            box=max(self.box, other.box),
            score=max(self.score, other.score),
            mean_box=mean(self.mean_box, other.mean_box),
            mean_score=mean(self.mean_score, other.mean_score),
        )

    def excess(self, tolerance: Tolerance) -> str:
        """Return the differences that are above their tolerance, or not a number, as text."""
        differences = [
            f"{MEASURED[name].format(getattr(self, name))} (at most {limit} is allowed)"
            for name, limit in tolerance._asdict().items()
            if not getattr(self, name) <= limit
        ]
        return ", ".join(differences)

    def summary(self) -> str:
        """Return the result of the verification as sentences for the user."""
        images = format_count(self.num_images, "image")
        if not self.num_boxes:
            return (
                f"not verified: on the {images}, no score of the checkpoint is above the score "
                "threshold; verify on images of the objects it was trained to detect, or lower "
                "the score threshold"
            )
        return (
            f"verified: on {images}, scores differ from those of the checkpoint on the artifact's "
            f"input by at most {self.score:.2g}, and the {self.num_boxes} boxes with a score above "
            f"the score threshold by at most {self.box:.2g} pixels (on average by "
            f"{self.mean_score:.2g} and {self.mean_box:.2g} pixels)"
        )

    def measurements(self) -> dict[str, dict[str, Any]]:
        """Return what was measured, for card.json."""
        return {"from_checkpoint": self._asdict()}


def verify(
    servable: RawServable,
    artifact: ArtifactFunction,
    images: Sequence[ImageLike],
    tolerance: Tolerance = TOLERANCES["float32"],
) -> RawVerification:
    """Return the largest differences between the artifact's outputs and those of the checkpoint.

    Args:
        servable: The function that was exported.
        artifact: The function that runs the artifact.
        images: The images to compare the outputs of.
        tolerance: The largest differences that are accepted.

    Raises:
        ValueError: If an image cannot be read, or the outputs differ by more.
    """
    reference = compiled_off_the_clock(jax.jit(servable.__call__))
    threshold = float(servable.config.detections.score_threshold)
    measured = RawVerification()
    print_progress = make_progress("verifying", len(images))
    outputs = artifact_outputs(servable, compiled_off_the_clock(artifact), images)
    for done, (example, actual) in enumerate(outputs, 1):
        expected = jax.device_get(reference(example.pixels[None], example.size[None]))
        difference = raw_difference(RawOutputs(*expected), RawOutputs(*actual), threshold)
        measured = measured.including(difference)
        print_progress(done)
    if excess := measured.excess(tolerance):
        advice = ""
        if tolerance != TOLERANCES["float32"]:
            advice = " Try a higher precision or, for int8, more images like those it will see."
        raise ValueError(
            "The artifact's outputs differ from those of the checkpoint on the artifact's input: "
            f"{excess}; on {format_count(measured.num_images, 'image')}. The "
            f"artifact was removed.{advice}"
        )
    return measured


def raw_difference(
    expected: RawOutputs, actual: RawOutputs, score_threshold: float
) -> RawVerification:
    """Return the difference between the outputs of a batch.

    Args:
        expected: The outputs of the checkpoint.
        actual: The outputs of the artifact.
        score_threshold: The boxes of anchors are compared that have an expected score above it: the
            others become no detections, and far outside the image the rounding of their coordinates
            is large.
    """
    is_compared = np.max(expected.scores, axis=-1) > score_threshold
    boxes = np.abs(expected.boxes - actual.boxes)[is_compared]
    scores = np.max(np.abs(expected.scores - actual.scores), axis=-1)
    count = max(len(boxes), 1)
    return RawVerification(
        num_images=len(expected.scores),
        num_boxes=len(boxes),
        box=float(np.max(boxes, initial=0)),
        score=float(np.max(scores, initial=0)),
        mean_box=float(np.sum(boxes)) / (4 * count),
        mean_score=float(np.sum(scores[is_compared])) / count,
    )
