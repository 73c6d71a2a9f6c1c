"""The plan of each step: its images, their transforms, and the bucket that they are padded to.

A plan is a pure function of (seed, step), so the step number is the whole state of the pipeline.
All random transforms are sampled here, before an image is read, because the bucket depends on them.
The random generator is counter-based, so that a step can be planned without the earlier ones.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from retinanet_jax.data.augmentation import (
    Augmentation,
    ImageTransforms,
    resize_only,
    sample_transforms,
)
from retinanet_jax.data.buckets import (
    check_crop_fits,
    check_images_fit,
    make_buckets,
    minimal_buckets,
    smallest_bucket,
)
from retinanet_jax.data.random_streams import Stream, random_bits
from retinanet_jax.data.sizes import Length, check_resize_method, resized_sizes
from retinanet_jax.data.transforms import Geometry


class BatchPlan(NamedTuple):
    """The plan of one batch over all hosts."""

    bucket: tuple[int, int]  # (H, W) that the images are padded to
    resize: str  # the resize method, a key of transforms.PIXEL_TYPES
    index: Int32[np.ndarray, " B"]  # index of each image in its source; a filler repeats an image
    resized: Int32[np.ndarray, "B 2"]  # height and width of the resized image
    flip: Bool[np.ndarray, " B"]  # whether to flip left to right, after resizing
    rot90_k: Int32[np.ndarray, " B"]  # rotations by 90 degrees counterclockwise, after the flip
    offset: Int32[np.ndarray, "B 2"]  # y and x of the crop in the rotated image
    size: Int32[np.ndarray, "B 2"]  # height and width of the crop, which is padded to the bucket
    colors: Float32[np.ndarray, "B 4"]  # factors of brightness, contrast, saturation; hue shift
    weights: Float32[np.ndarray, " B"]  # 1 for an image, 0 for a filler

    def for_process(self, process_index: int, process_count: int) -> "BatchPlan":
        """Return the contiguous part of the batch that one host loads.

        Args:
            process_index: The index of the host.
            process_count: The number of hosts.

        Raises:
            ValueError: If the batch does not divide evenly among the processes.
        """
        size, remainder = divmod(len(self.index), process_count)
        if remainder:
            raise ValueError(
                f"batch_size={len(self.index)} does not divide among {process_count} processes; "
                f"try {process_count * max(1, size)}."
            )
        part = slice(process_index * size, (process_index + 1) * size)
        return BatchPlan(self.bucket, self.resize, *(field[part] for field in self[2:]))

    def geometry(self, example: int) -> Geometry:
        """Return the transforms of one example of the batch."""
        fields = (self.resized, self.flip, self.rot90_k, self.offset, self.size)
        resized, flip, rot90_k, offset, size = (field[example].tolist() for field in fields)
        return Geometry(tuple(resized), flip, rot90_k, tuple(offset), tuple(size))


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

    There is no last epoch.

    Args:
        sizes: Height and width of every image of the source, in pixels.
        augmentation: The ranges of the random transforms.
        seed: Determines all random samples, together with the step.
        batch_size: Number of images per step over all hosts.
        buckets: The (height, width) that images are padded to.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.

    Raises:
        ValueError: If an argument is out of range, or an image could fit in no bucket.
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
        self._check_buckets()
        self.steps_per_epoch = -(-len(self.sizes) // batch_size)
        self._latest_epoch: tuple[int, _Epoch] | None = None

    def batch(self, step: int) -> BatchPlan:
        """Return the batch of one step, counted from 0 over all epochs."""
        epoch_index, step_in_epoch = divmod(step, self.steps_per_epoch)
        # Read once, because the pipeline's thread, which may be an epoch ahead, replaces it.
        latest = self._latest_epoch
        if latest is None or latest[0] != epoch_index:
            latest = self._latest_epoch = epoch_index, self._plan_epoch(epoch_index)
        epoch = latest[1]
        return _batch_plan(
            self.buckets[epoch.bucket[step_in_epoch]],
            self.resize,
            epoch.index[step_in_epoch],
            epoch.transforms,
            epoch.weights[step_in_epoch],
        )

    def _plan_epoch(self, epoch: int) -> "_Epoch":
        transforms = sample_transforms(
            self.augmentation,
            self.sizes,
            seed=self.seed,
            epoch=epoch,
            resize=self.resize,
            largest_bucket=self.buckets[-1],
        )
        order = self._permutation(epoch, Stream.ORDER, len(self.sizes))
        bucket = smallest_bucket(transforms.size, self.buckets)
        full, leftover = [], []
        # Buckets are visited in the order of their aspect ratio, so that the leftover images of one
        # batch have similar shapes and few of them are padded to a much larger bucket.
        for bucket_index in np.argsort(self.buckets[:, 1] / self.buckets[:, 0], stable=True):
            members = order[bucket[order] == bucket_index]
            num_full = len(members) // self.batch_size * self.batch_size
            full.append(members[:num_full])
            leftover.append(members[num_full:])
        index, weights = _split_into_batches(np.concatenate(full + leftover), self.batch_size)
        shuffled = self._permutation(epoch, Stream.BATCHES, len(index))
        index = index[shuffled]
        return _Epoch(
            index=index,
            weights=weights[shuffled],
            bucket=smallest_bucket(transforms.size[index].max(axis=1), self.buckets),
            transforms=transforms,
        )

    def _permutation(self, epoch: int, stream: Stream, count: int) -> Int[np.ndarray, " n"]:
        return np.argsort(random_bits(self.seed, epoch, stream, count=count), stable=True)

    def _check_buckets(self) -> None:
        """Raise ValueError if an image or the crop could fit in no bucket."""
        crop_size, rot90 = self.augmentation.crop_size, self.augmentation.rot90
        if crop_size:
            check_crop_fits(crop_size, self.buckets)
        largest = resized_sizes(
            self.sizes,
            short_side=self.augmentation.possible_short_sides.max(),
            long_side=self.augmentation.long_side,
            resize=self.resize,
        )
        for rotated in (largest, largest[:, ::-1]) if rot90 else (largest,):
            cropped = np.minimum(rotated, crop_size) if crop_size else rotated
            check_images_fit(self.sizes, cropped, self.buckets)


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
        parts = [
            _split_into_batches(np.flatnonzero(bucket == bucket_index), batch_size)
            for bucket_index in np.unique(bucket)
        ]
        self._index = np.concatenate([index for index, _ in parts])
        self._weights = np.concatenate([weights for _, weights in parts])
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
    """The batches of one epoch, and the transforms of all images in it."""

    index: Int32[np.ndarray, "S B"]
    weights: Float32[np.ndarray, "S B"]
    bucket: Int[np.ndarray, " S"]
    transforms: ImageTransforms


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


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; try 1.")
