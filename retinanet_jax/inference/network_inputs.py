"""What the network sees of an image: it is resized and padded as in evaluation."""

import math
from collections.abc import Hashable, Iterable, Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.image_files import ImageLike, image_name, is_single_image, read_image
from retinanet_jax.data.sizes import round_up
from retinanet_jax.data.sources.base import DatasetImage
from retinanet_jax.data.transforms import pad, resize
from retinanet_jax.evaluation.detections import Detections

PATIENCE = 4  # the largest number of batches of later images that an image waits for


class ScaledImage(NamedTuple):
    """An image that the network sees larger or smaller than in evaluation."""

    pixels: UInt8[np.ndarray, "H W 3"]
    scale: float  # pixels of the network's input, per pixel that evaluation would have
    filename: str  # its name in messages


class Input(NamedTuple):
    """An image, and the batch of one with which the network processes it."""

    image: UInt8[np.ndarray, "H W 3"]
    example: Batch  # of one image


def check_images(images: object, batch_size: int) -> None:
    """Check the arguments of a method that detects the objects in many images.

    Raises:
        ValueError: If `batch_size` is less than 1 or `images` is a single image.
    """
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1 and an integer; try 1.")
    if is_single_image(images) or not isinstance(images, Iterable):
        raise ValueError(
            f"batch() expects a list of images and got a single {type(images).__name__}; pass "
            "a list, or call detector(image)."
        )


def prepare(
    image: ImageLike | DatasetImage | ScaledImage, config: ConfigDict
) -> Input | ValueError:
    """Read, resize and pad an image; return the error of one that cannot be read or used.

    Args:
        image: The image.
        config: A run's config.
    """
    pixels = read_pixels(image, config)
    if isinstance(pixels, ValueError):
        return pixels
    scale = image.scale if isinstance(image, ScaledImage) else 1.0
    try:
        return Input(pixels, eval_example(pixels, config, scale))
    except ValueError as error:
        return ValueError(f"{image_name(image)}: {error}")


def read_pixels(
    image: ImageLike | DatasetImage | ScaledImage, config: ConfigDict
) -> UInt8[np.ndarray, "H W 3"] | ValueError:
    """Return the RGB pixels of an image, or the error of one that cannot be read.

    Args:
        image: The image.
        config: A run's config; its `data` has the range of the values of deep images.
    """
    if isinstance(image, ScaledImage):
        return image.pixels
    try:
        if isinstance(image, DatasetImage):
            return image.read()
        return read_image(image, config.data.value_range)
    except (OSError, ValueError) as error:
        return ValueError(str(error))


def eval_example(
    image: UInt8[np.ndarray, "H W 3"], config: ConfigDict, scale: float = 1.0
) -> Batch:
    """Return the batch of one image that evaluation would pass to the network.

    Args:
        image: RGB pixels.
        config: A run's config; its `data` specifies the resizing and the buckets.
        scale: By how much larger than in evaluation the resized image and its bucket are.

    Raises:
        ValueError: If no bucket can contain the image, resized as in evaluation.
    """
    original_size = np.array([image.shape[:2]])
    batch_plan = input_pipeline.eval_plan(config, original_size, batch_size=1).batch(0)
    sides = batch_plan.resized[0].tolist()
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in sides)
    bucket = [round_up(math.ceil(side * scale)) for side in batch_plan.bucket]
    resized = resize(image, height, width, method=batch_plan.resize)
    return Batch.of_images(
        images=pad(resized, *bucket)[None],
        sizes=np.array([[height, width]], np.float32),
        scales=(original_size / (height, width)).astype(np.float32),
    )


def input_shape(item: Input | ValueError) -> Hashable:
    """Return the key of images that can be computed together; all errors have one key."""
    return item.example.images.shape if isinstance(item, Input) else ValueError


def concatenate(examples: Sequence[Batch], batch_size: int) -> Batch:
    """Return one batch of all examples, filled up with copies of the last one at weight 0.

    Args:
        examples: Batches of one image, at most `batch_size` of them.
        batch_size: The number of examples of the result.
    """
    filler = examples[-1]._replace(weights=np.zeros(1, np.float32))
    examples = [*examples, *[filler] * (batch_size - len(examples))]
    return Batch(*map(np.concatenate, zip(*examples, strict=True)))


def raise_error(outcome: Detections | ValueError) -> Detections:
    """Return the detections of an image, or raise its error."""
    if isinstance(outcome, ValueError):
        raise outcome
    return outcome
