"""Counter-based random numbers (Philox): one independent stream per sampled quantity.

A counter-based generator computes any element of a stream directly (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405), so that an epoch can be planned without the earlier ones.
"""

import enum

import numpy as np
from jaxtyping import Float, Int, Int32, UInt64


@enum.unique
class Stream(enum.IntEnum):
    """The sampled quantities; a new one must get a new number, so that the others do not change."""

    ORDER = 0
    BATCHES = 1
    FLIP = 2
    SHORT_SIDE = 3
    SCALE = 4
    ROT90 = 5
    OFFSET_Y = 6
    OFFSET_X = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    HUE = 11
    REPEATS = 12
    GRAY = 13
    BLUR = 14
    BLUR_SIGMA = 15
    JPEG = 16
    JPEG_QUALITY = 17
    CUTOUT = 18
    CUTOUT_HEIGHT = 19
    CUTOUT_WIDTH = 20
    CUTOUT_Y = 21
    CUTOUT_X = 22
    AFFINE = 23
    MOSAIC = 24
    MIXUP = 25
    COPY_PASTE = 26


def random_bits(seed: int, epoch: int, stream: Stream, *, count: int) -> UInt64[np.ndarray, " n"]:
    """Return the first `count` random 64-bit words of a stream in an epoch.

    Raw bits are used because numpy guarantees that they are the same in all its versions, which it
    does not guarantee for its distributions.

    Args:
        seed: The run's seed.
        epoch: The epoch, counted from 0.
        stream: The sampled quantity.
        count: The number of words.
    """
    # The last word of the counter separates the streams.
    return np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]).random_raw(count)


def uniform(bits: UInt64[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """Convert random bits to uniform numbers in [0, 1)."""
    return (bits >> 11) * 2.0**-53  # a float64 has 53 bits of precision


def uniform_integers(
    bits: UInt64[np.ndarray, "*axes"], count: int | Int[np.ndarray, "*axes"]
) -> Int32[np.ndarray, "*axes"]:
    """Convert random bits to uniform integers from 0 to `count` - 1.

    Args:
        bits: From `random_bits`.
        count: The number of possible values, for all or for each of the results.
    """
    return (uniform(bits) * count).astype(np.int32)
