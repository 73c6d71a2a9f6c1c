"""Effects on the pixels of training images that leave the boxes as they are.

An image is blurred by a Gaussian, then compressed as JPEG, and then a rectangle of it is covered
(cutout, https://arxiv.org/abs/1708.04552). The effects are sampled by the plan and applied to the
transformed image, by the same function in both loaders.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32
from PIL import Image, ImageFilter

from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.composition import FILL
from retinanet_jax.data.random_streams import Stream, random_bits, uniform, uniform_integers
from retinanet_jax.data.transforms import Pixels

BLUR_SIGMAS = (0.5, 2.0)  # pixels of the network's input
JPEG_QUALITIES = (30, 90)  # Pillow's, from 1 to 95
CUTOUT_FRACTIONS = (0.1, 0.3)  # of the height and of the width of the image


class Effects(NamedTuple):
    """The effects on N images, or the values of a single one."""

    blur: Float32[np.ndarray, "*N"]  # standard deviation of the Gaussian in pixels; 0: none
    jpeg: Int32[np.ndarray, "*N"]  # quality; 0: none
    cutout: Int32[np.ndarray, "*N 4"]  # the covered rectangle, yxyx; empty: none

    @property
    def is_any(self) -> Bool[np.ndarray, "*N"]:
        """Whether each image has an effect."""
        return (self.blur > 0) | (self.jpeg > 0) | self.cutout.any(axis=-1)

    def select(self, index: int | slice | Int[np.ndarray, " n"]) -> "Effects":
        """Return the effects on the images at `index`."""
        return Effects(*(field[index] for field in self))


def sample_effects(
    augmentation: Augmentation, sizes: Int[np.ndarray, "N 2"], *, seed: int, epoch: int
) -> Effects | None:
    """Sample the effects on all images in one epoch; None if all are off.

    Args:
        augmentation: The fractions of the images that have each effect.
        sizes: The heights and widths of the transformed images.
        seed: Determines every sample, together with `epoch`.
        epoch: The epoch, counted from 0.
    """
    if not (augmentation.blur or augmentation.jpeg or augmentation.cutout):
        return None
    bits = functools.partial(random_bits, seed, epoch, count=len(sizes))
    is_blurred = uniform(bits(Stream.BLUR)) < augmentation.blur
    is_compressed = uniform(bits(Stream.JPEG)) < augmentation.jpeg
    is_cut = uniform(bits(Stream.CUTOUT)) < augmentation.cutout

    low, high = BLUR_SIGMAS
    sigmas = low + (high - low) * uniform(bits(Stream.BLUR_SIGMA))
    lowest, highest = JPEG_QUALITIES
    qualities = lowest + uniform_integers(bits(Stream.JPEG_QUALITY), highest - lowest + 1)
    side_bits = np.stack([bits(Stream.CUTOUT_HEIGHT), bits(Stream.CUTOUT_WIDTH)], axis=1)
    corner_bits = np.stack([bits(Stream.CUTOUT_Y), bits(Stream.CUTOUT_X)], axis=1)
    smallest, largest = CUTOUT_FRACTIONS
    fractions = smallest + (largest - smallest) * uniform(side_bits)
    sides = np.maximum(np.rint(sizes * fractions), 1).astype(np.int32)
    corners = uniform_integers(corner_bits, sizes - sides + 1)
    return Effects(
        blur=np.where(is_blurred, sigmas, 0).astype(np.float32),
        jpeg=np.where(is_compressed, qualities, 0).astype(np.int32),
        cutout=np.where(is_cut[:, None], np.hstack([corners, corners + sides]), 0).astype(np.int32),
    )


def apply_effects(image: Pixels, effects: Effects) -> Pixels:
    """Return an image with these effects, of the same dtype.

    A blurred or compressed image has whole numbers, as in a file.

    Args:
        image: RGB pixels.
        effects: The effects on this image.
    """
    blur, quality = float(effects.blur), int(effects.jpeg)
    if blur or quality:
        canvas = Image.fromarray(np.rint(image).astype(np.uint8))
        if blur:
            canvas = canvas.filter(ImageFilter.GaussianBlur(blur))
        if quality:
            file = io.BytesIO()
            canvas.save(file, "JPEG", quality=quality)
            canvas = Image.open(file)
        image = np.asarray(canvas).astype(image.dtype)
    y1, x1, y2, x2 = effects.cutout.tolist()
    if y1 < y2:
        image = image.copy()
        image[y1:y2, x1:x2] = FILL
    return image
