"""Buckets: the static (height, width) that images are padded to."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from retinanet_jax.data.sizes import SIZE_MULTIPLE


def make_buckets(buckets: Sequence[tuple[int, int]]) -> Int32[np.ndarray, "b 2"]:
    """The configured (H, W), smallest area first, the last one large enough for what any holds.

    That last one, (largest H, largest W), is added where it is not configured: leftovers of a
    landscape and a portrait bucket need it to share a batch.
    Raises ValueError where a side is not a positive multiple of 32.
    """
    if np.ndim(buckets) != 2 or np.shape(buckets)[1] != 2:
        raise ValueError(
            f"buckets={buckets} must name at least one (H, W) to train in; "
            "try ((800, 1344), (1344, 800))."
        )
    for height, width in buckets:
        if min(height, width) <= 0 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            fixed = tuple(
                max(SIZE_MULTIPLE, -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE)
                for side in (height, width)
            )
            raise ValueError(
                f"bucket ({height}, {width}) must have positive multiples of {SIZE_MULTIPLE} as its "
                f"sides; try {fixed}."
            )
    largest = (max(height for height, _ in buckets), max(width for _, width in buckets))
    distinct = {(int(height), int(width)) for height, width in (*buckets, largest)}
    ordered = sorted(distinct, key=lambda bucket: (bucket[0] * bucket[1], bucket))
    return np.array(ordered, np.int32)


def own_buckets(resized: Int[np.ndarray, "N 2"]) -> Int32[np.ndarray, "b 2"]:
    """The (H, W) that pictures of these sizes have when each is padded to multiples of 32 alone.

    Smallest area first, so that the smallest that holds a picture is its own: no other is between.
    """
    distinct = np.unique(-(-resized // SIZE_MULTIPLE) * SIZE_MULTIPLE, axis=0).astype(np.int32)
    return distinct[np.argsort(distinct.prod(axis=1), kind="stable")]


def smallest_bucket(
    resized: Int[np.ndarray, "N 2"], buckets: Int[np.ndarray, "b 2"]
) -> Int[np.ndarray, " N"]:
    """Row of the first bucket that holds each size; -1 where none does."""
    holds = (resized[:, None] <= buckets).all(axis=-1)  # N b
    return np.where(holds.any(axis=-1), holds.argmax(axis=-1), -1)
