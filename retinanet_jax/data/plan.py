"""The plan of each step: its images, their transforms, and the bucket that they are padded to.

A plan is a pure function of (seed, step), so the step number is the whole state of the pipeline.
All random transforms are sampled here, before an image is read, because the bucket depends on them.
The random generator is counter-based, so that a step can be planned without the earlier ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt64

from retinanet_jax.data.augmentation import (
    Augmentation,
    ImageTransforms,
    largest_sizes,
    resize_only,
    sample_transforms,
)
from retinanet_jax.data.batch_plan import BatchPlan
from retinanet_jax.data.buckets import (
    check_crop_fits,
    check_images_fit,
    fewest_buckets,
    make_buckets,
    minimal_buckets,
    smallest_bucket,
)
from retinanet_jax.data.effects import Effects, sample_effects
from retinanet_jax.data.layers import Composer, PastableObjects
from retinanet_jax.data.random_streams import Stream, random_bits
from retinanet_jax.data.repeats import Repeats
from retinanet_jax.data.sizes import Length, check_resize_method, resized_sizes


@runtime_checkable
class Plan(Protocol):
    """The interface of a plan: the number of its batches, and each batch."""

    @property
    def num_batches(self) -> int | None:
        """The number of batches; None if there are infinitely many."""

    def batch(self, step: int, /) -> BatchPlan:
        """Return the batch of one step, counted from 0."""
        ...


class TrainPlan:
    """A plan for training: every epoch has each image once, in a new order and newly transformed.

    Repeated images are in it more than once, each time transformed differently.

    There is no last epoch. The images of a group all fit in one bucket; usually there is a group of
    landscapes and one of portraits. Each image is padded to its smallest bucket, except for the
    leftover images that do not fill a batch there: they may be padded to a larger bucket, together
    with others of their group. The last batch of each group is completed with fillers, so an epoch
    has at most one batch per group more than the number of images divided by the batch size.

    Args:
        sizes: Height and width of every image of the source, in pixels.
        augmentation: The ranges of the random transforms.
        seed: Determines all random samples, together with the step.
        batch_size: Number of images per step over all hosts.
        buckets: The (height, width) that images are padded to.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.
        repeat_factors: How often each image is in an epoch on average, as in `Repeats`; None means
            once.
        objects: The objects that may be pasted; None if none are.
        mixed_steps: The number of steps, from the first, with mosaic, mixup and copy-paste; None
            means all.

    Raises:
        ValueError: If an argument is out of range, or an image could fit in no bucket.

    Attributes:
        largest_sizes: The largest height and width that each image may have in its bucket; the
            first axis is the rotation by 0 and, if images are rotated, by 90 degrees.
        steps_per_epoch: The number of batches in every epoch.
    """

    num_batches = None

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 2"],
        augmentation: Augmentation,
        *,
        seed: int,
        batch_size: int,
        buckets: Sequence[Sequence[int]],
        resize: str,
        repeat_factors: Float[np.ndarray, " N"] | None = None,
        objects: PastableObjects | None = None,
        mixed_steps: int | None = None,
    ):
        _check_batch_size(batch_size)
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative; try {-seed}.")
        check_resize_method(resize)
        self.sizes = np.asarray(sizes)
        self.augmentation = augmentation
        self.seed = seed
        self.batch_size = batch_size
        self.buckets = make_buckets(buckets)
        self.resize = resize
        if augmentation.crop_size:
            check_crop_fits(augmentation.crop_size, self.buckets)
        self.largest_sizes = largest_sizes(
            augmentation, self.sizes, resize=resize, buckets=self.buckets
        )
        for largest in self.largest_sizes:
            check_images_fit(self.sizes, largest, self.buckets)
        # The group of an image, by rotation, is the index of a bucket that always contains it.
        groups = fewest_buckets(self.largest_sizes.reshape(-1, 2), self.buckets)
        self._groups = groups.reshape(len(self.largest_sizes), len(self.sizes))
        factors = np.ones(len(self.sizes)) if repeat_factors is None else repeat_factors
        # Rotations move images between the groups.
        fixed = self._groups[0] if len(self._groups) == 1 else np.zeros_like(self._groups[0])
        self._repeats = Repeats(factors, fixed)
        self._composer = Composer(
            augmentation, self.sizes, self._repeats.image, objects, seed=seed, resize=resize
        )
        self._mixed_steps = math.inf if mixed_steps is None else mixed_steps
        self.steps_per_epoch = self._count_steps()
        self._latest_epoch: tuple[int, _Epoch] | None = None

    @property
    def largest_bucket(self) -> tuple[int, int]:
        """The (height, width) of the largest area that a batch may be padded to."""
        height, width = self.buckets[self._groups.max()].tolist()
        return height, width

    def batch(self, step: int) -> BatchPlan:
        """Return the batch of one step, counted from 0 over all epochs."""
        epoch_index, step_in_epoch = divmod(step, self.steps_per_epoch)
        # Read once, because the pipeline's thread, which may be an epoch ahead, replaces it.
        latest = self._latest_epoch
        if latest is None or latest[0] != epoch_index:
            latest = self._latest_epoch = epoch_index, self._plan_epoch(epoch_index)
        epoch = latest[1]
        copies = epoch.index[step_in_epoch]
        batch_plan = _batch_plan(
            self.buckets[epoch.bucket[step_in_epoch]],
            self.resize,
            copies,
            epoch.transforms,
            epoch.weights[step_in_epoch],
        )
        composition = self._composer.compose(
            copies, epoch.transforms, epoch.composition_bits, is_mixed=step < self._mixed_steps
        )
        return batch_plan._replace(
            index=self._repeats.image[copies].astype(np.int32),
            composition=composition,
            effects=epoch.effects and epoch.effects.select(copies),
        )

    def _plan_epoch(self, epoch: int) -> "_Epoch":
        image = self._repeats.image  # of each copy
        transforms = sample_transforms(
            self.augmentation,
            self.sizes[image],
            seed=self.seed,
            epoch=epoch,
            resize=self.resize,
            buckets=self.buckets,
        )
        order = self._permutation(epoch, Stream.ORDER, len(image))
        order = order[self._repeats.present(self.seed, epoch)[order]]
        bucket = smallest_bucket(transforms.size, self.buckets)
        rotation = transforms.rot90_k % len(self._groups)
        group = self._groups[rotation, image]
        members = [order[group[order] == k] for k in np.unique(group[order])]
        index, weights = _join([self._batches_of_group(part, bucket[part]) for part in members])
        while len(index) < self.steps_per_epoch:
            index, weights = _divide_fullest(index, weights)
        shuffled = self._permutation(epoch, Stream.BATCHES, len(index))
        index = index[shuffled]
        return _Epoch(
            index=index,
            weights=weights[shuffled],
            bucket=smallest_bucket(transforms.size[index].max(axis=1), self.buckets),
            transforms=transforms,
            effects=sample_effects(self.augmentation, transforms.size, seed=self.seed, epoch=epoch),
            composition_bits=self._composer.random_bits(epoch),
        )

    def _batches_of_group(
        self, members: Int[np.ndarray, " n"], bucket: Int[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, "S B"], Float32[np.ndarray, "S B"]]:
        """Return the indices and weights of one group's batches; only the last has fillers."""
        full, leftover = [], []
        # Buckets are visited in the order of their aspect ratio, so that the leftover images of one
        # batch have similar shapes and few of them are padded to a much larger bucket.
        for bucket_index in np.argsort(self.buckets[:, 1] / self.buckets[:, 0], stable=True):
            of_bucket = members[bucket == bucket_index]
            num_full = len(of_bucket) // self.batch_size * self.batch_size
            full.append(of_bucket[:num_full])
            leftover.append(of_bucket[num_full:])
        return _split_into_batches(np.concatenate(full + leftover), self.batch_size)

    def _count_steps(self) -> int:
        """Return the number of batches that is enough in every epoch."""
        counts = self._repeats.group_counts
        if len(self._groups) == 1:
            return int((-(-counts // self.batch_size)).sum())
        # Rotations move images between the groups. A group of n > 0 images has 1 + (n - 1) // B
        # batches, so the sum over all groups is largest if each of them has an image.
        groups = min(len(np.unique(self._groups)), int(counts.sum()))
        return groups + (int(counts.sum()) - groups) // self.batch_size

    def _permutation(self, epoch: int, stream: Stream, count: int) -> Int[np.ndarray, " n"]:
        return np.argsort(random_bits(self.seed, epoch, stream, count=count), stable=True)


class EvalPlan:
    """A plan for evaluation: each image once, without random transforms.

    The bucket of an image depends only on its own size and the arguments, so that its detections do
    not depend on the other images. The last batch of each bucket is completed with fillers.

    Args:
        sizes: Height and width of every image of the source, in pixels.
        batch_size: Number of images per step over all hosts.
        buckets: The (height, width) that images are padded to. If empty, each image is padded to
            multiples of 32, as torchvision and detectron2 pad a single image.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.
        short_side: The target length of the short side, in pixels.
        long_side: The maximal length of the long side, in pixels.

    Raises:
        ValueError: If an argument is out of range or an image fits in no bucket.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 2"],
        *,
        batch_size: int,
        buckets: Sequence[Sequence[int]],
        resize: str,
        short_side: Length,
        long_side: Length,
    ):
        _check_batch_size(batch_size)
        self.sizes = np.asarray(sizes)
        self.resize = resize
        resized = resized_sizes(
            self.sizes, short_side=short_side, long_side=long_side, resize=resize
        )
        self.buckets = make_buckets(buckets) if len(buckets) else minimal_buckets(resized)
        check_images_fit(self.sizes, resized, self.buckets)
        self.transforms = resize_only(resized)
        bucket = smallest_bucket(resized, self.buckets)
        self._index, self._weights = _join(
            [
                _split_into_batches(np.flatnonzero(bucket == bucket_index), batch_size)
                for bucket_index in np.unique(bucket)
            ]
        )
        self._bucket = bucket[self._index[:, 0]]
        self.num_batches = len(self._index)

    def batch(self, step: int) -> BatchPlan:
        """Return the batch of one step, counted from 0.

        Raises:
            IndexError: If `step` is not below `num_batches`.
        """
        return _batch_plan(
            self.buckets[self._bucket[step]],
            self.resize,
            self._index[step],
            self.transforms,
            self._weights[step],
        )


class _Epoch(NamedTuple):
    """The batches of one epoch by the copies of `Repeats`, and the transforms of all copies."""

    index: Int32[np.ndarray, "S B"]
    weights: Float32[np.ndarray, "S B"]
    bucket: Int[np.ndarray, " S"]
    transforms: ImageTransforms
    effects: Effects | None
    composition_bits: dict[Stream, UInt64[np.ndarray, "E n"]]


def _batch_plan(
    bucket: Int32[np.ndarray, " 2"],
    resize: str,
    index: Int32[np.ndarray, " B"],
    transforms: ImageTransforms,
    weights: Float32[np.ndarray, " B"],
) -> BatchPlan:
    """Select the transforms of one batch's images."""
    height, width = bucket.tolist()
    selected = ImageTransforms(*(field[index] for field in transforms))
    return BatchPlan((height, width), resize, index, *selected, weights)


def _split_into_batches(
    members: Int[np.ndarray, " n"], batch_size: int
) -> tuple[Int32[np.ndarray, "S B"], Float32[np.ndarray, "S B"]]:
    """Return indices and weights; fillers of the last batch repeat its last image at weight 0."""
    missing = -len(members) % batch_size
    index = np.pad(members, (0, missing), mode="edge").astype(np.int32)
    weights = np.pad(np.ones(len(members), np.float32), (0, missing))
    return index.reshape(-1, batch_size), weights.reshape(-1, batch_size)


def _join(
    parts: Sequence[tuple[Int32[np.ndarray, "_ B"], Float32[np.ndarray, "_ B"]]],
) -> tuple[Int32[np.ndarray, "S B"], Float32[np.ndarray, "S B"]]:
    """Concatenate the indices, and the weights, of batches."""
    index, weights = zip(*parts, strict=True)
    return np.concatenate(index), np.concatenate(weights)


def _divide_fullest(
    index: Int32[np.ndarray, "S B"], weights: Float32[np.ndarray, "S B"]
) -> tuple[Int32[np.ndarray, "S1 B"], Float32[np.ndarray, "S1 B"]]:
    """Divide the images of the fullest batch between two batches."""
    fullest = weights.sum(axis=1).argmax()
    halves = np.array_split(index[fullest][weights[fullest] > 0], 2)
    parts = [(np.delete(index, fullest, axis=0), np.delete(weights, fullest, axis=0))]
    return _join(parts + [_split_into_batches(half, index.shape[1]) for half in halves])


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; try 1.")
