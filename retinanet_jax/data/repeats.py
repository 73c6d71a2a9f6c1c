"""Repeat-factor sampling: images with rare categories are in an epoch more than once."""

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from retinanet_jax.data.random_streams import Stream, random_bits

UNIT = 2**24  # factors are whole multiples of 1 / UNIT, so that their sums are exact


def repeat_factors(
    classes: Int[np.ndarray, " M"],
    image_index: Int[np.ndarray, " M"],
    *,
    num_images: int,
    threshold: float,
) -> Float[np.ndarray, " N"]:
    """Return how often each image is in an epoch, on average.

    The factor of a category in a fraction f of the images is max(1, sqrt(threshold / f)), and that
    of an image is the largest of its categories (LVIS, https://arxiv.org/abs/1908.03195, appendix).

    Args:
        classes: The class of each object.
        image_index: The image of each object.
        num_images: N, the number of images.
        threshold: The fraction of the images below which a category is rare; 0 repeats no image.

    Raises:
        ValueError: If the threshold is no fraction.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"data.repeat_threshold={threshold} must be a fraction of the images from 0 to 1; try "
            "0.001, or 0 for off."
        )
    factors = np.ones(num_images)
    if threshold == 0:
        return factors
    num_classes = classes.max(initial=0) + 1
    pairs = np.unique(image_index.astype(np.int64) * num_classes + classes)
    image, category = np.divmod(pairs, num_classes)
    fractions = np.bincount(category) / num_images
    np.maximum.at(factors, image, np.sqrt(threshold / fractions[category]))
    return factors


class Repeats:
    """The copies of the images that an epoch may have, and those that each epoch has.

    The first N copies are the N images themselves; every epoch has them. Of an image with a factor
    of 2.25 there are two more: every epoch has the first, and every fourth on average the second.

    Args:
        factors: How often each image is in an epoch on average, at least once.
        groups: The group of each image. The factors of a group of which the sum is no whole number
            are raised by less than one copy in total, so that all epochs have equally many.

    Attributes:
        image: The image of each copy.
        group_counts: The number of copies of each group in every epoch.
    """

    image: Int64[np.ndarray, " E"]
    group_counts: Int64[np.ndarray, " g"]

    def __init__(self, factors: Float[np.ndarray, " N"], groups: Int[np.ndarray, " N"]):
        self._groups = groups
        self._units = _with_whole_sums(np.rint(factors * UNIT).astype(np.int64), groups)
        most = -(-self._units // UNIT)
        images = np.arange(len(factors))
        self.image = np.concatenate([images, np.repeat(images, most - 1)])
        # Among the copies of its image, counted from 0.
        self._number = np.concatenate([np.zeros_like(images), _counted_up(most - 1) + 1])
        self.group_counts = _sums(self._units, groups) // UNIT

    def present(self, seed: int, epoch: int) -> Bool[np.ndarray, " E"]:
        """Return which copies are in an epoch.

        Factors are rounded up or down by systematic sampling: an image is repeated wherever the sum
        of the factors up to it, in a random order, passes a whole number.

        Args:
            seed: The run's seed.
            epoch: The epoch, counted from 0.
        """
        bits = random_bits(seed, epoch, Stream.REPEATS, count=len(self._units) + 1)
        order = np.lexsort((bits[1:], self._groups))  # the groups one after the other
        start = int(bits[0] % UNIT)
        passed = (np.cumsum(self._units[order]) + start) // UNIT
        counts = np.empty_like(passed)
        counts[order] = np.diff(passed, prepend=0)
        return self._number < counts[self.image]


def _with_whole_sums(
    units: Int64[np.ndarray, " N"], groups: Int[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """Divide what each group lacks to a multiple of UNIT among its images that are repeated."""
    whole = units.copy()
    for group, missing in enumerate(-_sums(units, groups) % UNIT):
        if missing:
            repeated = np.flatnonzero((groups == group) & (units > UNIT))
            whole[repeated] += missing // len(repeated)
            whole[repeated[: missing % len(repeated)]] += 1
    return whole


def _sums(units: Int64[np.ndarray, " N"], groups: Int[np.ndarray, " N"]) -> Int64[np.ndarray, " g"]:
    """Return the sum of each group."""
    return np.bincount(groups, units).astype(np.int64)  # exact in float64 below 2**53


def _counted_up(counts: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " n"]:
    """Return the numbers 0..count-1 for each of the counts, one after the other."""
    starts = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(starts, counts)
