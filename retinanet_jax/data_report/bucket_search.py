"""A search for the buckets that fit a dataset, and the padding overhead of given buckets.

A size in this module is the height and width of a resized image, without its padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32

from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.buckets import make_buckets, smallest_bucket
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import SIZE_MULTIPLE, round_up

MAX_SIDES = 64  # different heights, and widths, of a bucket: multiples of 32 up to 2048 pixels

NUM_STARTS = 16  # random starting points of the search; fewer if each would take long
MAX_WORK = 2**24  # shapes x distinct sizes, summed over all starting points


class BucketRow(NamedTuple):
    """One bucket of a table."""

    bucket: tuple[int, int]
    images: int
    padding_overhead: float  # fraction of the pixels of its images' buckets; 0 without images


class BucketTable(NamedTuple):
    """The images and the padding of buckets, with each image in the smallest that fits it."""

    rows: tuple[BucketRow, ...]
    padding_overhead: float


def choose_buckets(sizes: Int[np.ndarray, "N 2"], *, count: int) -> tuple[tuple[int, int], ...]:
    """Search for buckets that can contain all images with as little padding as possible.

    Sides are multiples of 32 (of a larger number if images exceed 2048 pixels). The search starts
    from a greedy choice and from random ones, and replaces single shapes until no replacement is
    better; on small datasets the result equals the best of all choices, which a test verifies.

    Args:
        sizes: Heights and widths of the images.
        count: The maximum number of buckets.

    Raises:
        ValueError: If there is no image or `count` is below 1.
    """
    if count < 1 or not len(sizes):
        raise ValueError(f"count={count} buckets for {len(sizes)} images: both must be 1 or more.")
    unit = SIZE_MULTIPLE * -(-int(np.max(sizes)) // (SIZE_MULTIPLE * MAX_SIDES))
    cells, images = np.unique(-(-np.asarray(sizes) // unit), axis=0, return_counts=True)
    sides = np.meshgrid(np.unique(cells[:, 0]), np.unique(cells[:, 1]), indexing="ij")
    shapes = np.stack(sides, axis=-1).reshape(-1, 2)  # the last can contain every image
    areas = _areas(cells, images, shapes)
    rng = np.random.default_rng(0)
    num_random = min(NUM_STARTS, MAX_WORK // areas.size)
    starts = [rng.permutation(len(shapes))[:count] for _ in range(num_random)]
    starts.append(np.array([], int))  # which is extended to the greedy choice
    choices = [_improve(areas, images, start, count) for start in starts]
    best = min(choices, key=lambda chosen: _total_area(areas, images, chosen))
    used = best[np.unique(areas[best].argmin(axis=0))]
    buckets = make_buckets((shapes[used] * unit).tolist())
    return tuple((height, width) for height, width in buckets.tolist())


def bucket_table(sizes: Int[np.ndarray, "N 2"], buckets: Sequence[tuple[int, int]]) -> BucketTable:
    """Return the number of images and the padding overhead of each bucket.

    The leftover images of each epoch, which training may pad to a larger bucket, and the fillers of
    their batches are not taken into account.

    Args:
        sizes: Heights and widths of the images.
        buckets: (H, W) of each bucket.

    Raises:
        ValueError: If a bucket is malformed, or if no bucket can contain some image.
    """
    shapes = make_buckets(buckets)
    bucket_index = smallest_bucket(sizes, shapes)
    if (bucket_index < 0).any():
        size = tuple(np.asarray(sizes)[np.argmax(bucket_index < 0)].tolist())
        raise ValueError(f"no bucket of {shapes.tolist()} can contain an image of {size}; add one.")
    images = np.bincount(bucket_index, minlength=len(shapes))
    image_pixels = np.bincount(bucket_index, weights=_pixels(sizes), minlength=len(shapes))
    bucket_pixels = images * _pixels(shapes)
    rows = tuple(
        BucketRow((height, width), int(n), 1 - float(used / area) if n else 0.0)
        for (height, width), n, used, area in zip(
            shapes.tolist(), images, image_pixels, bucket_pixels, strict=True
        )
    )
    return BucketTable(rows, 1 - float(image_pixels.sum() / bucket_pixels.sum()))


def one_shape(sizes: Int[np.ndarray, "N 2"]) -> tuple[tuple[int, int], ...]:
    """Return the smallest bucket that can contain every image."""
    return (_enclosing_bucket(np.asarray(sizes)),)


def two_shapes(sizes: Int[np.ndarray, "N 2"]) -> tuple[tuple[int, int], ...]:
    """Return the smallest bucket for portrait images and the smallest for all others."""
    sizes = np.asarray(sizes)
    portrait = sizes[:, 0] > sizes[:, 1]
    return tuple(_enclosing_bucket(sizes[mask]) for mask in (~portrait, portrait) if mask.any())


def sample_sizes(plan: TrainPlan, *, min_count: int) -> Int32[np.ndarray, "n 2"]:
    """Return the sizes to which `plan` resizes its images during the first epochs.

    Args:
        plan: The plan of training.
        min_count: The minimum number of sizes, if the plan samples sizes at random; otherwise the
            sizes of one epoch are returned.
    """
    epochs = -(-min_count // len(plan.sizes)) if _has_random_sizes(plan.augmentation) else 1
    sizes = []
    for step in range(epochs * plan.steps_per_epoch):
        batch_plan = plan.batch(step)
        sizes.append(batch_plan.size[batch_plan.weights > 0])
    return np.concatenate(sizes)


def _has_random_sizes(augmentation: Augmentation) -> bool:
    """Return whether the size of an image differs between epochs."""
    jitter = augmentation.scale_jitter
    is_jittered = jitter is not None and jitter[0] < jitter[1]
    return is_jittered or augmentation.rot90 or len(augmentation.possible_short_sides) > 1


def _areas(
    cells: Int[np.ndarray, "c 2"], images: Int[np.ndarray, " c"], shapes: Int[np.ndarray, "s 2"]
) -> Float[np.ndarray, "s c"]:
    """Return each shape's area for the cells that fit into it, and a penalty for the others.

    The penalty of an image exceeds the area of all images in the largest shape, which is last.
    Therefore a choice that leaves out an image is worse than one with the largest shape instead of
    any other, and the search does not end there.
    """
    fits = (cells <= shapes[:, None]).all(axis=-1)
    penalty = 2 * images.sum() * _pixels(shapes)[-1]
    return np.where(fits, _pixels(shapes)[:, None], penalty)


def _total_area(
    areas: Float[np.ndarray, "s c"],
    images: Int[np.ndarray, " c"],
    chosen: Int[np.ndarray, " k"],
) -> float:
    """Return the area of all images, each padded to the smallest chosen shape that fits it."""
    return float(areas[chosen].min(axis=0, initial=np.inf) @ images)


def _improve(
    areas: Float[np.ndarray, "s c"],
    images: Int[np.ndarray, " c"],
    chosen: Int[np.ndarray, " k"],
    count: int,
) -> Int[np.ndarray, " k2"]:
    """Return up to `count` shapes: the chosen ones, extended and replaced while that saves area.

    There are fewer than `count` if another would save nothing.
    """
    while len(chosen) < count:
        extended = _add_best(areas, images, chosen)
        if _total_area(areas, images, extended) >= _total_area(areas, images, chosen):
            break
        chosen = extended
    unchanged = 0
    while unchanged < len(chosen):
        # The first shape has been in the list for the longest time.
        other = _add_best(areas, images, chosen[1:])
        if _total_area(areas, images, other) < _total_area(areas, images, chosen):
            chosen, unchanged = other, 0
        else:
            chosen, unchanged = np.roll(chosen, -1), unchanged + 1
    return chosen


def _add_best(
    areas: Float[np.ndarray, "s c"],
    images: Int[np.ndarray, " c"],
    chosen: Int[np.ndarray, " k"],
) -> Int[np.ndarray, " k1"]:
    """Return the chosen shapes and the shape that saves the most area in addition to them."""
    totals = np.minimum(areas, areas[chosen].min(axis=0, initial=np.inf)) @ images
    return np.append(chosen, totals.argmin())


def _pixels(sizes: Int[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
    """Return the number of pixels of each size."""
    return np.prod(sizes, axis=1, dtype=np.float64)


def _enclosing_bucket(sizes: Int[np.ndarray, "N 2"]) -> tuple[int, int]:
    """Return the smallest bucket that can contain all sizes."""
    height, width = round_up(sizes.max(axis=0)).tolist()
    return height, width
