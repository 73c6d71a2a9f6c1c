"""Which picture, how augmented, in which bucket, batch and step: a pure function of (seed, step).

All randomness of the input is drawn here, because a picture's bucket depends on its augmentation,
and by counter (Salmon et al. 2011, Philox), because then any step can be planned without planning
the ones before it: the state of the whole pipeline is the step number.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt64

from retinanet_jax.data.buckets import make_buckets, own_buckets, smallest_bucket
from retinanet_jax.data.sizes import (
    SIZE_MULTIPLE,
    _check_resize,
    _check_sides,
    _fitted,
    _whole_pixels,
    resized_sizes,
)

PLAIN_COLORS = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue as they are


class BatchPlan(NamedTuple):
    """One batch over all hosts."""

    bucket: tuple[int, int]  # (H, W) that all its pictures are padded to
    resize: str  # the kind of resizing, of transforms.PIXEL_TYPES
    index: Int32[np.ndarray, " B"]  # row of the source; a filler repeats a real one
    resized: Int32[np.ndarray, "B 2"]  # height and width of the upright picture once resized
    flip: Bool[np.ndarray, " B"]  # left to right, after resizing
    turns: Int32[np.ndarray, " B"]  # quarter turns counter-clockwise, after the flip
    offset: Int32[np.ndarray, "B 2"]  # y and x, in the turned picture, of the window that is kept
    size: Int32[np.ndarray, "B 2"]  # height and width of that window: what the bucket shows
    colors: Float32[np.ndarray, "B 4"]  # brightness, contrast, saturation factors; shift of the hue
    weights: Float32[np.ndarray, " B"]  # 1 a picture, 0 a filler

    def rows(self, process_index: int, process_count: int) -> "BatchPlan":
        """One host's contiguous share; ValueError where the batch does not divide."""
        size, left_over = divmod(len(self.index), process_count)
        if left_over:
            raise ValueError(
                f"batch_size={len(self.index)} does not divide among {process_count} processes; "
                f"try {process_count * max(1, size)}."
            )
        own = slice(process_index * size, (process_index + 1) * size)
        return BatchPlan(self.bucket, self.resize, *(field[own] for field in self[2:]))


@runtime_checkable
class Plan(Protocol):
    """What the pipeline needs of a plan."""

    @property
    def num_batches(self) -> int | None:
        """How many batches there are; None is endless."""

    def batch(self, step: int, /) -> BatchPlan:
        """The batch of one step, counted from 0."""
        ...


class TrainPlan:
    """Epochs without end; each picture exactly once an epoch, in a new order and augmentation.

    `sizes`: height and width of every picture; `resize`: the kind of resizing, of
    transforms.PIXEL_TYPES; the rest is the recipe, drawn anew a picture and epoch, uniformly:
    `short_sides`: one of them ("choice"), or a whole number from the first to the second ("range").
    `scale_jitter`: (lo, hi) of a factor on both target sides, limited so that the largest bucket
    still holds the picture. With `crop_size`, (height, width), it is not limited, and what exceeds
    that size is cut off at a drawn offset (Ghiasi et al. 2021, large-scale jitter).
    `rot90`: 0 to 3. `color_jitter`: strength s of a factor in [max(0, 1 - s), 1 + s] on
    brightness, contrast and saturation, and of a shift in [-s, s] turns of the colour circle, hue.
    Raises ValueError where the recipe or a bucket is malformed or no bucket holds a picture.
    """

    num_batches = None

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 2"],
        *,
        seed: int,
        batch_size: int,
        buckets: Sequence[tuple[int, int]],
        resize: str,
        short_sides: Sequence[float],
        short_side_sampling: str,
        long_side: float,
        flip: bool,
        scale_jitter: tuple[float, float] | None,
        crop_size: tuple[int, int] | None,
        rot90: bool,
        color_jitter: Mapping[str, float],
    ):
        _check_count("batch_size", batch_size)
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative; try {-seed}.")
        _check_resize(resize)
        _check_sides(short_sides, short_side_sampling, long_side)
        if scale_jitter and not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise ValueError(
                f"scale_jitter={tuple(scale_jitter)} must be (lo, hi) with 0 < lo <= hi; "
                "try (0.8, 1.2), or None for off."
            )
        self.sizes = np.asarray(sizes)
        self.seed = seed
        self.batch_size = batch_size
        self.buckets = make_buckets(buckets)
        self.resize = resize
        self.short_sides = np.asarray(short_sides, np.float64)
        if short_side_sampling == "range":
            self.short_sides = np.arange(short_sides[0], short_sides[1] + 1, dtype=np.float64)
        self.long_side = long_side
        self.flip = flip
        self.scale_jitter = scale_jitter
        self.crop_size = crop_size
        self.rot90 = rot90
        self.color_strengths = _strengths(color_jitter)
        self._check_held()
        self.steps_per_epoch = -(-len(self.sizes) // batch_size)
        self._planned: tuple[int, _Epoch] | None = None

    def batch(self, step: int) -> BatchPlan:
        """The batch of one step, counted from 0 over all epochs."""
        epoch, row = divmod(step, self.steps_per_epoch)
        # By a local name: the pipeline's thread may be an epoch ahead of another caller.
        latest = self._planned
        if latest is None or latest[0] != epoch:
            latest = self._planned = epoch, self._plan_epoch(epoch)
        planned = latest[1]
        return _batch_plan(
            self.buckets[planned.bucket[row]],
            self.resize,
            planned.index[row],
            planned.views,
            planned.weights[row],
        )

    def _plan_epoch(self, epoch: int) -> "_Epoch":
        views = self._draw_views(epoch)
        order = np.argsort(self._draw(epoch, _Stream.ORDER), kind="stable")
        bucket = smallest_bucket(views.size, self.buckets)
        full, rest = [], []
        for number in np.argsort(self.buckets[:, 1] / self.buckets[:, 0], kind="stable"):
            members = order[bucket[order] == number]
            cut = len(members) // self.batch_size * self.batch_size
            full.append(members[:cut])
            rest.append(members[cut:])
        # Buckets were visited by aspect, so that leftovers which share a batch are of like form
        # and few of them need a much larger bucket than their own.
        index, weights = _fill(np.concatenate(full + rest), self.batch_size)
        shuffled = np.argsort(self._draw(epoch, _Stream.BATCHES, len(index)), kind="stable")
        index = index[shuffled]
        return _Epoch(
            index=index,
            weights=weights[shuffled],
            bucket=smallest_bucket(views.size[index].max(axis=1), self.buckets),
            views=views,
        )

    def _draw_views(self, epoch: int) -> "_Views":
        turns = np.zeros(len(self.sizes), np.int32)
        if self.rot90:
            turns = _whole(self._draw(epoch, _Stream.TURNS), 4)
        resized = self._resized(epoch, turns)
        turned = _turned(resized, turns)
        size = np.minimum(turned, self.crop_size) if self.crop_size else turned
        drawn = [self._draw(epoch, stream) for stream in (_Stream.OFFSET_Y, _Stream.OFFSET_X)]
        return _Views(
            resized=resized,
            flip=_uniform(self._draw(epoch, _Stream.FLIP)) < (0.5 if self.flip else 0.0),
            turns=turns,
            offset=_whole(np.stack(drawn, axis=1), turned - size + 1),
            size=size.astype(np.int32),
            colors=self._colors(epoch),
        )

    def _resized(self, epoch: int, turns: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, "N 2"]:
        chosen = _whole(self._draw(epoch, _Stream.SHORT_SIDE), len(self.short_sides))
        fitted = _fitted(self.sizes, self.short_sides[chosen], self.long_side, self.resize)
        if self.scale_jitter:
            low, high = self.scale_jitter
            factor = low + (high - low) * _uniform(self._draw(epoch, _Stream.SCALE))
            if not self.crop_size:
                # The largest bucket is the last; without the jitter it holds every picture.
                limit = self.buckets[-1] / _turned(fitted, turns)
                factor = np.minimum(factor, limit.min(axis=1))
            fitted *= factor[:, None]
        return _whole_pixels(fitted, self.resize)

    def _colors(self, epoch: int) -> Float32[np.ndarray, "N 4"]:
        streams = _Stream.BRIGHTNESS, _Stream.CONTRAST, _Stream.SATURATION, _Stream.HUE
        drawn = np.stack([_uniform(self._draw(epoch, stream)) for stream in streams], axis=1)
        identity = np.array(PLAIN_COLORS)
        low = identity - self.color_strengths
        low[:3] = np.maximum(low[:3], 0)
        high = identity + self.color_strengths
        return (low + (high - low) * drawn).astype(np.float32)

    def _draw(
        self, epoch: int, stream: "_Stream", count: int | None = None
    ) -> UInt64[np.ndarray, " N"]:
        # Raw bits, because numpy promises that those stay the same from version to version, which
        # it does not for the distributions. The last counter word keeps the streams apart.
        bits = np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, stream])
        return bits.random_raw(len(self.sizes) if count is None else count)

    def _check_held(self) -> None:
        """Raises ValueError where a bucket must be added: for a picture, or for the crop."""
        if self.crop_size:
            _check_crop(self.crop_size, self.buckets)
        largest = resized_sizes(
            self.sizes,
            short_side=self.short_sides.max(),
            long_side=self.long_side,
            resize=self.resize,
        )
        for turned in (largest, largest[:, ::-1]) if self.rot90 else (largest,):
            shown = np.minimum(turned, self.crop_size) if self.crop_size else turned
            _check_held(self.sizes, shown, self.buckets)


class EvalPlan:
    """Every picture once, nothing random: its bucket depends on its own size and the recipe alone.

    So its detections do not depend on its neighbours. Each bucket's last batch is completed with
    fillers. Where no `buckets` are given, every resized size has its own: rounded up to multiples
    of 32, as torchvision and detectron2 pad a picture that is alone. `resize`: the kind of
    resizing, of transforms.PIXEL_TYPES.
    Raises ValueError where a bucket is malformed or none holds a picture.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 2"],
        *,
        batch_size: int,
        buckets: Sequence[tuple[int, int]],
        resize: str,
        short_side: float,
        long_side: float,
    ):
        _check_count("batch_size", batch_size)
        self.sizes = np.asarray(sizes)
        self.resize = resize
        resized = resized_sizes(
            self.sizes, short_side=short_side, long_side=long_side, resize=resize
        )
        self.buckets = make_buckets(buckets) if len(buckets) else own_buckets(resized)
        _check_held(self.sizes, resized, self.buckets)
        self.views = _plain_views(resized)
        bucket = smallest_bucket(resized, self.buckets)
        filled = [
            _fill(np.flatnonzero(bucket == number), batch_size) for number in np.unique(bucket)
        ]
        self.index = np.concatenate([index for index, _ in filled])
        self.weights = np.concatenate([weights for _, weights in filled])
        self.bucket = bucket[self.index[:, 0]]
        self.num_batches = len(self.index)

    def batch(self, step: int) -> BatchPlan:
        """One of the `num_batches` batches; IndexError beyond."""
        bucket = self.buckets[self.bucket[step]]
        return _batch_plan(bucket, self.resize, self.index[step], self.views, self.weights[step])


@enum.unique
class _Stream(enum.IntEnum):
    """One for each thing drawn, so that a new one leaves the others as they were."""

    ORDER = 0
    BATCHES = 1
    FLIP = 2
    SHORT_SIDE = 3
    SCALE = 4
    TURNS = 5
    OFFSET_Y = 6
    OFFSET_X = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    HUE = 11


class _Views(NamedTuple):
    """What becomes of each picture of the source; see `BatchPlan`."""

    resized: Int32[np.ndarray, "N 2"]
    flip: Bool[np.ndarray, " N"]
    turns: Int32[np.ndarray, " N"]
    offset: Int32[np.ndarray, "N 2"]
    size: Int32[np.ndarray, "N 2"]
    colors: Float32[np.ndarray, "N 4"]


class _Epoch(NamedTuple):
    index: Int32[np.ndarray, "S B"]
    weights: Float32[np.ndarray, "S B"]
    bucket: Int[np.ndarray, " S"]
    views: _Views


def _plain_views(resized: Int32[np.ndarray, "N 2"]) -> _Views:
    """Resized, and nothing else."""
    count = len(resized)
    return _Views(
        resized=resized,
        flip=np.zeros(count, bool),
        turns=np.zeros(count, np.int32),
        offset=np.zeros((count, 2), np.int32),
        size=resized,
        colors=np.tile(np.array(PLAIN_COLORS, np.float32), (count, 1)),
    )


def _batch_plan(
    bucket: Int32[np.ndarray, " 2"],
    resize: str,
    index: Int32[np.ndarray, " B"],
    views: _Views,
    weights: Float32[np.ndarray, " B"],
) -> BatchPlan:
    shown = _Views(*(field[index] for field in views))
    height, width = bucket.tolist()
    return BatchPlan((height, width), resize, index, *shown, weights)


def _fill(
    members: Int[np.ndarray, " n"], batch_size: int
) -> tuple[Int32[np.ndarray, "S B"], Float32[np.ndarray, "S B"]]:
    """Cut into batches; the last one is completed by repeating its last member at weight 0."""
    missing = -len(members) % batch_size
    index = np.pad(members, (0, missing), mode="edge").astype(np.int32)
    weights = np.pad(np.ones(len(members), np.float32), (0, missing))
    return index.reshape(-1, batch_size), weights.reshape(-1, batch_size)


def _uniform(raw: UInt64[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    return (raw >> 11) * 2.0**-53  # in [0, 1): the 53 bits that a float64 holds


def _whole(
    raw: UInt64[np.ndarray, "*axes"], count: int | Int[np.ndarray, "*axes"]
) -> Int32[np.ndarray, "*axes"]:
    """Whole numbers from 0 to `count` - 1."""
    return (_uniform(raw) * count).astype(np.int32)


def _turned(
    sizes: Int[np.ndarray, "N 2"], turns: Int32[np.ndarray, " N"]
) -> Int[np.ndarray, "N 2"]:
    """Height and width after quarter turns."""
    return np.where(turns[:, None] % 2 == 1, sizes[:, ::-1], sizes)


def _strengths(color_jitter: Mapping[str, float]) -> Float[np.ndarray, " 4"]:
    """Of brightness, contrast, saturation and hue."""
    names = ("brightness", "contrast", "saturation", "hue")
    for name in names:
        if not color_jitter[name] >= 0:
            raise ValueError(
                f"color_jitter[{name!r}]={color_jitter[name]} must not be negative; try 0 for off."
            )
    return np.array([color_jitter[name] for name in names], np.float64)


def _check_crop(crop_size: tuple[int, int], buckets: Int[np.ndarray, "b 2"]) -> None:
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(
            f"crop_size={tuple(crop_size)} must be a positive (height, width); "
            "try (640, 640), or None for off."
        )
    if (np.asarray(crop_size) > buckets[-1]).any():
        needed = tuple(-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in crop_size)
        raise ValueError(
            f"crop_size={tuple(crop_size)} is held by no bucket of {buckets.tolist()}; "
            f"add the bucket {needed}, or lower the crop."
        )


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1; try 1.")


def _check_held(
    sizes: Int[np.ndarray, "N 2"],
    resized: Int[np.ndarray, "N 2"],
    buckets: Int[np.ndarray, "b 2"],
) -> None:
    if not len(sizes):
        raise ValueError("a plan needs at least one picture, got none; check the data set's paths.")
    loose = np.flatnonzero(smallest_bucket(resized, buckets) < 0)
    if len(loose):
        first = loose[0]
        needed = tuple(int(side) for side in -(-resized[first] // SIZE_MULTIPLE) * SIZE_MULTIPLE)
        raise ValueError(
            f"picture {first} of {tuple(sizes[first].tolist())} (height, width) becomes "
            f"{tuple(resized[first].tolist())}, which no bucket of {buckets.tolist()} holds "
            f"({len(loose)} such pictures); add the bucket {needed}, or lower the target sides."
        )
