"""Counter-based random numbers (Philox): one independent stream per sampled quantity.

A counter-based generator computes any number of a stream directly (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405), so an epoch can be planned without planning the earlier
ones.
"""

import enum

import numpy as np
from jaxtyping import Float, Int, Int32, UInt64


@enum.unique
class Stream(enum.IntEnum):
    """A sampled quantity. A new one gets a new number, so that the others sample as before."""

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


def random_bits(seed: int, epoch: int, stream: Stream, *, count: int) -> UInt64[np.ndarray, " n"]:
    """Return the first `count` random 64-bit words of a stream in an epoch.

    Raw bits, because numpy guarantees that they stay the same from version to version, which it
    does not guarantee for its distributions.
    """
    # The last word of the counter separates the streams.
    return np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]).random_raw(count)


def uniform(bits: UInt64[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """Convert random bits to uniform numbers in [0, 1)."""
    return (bits >> 11) * 2.0**-53  # a float64 has 53 bits of precision


def uniform_integers(
    bits: UInt64[np.ndarray, "*axes"], count: int | Int[np.ndarray, "*axes"]
) -> Int32[np.ndarray, "*axes"]:
    """Convert random bits to uniform integers from 0 to `count` - 1."""
    return (uniform(bits) * count).astype(np.int32)
