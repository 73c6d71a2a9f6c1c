"""Verification of an artifact: its detections are compared with those of `predict`.

With masked padding (config.model.padding) and in float32, an artifact returns the detections of
`predict`, whatever the size of its input. In two cases it is compared with the checkpoint on that
input instead: on images that `predict` resizes to another size, and for other configs.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32

from retinanet_jax import core
from retinanet_jax.compilation import compiled_off_the_clock
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.image_files import ImageLike, read_image
from retinanet_jax.data.transforms import Pixels, pad
from retinanet_jax.detector import Detector
from retinanet_jax.export.comparison import (
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    DetectionArrays,
    DetectionDifference,
    compare_detections,
)
from retinanet_jax.export.servable import ArtifactFunction, Servable
from retinanet_jax.modeling import build_model, detect
from retinanet_jax.utils.progress import format_count, make_progress
from retinanet_jax.utils.threads import map_ahead

BATCH_SIZE = 2  # images per call, where the artifact accepts any number
PREDICT, CHECKPOINT = "those of predict", "those of the checkpoint on the artifact's input"


class Verification(NamedTuple):
    """The differences that a verification measured.

    Attributes:
        from_predict: From the detections of `predict`, on the images that it resizes to the same
            size. Only rounding may cause them, unless there is an `inexact_field`.
        from_checkpoint: From the detections of the checkpoint on the artifact's input, on all other
            images, or on all images if there is an `inexact_field`. Only rounding may cause them.
        inexact_field: As in `Servable`.
    """

    from_predict: DetectionDifference
    from_checkpoint: DetectionDifference
    inexact_field: str | None

    @property
    def rounding_differences(self) -> dict[str, DetectionDifference]:
        """The differences that only rounding may cause, by the name of the expected detections."""
        if self.inexact_field:
            return {CHECKPOINT: self.from_checkpoint}
        return {PREDICT: self.from_predict, CHECKPOINT: self.from_checkpoint}

    @property
    def num_images(self) -> int:
        """The number of images."""
        return sum(difference.num_images for difference in self.rounding_differences.values())

    @property
    def num_other_sizes(self) -> int:
        """The number of images that `predict` resizes to another size, or refuses."""
        return self.num_images - self.from_predict.num_images

    def summary(self) -> str:
        """Return the result of the verification as sentences for the user."""
        from_predict, differences = self.from_predict, self.rounding_differences
        if not any(difference.num_detections for difference in differences.values()):
            return (
                "not verified: the checkpoint has no detections on the "
                f"{format_count(self.num_images, 'image')}; verify on images of the objects it "
                "was trained to detect, or lower the score threshold"
            )
        sentences = [
            f"{difference.num_detections} detections on "
            f"{format_count(difference.num_images, 'image')} equal {expected}, boxes within "
            f"{difference.box:.2g} pixels, scores within {difference.score:.2g}"
            for expected, difference in differences.items()
            if difference.num_images
        ]
        if self.num_other_sizes:
            sentences.append(
                f"{format_count(self.num_other_sizes, 'image')} cannot be compared with "
                "predict, because the input or the config's buckets cannot contain the size to "
                "which predict resizes it"
            )
        if self.inexact_field and from_predict.num_images:
            sentences.append(
                f"With {self.inexact_field} they are not exactly those of predict, which has "
                f"{from_predict.num_detections} on "
                f"{format_count(from_predict.num_images, 'image')}: {measured(from_predict)}"
            )
        return f"verified: {'. '.join(sentences)}"

    def measurements(self) -> dict[str, dict[str, Any]]:
        """Return what was measured, for card.json."""
        return {
            "from_predict": self.from_predict._asdict(),
            "from_checkpoint": self.from_checkpoint._asdict(),
        }


class Example(NamedTuple):
    """An image, and the artifact's input that is made of it."""

    image: ImageLike
    original_size: tuple[int, int]  # height and width in pixels
    pixels: Pixels  # resized, and padded to the size of the input
    size: Int32[np.ndarray, "2"]  # height and width of the resized image


def verify(
    servable: Servable, artifact: ArtifactFunction, images: Sequence[ImageLike]
) -> Verification:
    """Return the largest differences between the artifact's detections and the expected ones.

    Args:
        servable: The function that was exported.
        artifact: The function that runs the artifact.
        images: The images to compare the detections of.

    Raises:
        ValueError: If an image cannot be read, or the detections differ by more than rounding can
            cause.
    """
    by_predict, by_checkpoint = make_predict(servable), make_reference(servable)
    config, inexact_field = servable.config, servable.inexact_field
    thresholds = servable.thresholds_by_id
    from_predict, from_checkpoint = DetectionDifference(), DetectionDifference()
    print_progress = make_progress("verifying", len(images))
    detections = artifact_detections(servable, compiled_off_the_clock(artifact), images)
    for done, (example, actual) in enumerate(detections, 1):
        has_size_of_predict = servable.is_resized_as_in_evaluation(*example.original_size)
        if has_size_of_predict:
            difference = compare_detections(by_predict(example), actual, config, thresholds)
            from_predict = from_predict.including(difference)
        if not has_size_of_predict or inexact_field:
            difference = compare_detections(by_checkpoint(example), actual, config, thresholds)
            from_checkpoint = from_checkpoint.including(difference)
        print_progress(done)
    verification = Verification(from_predict, from_checkpoint, inexact_field)
    for expected, difference in verification.rounding_differences.items():
        check_rounding(expected, difference)
    return verification


def artifact_detections(
    servable: Servable, artifact: ArtifactFunction, images: Sequence[ImageLike]
) -> Iterator[tuple[Example, DetectionArrays]]:
    """Run the artifact on images as `artifact_outputs` does; yield its detections."""
    for example, outputs in artifact_outputs(servable, artifact, images):
        (detections,) = split_outputs(outputs)
        yield example, detections


def artifact_outputs(
    servable: Servable, artifact: ArtifactFunction, images: Sequence[ImageLike]
) -> Iterator[tuple[Example, tuple[np.ndarray, ...]]]:
    """Run the artifact on images, which threads read a few batches ahead.

    Yields:
        Each image with its outputs, which have a batch axis of 1.
    """
    batch_size = servable.batch_size or BATCH_SIZE
    examples = read_examples(servable, images)
    while batch := list(itertools.islice(examples, batch_size)):
        # If the artifact accepts any size, that of a batch is the largest in it.
        height, width = (max(example.pixels.shape[axis] for example in batch) for axis in (0, 1))
        batch = [x._replace(pixels=pad(x.pixels, height, width)) for x in batch]
        # Copies of the last image complete the last batch.
        filled = [*batch, *batch[-1:] * (batch_size - len(batch))]
        outputs = artifact(np.stack([x.pixels for x in filled]), np.stack([x.size for x in filled]))
        for k, example in enumerate(batch):
            yield example, tuple(array[k : k + 1] for array in outputs)


def read_examples(servable: Servable, images: Sequence[ImageLike]) -> Iterator[Example]:
    """Yield the artifact's input for each image; threads read a few batches ahead."""

    def make_example(image: ImageLike) -> Example:
        pixels = read_image(image, servable.config.data.value_range)
        return Example(image, pixels.shape[:2], *servable.prepare(pixels))

    num_ahead = 2 * (servable.batch_size or BATCH_SIZE)
    return map_ahead(make_example, images, num_ahead=num_ahead)


def make_predict(servable: Servable) -> Callable[[Example], DetectionArrays]:
    """Return a function of an image with the detections of `predict`, in pixels of the input."""
    detector = Detector(servable.checkpoint._replace(config=servable.config))

    def by_predict(example: Example) -> DetectionArrays:
        detections = detector(example.image)
        y, x = np.array(example.original_size, np.float32) / example.size
        original_scale = np.array([x, y, x, y], np.float32)
        boxes = detections.boxes / original_scale
        return DetectionArrays(boxes, detections.scores, detections.category_ids)

    return by_predict


def make_reference(servable: Servable) -> Callable[[Example], DetectionArrays]:
    """Return a function of an image with the checkpoint's detections on the artifact's input."""
    checkpoint, config = servable.checkpoint, servable.config
    # In bfloat16, other convolutions than the artifact's would round differently.
    model = build_model(config, len(checkpoint.categories), platform="any")
    thresholds = checkpoint.score_thresholds
    jitted = jax.jit(
        functools.partial(detect, model=model, config=config, score_thresholds=thresholds)
    )
    compiled = compiled_off_the_clock(jitted)
    ids = np.array([category.id for category in checkpoint.categories])

    def by_checkpoint(example: Example) -> DetectionArrays:
        size = example.size[None].astype(np.float32)
        batch = Batch.of_images(example.pixels[None], size, np.ones_like(size))
        detections = jax.device_get(compiled(checkpoint.variables, batch))
        boxes, scores, classes, mask = (array[0] for array in detections)
        boxes = np.asarray(core.yxyx_to_xyxy(boxes[mask]))
        return DetectionArrays(boxes, scores[mask], ids[classes[mask]])

    return by_checkpoint


def split_outputs(outputs: tuple[np.ndarray, ...]) -> list[DetectionArrays]:
    """Return the detections of each image, without the padding.

    Args:
        outputs: The arrays of `ArtifactOutputs`.

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


def check_rounding(expected: str, difference: DetectionDifference) -> None:
    """Check that rounding can have caused a difference.

    Args:
        expected: What the detections are compared with, for the message.
        difference: The difference.

    Raises:
        ValueError: If rounding cannot have caused it.
    """
    num_images, num_detections, _, box, score, num_unmatched = difference
    if difference.exceeds_rounding:
        raise ValueError(
            f"The artifact's detections differ from {expected}: boxes differ by {box:.2g} pixels "
            f"(at most {BOX_TOLERANCE} is allowed), scores by {score:.2g} (at most "
            f"{SCORE_TOLERANCE}), and {num_unmatched} detections have no counterpart; "
            f"{num_detections} are expected on {format_count(num_images, 'image')}. The artifact "
            "was removed."
        )


def measured(difference: DetectionDifference) -> str:
    """Return how much detections differ; boxes and scores only of those with a counterpart."""
    if not difference.num_matched:
        return "none has a counterpart"
    return (
        f"boxes differ by up to {difference.box:.2g} pixels, scores by up to "
        f"{difference.score:.2g}, and {difference.num_unmatched} have no counterpart"
    )
