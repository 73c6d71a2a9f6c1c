"""Which bucket shapes a data set wants, and what they cost in padding.

Sizes here are heights and widths of pictures as they lie in their bucket, after resizing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32

from retinanet_jax.data.buckets import make_buckets, smallest_bucket
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import SIZE_MULTIPLE, resized_sizes

MAX_STEPS = 64  # heights, and widths, that a bucket may have: multiples of 32 up to 2048 pixels

STARTS = 16  # random choices that are improved; fewer where each would take long
WORK = 2**24  # shapes x sizes of all of them


class BucketRow(NamedTuple):
    """One bucket of a table."""

    bucket: tuple[int, int]
    pictures: int
    padding_overhead: float  # of the pixels of its pictures' buckets; 0 where it has none


class BucketTable(NamedTuple):
    """What each bucket holds, each picture being in the smallest that holds it."""

    rows: tuple[BucketRow, ...]
    padding_overhead: float


def choose_buckets(sizes: Int[np.ndarray, "N 2"], *, count: int) -> tuple[tuple[int, int], ...]:
    """At most `count` shapes that hold all pictures of `sizes` with as little padding as is found.

    Sides are multiples of 32 (of more where pictures exceed 2048 pixels). The largest height with
    the largest width is always among them, as `make_buckets` adds it. From a greedy choice and
    from random ones, single shapes are exchanged for better ones until none is left; on small
    sets that equals the best of all choices, which a test holds.
    Raises ValueError where there is no picture or `count` is below 1.
    """
    if count < 1 or not len(sizes):
        raise ValueError(f"count={count} buckets for {len(sizes)} pictures must both be 1 or more.")
    unit = SIZE_MULTIPLE * -(-int(np.max(sizes)) // (SIZE_MULTIPLE * MAX_STEPS))
    cells, pictures = np.unique(-(-np.asarray(sizes) // unit), axis=0, return_counts=True)
    sides = np.meshgrid(np.unique(cells[:, 0]), np.unique(cells[:, 1]), indexing="ij")
    shapes = np.stack(sides, axis=-1).reshape(-1, 2)  # the last one holds everything
    areas = _area_where_held(cells, shapes)
    rng = np.random.default_rng(0)
    starts = [np.array([len(shapes) - 1])]
    for _ in range(min(STARTS, WORK // areas.size)):
        others = rng.permutation(len(shapes) - 1)[: count - 1]
        starts.append(np.append(starts[0], others))
    choices = [_exchanged(areas, pictures, start, count) for start in starts]
    best = min(choices, key=lambda chosen: _total(areas, pictures, chosen))
    buckets = make_buckets((shapes[best] * unit).tolist())
    return tuple((height, width) for height, width in buckets.tolist())


def bucket_table(sizes: Int[np.ndarray, "N 2"], buckets: Sequence[tuple[int, int]]) -> BucketTable:
    """How many pictures go to each bucket, and which share of what is computed is padding.

    Leftovers that share a larger bucket's batch in training are not counted.
    Raises ValueError where a bucket is malformed or none holds a picture.
    """
    shapes = make_buckets(buckets)
    bucket = smallest_bucket(sizes, shapes)
    if (bucket < 0).any():
        size = tuple(np.asarray(sizes)[np.argmax(bucket < 0)].tolist())
        raise ValueError(f"no bucket of {shapes.tolist()} holds a picture of {size}; add one.")
    pictures = np.bincount(bucket, minlength=len(shapes))
    filled = np.bincount(bucket, weights=_pixels(sizes), minlength=len(shapes))
    whole = pictures * _pixels(shapes)
    rows = tuple(
        BucketRow((height, width), int(n), 1 - float(used / area) if n else 0.0)
        for (height, width), n, used, area in zip(
            shapes.tolist(), pictures, filled, whole, strict=True
        )
    )
    return BucketTable(rows, 1 - float(filled.sum() / whole.sum()))


def one_shape(sizes: Int[np.ndarray, "N 2"]) -> tuple[tuple[int, int], ...]:
    """The smallest bucket that holds every picture."""
    return (_hull(np.asarray(sizes)),)


def two_shapes(sizes: Int[np.ndarray, "N 2"]) -> tuple[tuple[int, int], ...]:
    """The smallest bucket for what is upright, and the smallest for the rest."""
    sizes = np.asarray(sizes)
    upright = sizes[:, 0] > sizes[:, 1]
    return tuple(_hull(sizes[part]) for part in (~upright, upright) if part.any())


def drawn_sizes(plan: TrainPlan, *, draws: int) -> Int32[np.ndarray, "n 2"]:
    """The sizes that `plan` gives its pictures, in as many epochs as make `draws` or more.

    In one epoch where nothing that concerns sizes is drawn.
    """
    epochs = -(-draws // len(plan.sizes)) if _draws_sizes(plan) else 1
    sizes = []
    for step in range(epochs * plan.steps_per_epoch):
        rows = plan.batch(step)
        sizes.append(rows.size[rows.weights > 0])
    return np.concatenate(sizes)


def largest_size(plan: TrainPlan) -> tuple[int, int]:
    """What the largest bucket must hold, whatever `plan` draws."""
    if plan.crop_size:
        height, width = plan.crop_size
        return height, width
    if plan.scale_jitter and plan.scale_jitter[1] > 1:
        height, width = plan.buckets[-1].tolist()  # the jitter may fill it
        return height, width
    short_side = plan.short_sides.max()
    sizes = resized_sizes(
        plan.sizes, short_side=short_side, long_side=plan.long_side, resize=plan.resize
    )
    height, width = sizes.max(axis=0).tolist()
    return (max(height, width),) * 2 if plan.rot90 else (height, width)


def _draws_sizes(plan: TrainPlan) -> bool:
    jitter = plan.scale_jitter is not None and plan.scale_jitter[0] < plan.scale_jitter[1]
    return jitter or plan.rot90 or len(plan.short_sides) > 1


def _area_where_held(
    cells: Int[np.ndarray, "c 2"], shapes: Int[np.ndarray, "s 2"]
) -> Float[np.ndarray, "s c"]:
    """Each shape's area where it holds a cell, infinity where not."""
    holds = (cells <= shapes[:, None]).all(axis=-1)
    return np.where(holds, _pixels(shapes)[:, None], np.inf)


def _total(
    areas: Float[np.ndarray, "s c"],
    pictures: Int[np.ndarray, " c"],
    chosen: Int[np.ndarray, " k"],
) -> float:
    """What all pictures take, each in the smallest chosen shape that holds it."""
    return float(areas[chosen].min(axis=0) @ pictures)


def _exchanged(
    areas: Float[np.ndarray, "s c"],
    pictures: Int[np.ndarray, " c"],
    chosen: Int[np.ndarray, " k"],
    count: int,
) -> Int[np.ndarray, " k2"]:
    """The chosen shapes, made `count` and changed one by one for what saves most.

    The first of them stays. Fewer come back where more would save nothing.
    """
    while len(chosen) < count:
        more = _with_best(areas, pictures, chosen)
        if _total(areas, pictures, more) >= _total(areas, pictures, chosen):
            break
        chosen = more
    unchanged = 0
    while unchanged < len(chosen) - 1:
        other = _with_best(areas, pictures, np.delete(chosen, 1))  # the longest there goes first
        if _total(areas, pictures, other) < _total(areas, pictures, chosen):
            chosen, unchanged = other, 0
        else:
            chosen, unchanged = np.append(np.delete(chosen, 1), chosen[1]), unchanged + 1
    return chosen


def _with_best(
    areas: Float[np.ndarray, "s c"],
    pictures: Int[np.ndarray, " c"],
    chosen: Int[np.ndarray, " k"],
) -> Int[np.ndarray, " k1"]:
    """The chosen shapes and the one that saves most beside them."""
    totals = np.minimum(areas, areas[chosen].min(axis=0)) @ pictures
    return np.append(chosen, totals.argmin())


def _pixels(sizes: Int[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
    return np.prod(sizes, axis=1, dtype=np.float64)


def _hull(sizes: Int[np.ndarray, "N 2"]) -> tuple[int, int]:
    height, width = (-(-sizes.max(axis=0) // SIZE_MULTIPLE) * SIZE_MULTIPLE).tolist()
    return height, width
