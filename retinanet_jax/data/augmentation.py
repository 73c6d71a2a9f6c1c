"""The random transforms of training images: their ranges, and how they are sampled.

All transforms of an image are sampled before any image is read, because the image's bucket depends
on them.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from retinanet_jax.data.batch import IDENTITY_COLORS
from retinanet_jax.data.random_streams import Stream, random_bits, uniform, uniform_integers
from retinanet_jax.data.sizes import Length, fit_sizes, round_sizes

COLORS = ("brightness", "contrast", "saturation", "hue")  # the order of `Batch.colors`
COLOR_STREAMS = (Stream.BRIGHTNESS, Stream.CONTRAST, Stream.SATURATION, Stream.HUE)

# The fields that are fractions of the images.
FRACTIONS = ("mosaic", "mixup", "copy_paste", "gray", "blur", "jpeg", "cutout")
# The `Augmentation.affine` that changes nothing.
NO_AFFINE: dict[str, Any] = {"rotation": 0.0, "shear": 0.0, "scale": (1.0, 1.0), "translation": 0.0}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The ranges of the random transforms, each sampled uniformly per image and epoch.

    Attributes:
        short_sides: Target lengths of the short side in pixels.
        short_side_sampling: "choice" samples one of `short_sides`; "range" samples an integer from
            the first to the second of two `short_sides`.
        long_side: The maximal length of the long side in pixels.
        scale_jitter: Range (lo, hi) of a factor on both target sides, or None. Without a crop, a
            factor above 1 is limited so that the image still fits in one of the buckets.
        crop_size: (height, width), or None. An image that is larger than this after the scale
            jitter is cropped to it at a random offset (large-scale jitter,
            https://arxiv.org/abs/2012.07177).
        flip: Whether half of the images are flipped left to right.
        rot90: Whether images are rotated by a random multiple of 90 degrees.
        color_jitter: The strength s of "brightness", "contrast", "saturation" and "hue". The
            factors of the first three are in [max(0, 1 - s), 1 + s], and the shift of the hue is
            in [-s, s], where 1 is the full color circle.
        affine: A transform inside the image's height and width, around its center: "rotation" r and
            "shear" s along both axes are angles in [-r, r] and [-s, s] degrees; "scale" is the
            range (lo, hi) of a factor; "translation" t moves by fractions of the sides in [-t, t].
        mosaic: The fraction of the images that are combined with three others, in a corner each.
        mixup: The fraction of the images that are averaged with another image.
        copy_paste: The fraction of the images onto which an object of the dataset is pasted, for
            each of `layers.NUM_PASTED` objects.
        gray: The fraction of the images of which the saturation is 0.
        blur: The fraction of the images that are blurred, as in `effects`.
        jpeg: The fraction of the images that are compressed, as in `effects`.
        cutout: The fraction of the images of which a rectangle is covered, as in `effects`.

    Raises:
        ValueError: If a value is out of range.
    """

    short_sides: Sequence[Length]
    short_side_sampling: str
    long_side: Length
    scale_jitter: Sequence[Length] | None
    crop_size: Sequence[int] | None
    flip: bool
    rot90: bool
    color_jitter: Mapping[str, Length]
    affine: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(NO_AFFINE))
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    jpeg: float = 0.0
    cutout: float = 0.0

    def __post_init__(self):
        self._check_sides()
        self._check_affine()
        for name in FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a fraction of the images from 0 to 1; "
                    "try 0.5, or 0 for off."
                )
        jitter = tuple(self.scale_jitter or (1, 1))
        if len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]:
            raise ValueError(
                f"scale_jitter={jitter} must be (lo, hi) with 0 < lo <= hi; "
                "try (0.8, 1.2), or (1, 1) for off."
            )
        if self.crop_size and (len(self.crop_size) != 2 or min(self.crop_size) < 1):
            raise ValueError(
                f"crop_size={tuple(self.crop_size)} must be a positive (height, width); "
                "try (640, 640), or () for off."
            )
        for name in COLORS:
            if not self.color_jitter[name] >= 0:
                raise ValueError(
                    f"color_jitter[{name!r}]={self.color_jitter[name]} must not be negative; "
                    "try 0 for off."
                )

    @property
    def possible_short_sides(self) -> Float[np.ndarray, " s"]:
        """The lengths that the short side is sampled from."""
        if self.short_side_sampling == "range":
            low, high = self.short_sides
            return np.arange(low, high + 1, dtype=np.float64)
        return np.asarray(self.short_sides, np.float64)

    @property
    def is_affine(self) -> bool:
        """Whether images are transformed by `affine`."""
        return {**self.affine, "scale": tuple(self.affine["scale"])} != NO_AFFINE

    def _check_affine(self) -> None:
        for name, limit in (("rotation", 180), ("shear", 30), ("translation", 1)):
            if not 0 <= self.affine[name] <= limit:
                raise ValueError(
                    f"affine.{name}={self.affine[name]} must be from 0 to {limit}; try 0 for off."
                )
        scale = tuple(self.affine["scale"])
        if len(scale) != 2 or not 0.1 <= scale[0] <= scale[1] <= 10:
            raise ValueError(
                f"affine.scale={scale} must be (lo, hi) with 0.1 <= lo <= hi <= 10; "
                "try (0.5, 1.5), or (1, 1) for off."
            )

    def _check_sides(self) -> None:
        sides, sampling = tuple(self.short_sides), self.short_side_sampling
        if not sides or min(*sides, self.long_side) <= 0:
            raise ValueError(
                f"short_sides={sides} and long_side={self.long_side} must be positive "
                "numbers of pixels; try short_sides=(800,), long_side=1333."
            )
        if sampling not in ("choice", "range"):
            raise ValueError(f"short_side_sampling={sampling!r} must be 'choice' or 'range'.")
        if sampling == "range" and (len(sides) != 2 or sides[0] > sides[1]):
            raise ValueError(
                f"short_sides={sides} must be (lo, hi) with lo <= hi if "
                "short_side_sampling='range'; try (640, 800)."
            )


class ImageTransforms(NamedTuple):
    """The transforms of N images; `BatchPlan` describes the fields."""

    resized: Int32[np.ndarray, "N 2"]
    flip: Bool[np.ndarray, " N"]
    rot90_k: Int32[np.ndarray, " N"]
    offset: Int32[np.ndarray, "N 2"]
    size: Int32[np.ndarray, "N 2"]
    colors: Float32[np.ndarray, "N 4"]


def resize_only(resized: Int32[np.ndarray, "N 2"]) -> ImageTransforms:
    """Return the transforms that resize to `resized` and change nothing else."""
    count = len(resized)
    return ImageTransforms(
        resized=resized,
        flip=np.zeros(count, bool),
        rot90_k=np.zeros(count, np.int32),
        offset=np.zeros((count, 2), np.int32),
        size=resized,
        colors=np.tile(np.array(IDENTITY_COLORS, np.float32), (count, 1)),
    )


def sample_transforms(
    augmentation: Augmentation,
    sizes: Int[np.ndarray, "N 2"],
    *,
    seed: int,
    epoch: int,
    resize: str,
    buckets: Int[np.ndarray, "b 2"],
) -> ImageTransforms:
    """Sample the transforms of all images in one epoch.

    Args:
        augmentation: The ranges to sample from.
        sizes: The original heights and widths in pixels.
        seed: Determines every sample, together with `epoch`.
        epoch: The epoch, counted from 0.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.
        buckets: The heights and widths that limit the scale jitter.
    """
    bits = functools.partial(random_bits, seed, epoch, count=len(sizes))
    rot90_k = np.zeros(len(sizes), np.int32)
    if augmentation.rot90:
        rot90_k = uniform_integers(bits(Stream.ROT90), 4)

    possible = augmentation.possible_short_sides
    short_sides = possible[uniform_integers(bits(Stream.SHORT_SIDE), len(possible))]
    low, high = augmentation.scale_jitter or (1, 1)
    factors = low + (high - low) * uniform(bits(Stream.SCALE))
    resized = _scaled_sizes(augmentation, sizes, short_sides, factors, rot90_k, resize, buckets)
    rotated = rot90_sizes(resized, rot90_k)
    size = _cropped_sizes(augmentation, rotated)
    offset_bits = np.stack([bits(Stream.OFFSET_Y), bits(Stream.OFFSET_X)], axis=1)
    colors = _colors(
        augmentation, uniform(np.stack([bits(stream) for stream in COLOR_STREAMS], axis=1))
    )
    colors[uniform(bits(Stream.GRAY)) < augmentation.gray, COLORS.index("saturation")] = 0
    return ImageTransforms(
        resized=resized,
        flip=uniform(bits(Stream.FLIP)) < (0.5 if augmentation.flip else 0.0),
        rot90_k=rot90_k,
        offset=uniform_integers(offset_bits, rotated - size + 1),
        size=size,
        colors=colors,
    )


def largest_sizes(
    augmentation: Augmentation,
    sizes: Int[np.ndarray, "N 2"],
    *,
    resize: str,
    buckets: Int[np.ndarray, "b 2"],
) -> Int32[np.ndarray, "r N 2"]:
    """Return the largest height and width that each image may have in its bucket.

    The first axis is the rotation by 0 and by 90 degrees; it has one entry without `rot90`.

    Args:
        augmentation: The ranges that the transforms are sampled from.
        sizes: As in `sample_transforms`.
        resize: As in `sample_transforms`.
        buckets: As in `sample_transforms`.
    """
    short_side = augmentation.possible_short_sides.max()
    factors = np.full(len(sizes), max(augmentation.scale_jitter or (1,)), np.float64)
    largest = []
    for k in range(2 if augmentation.rot90 else 1):
        rot90_k = np.full(len(sizes), k, np.int32)
        resized = _scaled_sizes(augmentation, sizes, short_side, factors, rot90_k, resize, buckets)
        largest.append(_cropped_sizes(augmentation, rot90_sizes(resized, rot90_k)))
    return np.stack(largest)


def _scaled_sizes(
    augmentation: Augmentation,
    sizes: Int[np.ndarray, "N 2"],
    short_sides: Length | Float[np.ndarray, " N"],
    factors: Float[np.ndarray, " N"],
    rot90_k: Int32[np.ndarray, " N"],
    resize: str,
    buckets: Int[np.ndarray, "b 2"],
) -> Int32[np.ndarray, "N 2"]:
    """Return the heights and widths that images are resized to with this jitter."""
    fitted = fit_sizes(sizes, short_sides, augmentation.long_side, resize)
    if not augmentation.crop_size:
        rotated = rot90_sizes(fitted, rot90_k)
        limits = (buckets / rotated[:, None]).min(axis=-1).max(axis=-1)  # N b 2 to N
        # The plan checks that a factor of 1 fits, so a rounding error must not limit it.
        factors = np.minimum(factors, np.maximum(limits, 1))
    return round_sizes(fitted * factors[:, None], resize)


def _cropped_sizes(
    augmentation: Augmentation, rotated: Int32[np.ndarray, "N 2"]
) -> Int32[np.ndarray, "N 2"]:
    """Return the heights and widths that are left of rotated images after the crop."""
    if not augmentation.crop_size:
        return rotated
    return np.minimum(rotated, augmentation.crop_size).astype(np.int32)


def _colors(
    augmentation: Augmentation, samples: Float[np.ndarray, "N 4"]
) -> Float32[np.ndarray, "N 4"]:
    """Scale uniform samples in [0, 1) to the ranges of the color factors and the hue's shift."""
    strengths = np.array([augmentation.color_jitter[name] for name in COLORS], np.float64)
    identity = np.array(IDENTITY_COLORS)
    low = identity - strengths
    low[:3] = np.maximum(low[:3], 0)
    high = identity + strengths
    return (low + (high - low) * samples).astype(np.float32)


def rot90_sizes(
    sizes: Int[np.ndarray, "*N 2"] | Float[np.ndarray, "*N 2"], rot90_k: Int32[np.ndarray, "*N"]
) -> Int[np.ndarray, "*N 2"] | Float[np.ndarray, "*N 2"]:
    """Return the heights and widths of rotated images.

    Args:
        sizes: Heights and widths before the rotation.
        rot90_k: How often each image is rotated by 90 degrees.
    """
    return np.where(rot90_k[..., None] % 2 == 1, sizes[..., ::-1], sizes)
