"""Buckets: the static (height, width) that images are padded to."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from retinanet_jax.data.sizes import SIZE_MULTIPLE, round_up


def make_buckets(buckets: Sequence[Sequence[int]]) -> Int32[np.ndarray, "b 2"]:
    """Return the configured (height, width) without duplicates, smallest area first.

    Args:
        buckets: The configured (height, width), in pixels.

    Raises:
        ValueError: If `buckets` is empty or a side is not a positive multiple of 32.
    """
    if np.ndim(buckets) != 2 or np.shape(buckets)[1] != 2:
        raise ValueError(
            f"buckets={buckets} must contain at least one (height, width) to train in; "
            "try ((800, 1344), (1344, 800))."
        )
    for height, width in buckets:
        if min(height, width) <= 0 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            fixed = tuple(max(SIZE_MULTIPLE, round_up(side)) for side in (height, width))
            raise ValueError(
                f"bucket ({height}, {width}) must have sides that are positive multiples of "
                f"{SIZE_MULTIPLE}; try {fixed}."
            )
    distinct = {(int(height), int(width)) for height, width in buckets}
    ordered = sorted(distinct, key=lambda bucket: (bucket[0] * bucket[1], bucket))
    return np.array(ordered, np.int32)


def minimal_buckets(resized: Int[np.ndarray, "N 2"]) -> Int32[np.ndarray, "b 2"]:
    """Return the distinct sizes of images padded to multiples of 32 and no further.

    The smallest area is first, so that `smallest_bucket` assigns each image its own padded size.

    Args:
        resized: The heights and widths of the resized images.
    """
    distinct = np.unique(round_up(resized), axis=0).astype(np.int32)
    return distinct[np.argsort(distinct.prod(axis=1), stable=True)]


def smallest_bucket(
    resized: Int[np.ndarray, "N 2"], buckets: Int[np.ndarray, "b 2"]
) -> Int[np.ndarray, " N"]:
    """Return the index of the first bucket that contains each image; -1 if none does.

    Args:
        resized: The heights and widths of the resized images.
        buckets: From `make_buckets` or `minimal_buckets`.
    """
    fits = (resized[:, None] <= buckets).all(axis=-1)  # N b
    return np.where(fits.any(axis=-1), fits.argmax(axis=-1), -1)


def fewest_buckets(
    sizes: Int[np.ndarray, "N 2"], buckets: Int[np.ndarray, "b 2"]
) -> Int[np.ndarray, " N"]:
    """Return the index of a bucket that contains each image, so that few buckets contain them all.

    One bucket after another is selected, each time the one that contains the most of the remaining
    images; the smallest if several do.

    Args:
        sizes: The heights and widths of the images; each must fit in a bucket.
        buckets: From `make_buckets`.
    """
    fits = np.all(sizes[:, None] <= buckets, axis=-1)  # N b
    selected = np.full(len(sizes), -1)
    while len(remaining := np.flatnonzero(selected < 0)):
        best = fits[remaining].sum(axis=0).argmax()
        selected[remaining[fits[remaining, best]]] = best
    return selected


def check_images_fit(
    sizes: Int[np.ndarray, "N 2"],
    resized: Int[np.ndarray, "N 2"],
    buckets: Int[np.ndarray, "b 2"],
) -> None:
    """Check that there are images, and that each of them fits in a bucket once it is resized.

    Args:
        sizes: The original heights and widths, for the message.
        resized: The heights and widths of the resized images.
        buckets: From `make_buckets` or `minimal_buckets`.

    Raises:
        ValueError: If there is no image, or an image fits in no bucket.
    """
    if not len(sizes):
        raise ValueError("a plan requires at least one image, got none; check the dataset's paths.")
    too_large = np.flatnonzero(smallest_bucket(resized, buckets) < 0)
    if len(too_large):
        first = too_large[0]
        needed = tuple(round_up(resized[first]).tolist())
        raise ValueError(
            f"image {first} of {tuple(sizes[first].tolist())} (height, width) is resized to "
            f"{tuple(resized[first].tolist())}, which fits in no bucket of {buckets.tolist()} "
            f"({len(too_large)} such images); add the bucket {needed}, or reduce the target sides."
        )


def check_crop_fits(crop_size: Sequence[int], buckets: Int[np.ndarray, "b 2"]) -> None:
    """Check that a bucket contains the crop.

    Args:
        crop_size: (height, width) of the crop in pixels.
        buckets: From `make_buckets`.

    Raises:
        ValueError: If none does.
    """
    if smallest_bucket(np.array([crop_size]), buckets)[0] < 0:
        needed = tuple(round_up(side) for side in crop_size)
        raise ValueError(
            f"crop_size={tuple(crop_size)} fits in no bucket of {buckets.tolist()}; "
            f"add the bucket {needed}, or reduce the crop."
        )
