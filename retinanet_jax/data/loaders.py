"""A step's pictures, read, decoded and transformed in parallel: by tf.data, or by threads alone.

Both give the same pictures in the same order, within the grey level that JPEG libraries round
differently. tf.data is the faster one where pictures must be decoded; threads need no TensorFlow.
"""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float32, UInt8

from retinanet_jax.data import transforms
from retinanet_jax.data.plan import BatchPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.transforms import Geometry


class Loaded(NamedTuple):
    """What was planned for one step, and the pictures made by it."""

    rows: BatchPlan
    images: UInt8[np.ndarray, "B H W 3"] | Float32[np.ndarray, "B H W 3"]


def geometry(rows: BatchPlan, row: int) -> Geometry:
    """What becomes of the picture in one row."""
    fields = (rows.resized, rows.flip, rows.turns, rows.offset, rows.size)
    resized, flip, turns, offset, size = (field[row].tolist() for field in fields)
    return Geometry(tuple(resized), flip, turns, tuple(offset), tuple(size))


def load_by_tf(
    source: Source,
    host_plan: Callable[[int], BatchPlan],
    steps: range,
    prefetch: int,
    num_threads: int | None,
) -> Iterator[Loaded]:
    """Each step, in order; what TensorFlow refuses is told as one sentence."""
    tf = _tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    planned: dict[int, BatchPlan] = {}  # what waits for its pictures

    def plan_step(step: np.ndarray) -> np.ndarray:
        rows = planned[int(step)] = host_plan(int(step))
        buckets = np.tile(np.array(rows.bucket, np.int32), (len(rows.index), 1))
        # In the order that `_tf_image` takes them apart.
        return np.column_stack(
            [rows.index, buckets, rows.resized, rows.offset, rows.size, rows.turns, rows.flip]
        ).astype(np.int32)

    first = host_plan(0)
    batch_size, kind = len(first.index), first.resize
    pictures = _Pictures(source)
    as_it_is = tf.autograph.experimental.do_not_convert  # else TensorFlow rereads this file
    parallel = num_threads or tf.data.AUTOTUNE
    dataset = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(as_it_is(lambda step: _tf_plan(tf, plan_step, step, batch_size)))
        # A batch's files at once: Python is slow to enter. Several batches are read side by side.
        .map(as_it_is(lambda rows: _tf_read(tf, pictures, rows)), num_parallel_calls=parallel)
        .unbatch()
        .map(
            as_it_is(lambda *row: _tf_image(tf, pictures, kind, *row)),
            num_parallel_calls=parallel,
        )
        .batch(batch_size, drop_remainder=True)
        .prefetch(prefetch)
        .with_options(options)
    )
    loaded = dataset.as_numpy_iterator()
    for step in steps:
        try:
            images = next(loaded)
        except tf.errors.OpError as error:
            raise _culprit(tf, source, host_plan(step), error) from None
        yield Loaded(planned.pop(step), images)


def load_by_threads(
    source: Source,
    host_plan: Callable[[int], BatchPlan],
    steps: range,
    prefetch: int,
    num_threads: int | None,
) -> Iterator[Loaded]:
    """Each step, in order. Pillow and numpy let the threads run side by side."""
    pictures = _Pictures(source)
    workers = futures.ThreadPoolExecutor(num_threads or os.cpu_count())
    # Aside too: where pictures are many, the plan of a new epoch takes a second.
    planner = futures.ThreadPoolExecutor(1)

    def fill(image: np.ndarray, index: int, geometry: Geometry, kind: str) -> None:
        height, width = geometry.size
        held = pictures.pixels(index, geometry.resized)
        image[:height, :width] = transforms.transform_image(held, geometry, kind=kind)

    def begin(step: int) -> tuple[Loaded, list[futures.Future[None]]]:
        rows = host_plan(step)
        pixels = transforms.PIXEL_TYPES[rows.resize]
        images = np.zeros((len(rows.index), *rows.bucket, 3), pixels)
        filling = [
            workers.submit(fill, images[row], index, geometry(rows, row), rows.resize)
            for row, index in enumerate(rows.index.tolist())
        ]
        return Loaded(rows, images), filling

    ahead: collections.deque[futures.Future] = collections.deque()
    begun = iter(steps)
    try:
        for _ in steps:
            for step in itertools.islice(begun, prefetch + 1 - len(ahead)):
                ahead.append(planner.submit(begin, step))
            loaded, filling = ahead.popleft().result()
            for filled in filling:
                filled.result()
            yield loaded
    finally:
        for pool in (planner, workers):
            pool.shutdown(cancel_futures=True)


class _Pictures:
    """A source's pictures; told in one line where it holds them smaller than they are asked for."""

    def __init__(self, source: Source):
        self._source = source
        self._told = False

    def file(self, index: int) -> tuple[bytes, bool]:
        """The file (empty where the source holds pixels); whether TensorFlow decodes it alike."""
        data = self._source.read(index)
        if data is None:
            return b"", False
        return data, transforms.is_plain_jpeg(data, *self._declared(index))

    def decoded(self, index: int, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """What is in a file that TensorFlow would not decode alike."""
        name, size = self._declared(index)
        return transforms.decode_image(data, name, size=size)

    def pixels(self, index: int, resized: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Before they are `resized`."""
        image = self._source.image(index)
        original = int(self._source.sizes[index, 0])
        if image.shape[0] < min(resized[0], original) and not self._told:
            self._told = True
            logging.warning(
                "%s: holds %s, %d pixels high in the original, at %d, and %d are asked for: such "
                "pictures are enlarged and lack detail; pack them with larger sides.",
                self._source.name,
                self._source.file_name(index),
                original,
                image.shape[0],
                resized[0],
            )
        return image

    def _declared(self, index: int) -> tuple[str, tuple[int, int]]:
        """Name, and height and width."""
        height, width = self._source.sizes[index].tolist()
        return self._source.file_name(index), (height, width)


def _tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerator, which is the network's."""
    # Its log would tell of a bad picture in C++ before we tell of it in a sentence.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ValueError(
            f"loader='tf' needs TensorFlow, which cannot be imported here ({error}); pip install "
            "tensorflow-cpu, or do without it: --config.data.loader=numpy."
        ) from None
    # Where the program has already used TensorFlow's devices, it has settled this itself.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf


def _tf_plan(
    tf: ModuleType, plan_step: Callable[[np.ndarray], np.ndarray], step: Any, batch_size: int
) -> Any:
    rows = tf.numpy_function(plan_step, [step], tf.int32)
    return tf.ensure_shape(rows, (batch_size, 11))


def _tf_read(tf: ModuleType, pictures: _Pictures, rows: Any) -> tuple[Any, Any, Any]:
    """Beside each row its file, and whether TensorFlow decodes it as we do."""

    def read(indices):
        files, plain = zip(*map(pictures.file, indices.tolist()), strict=True)
        return np.array(files, object), np.array(plain)

    files, plain = tf.numpy_function(read, [rows[:, 0]], (tf.string, tf.bool))
    count = rows.shape[:1]
    return rows, tf.ensure_shape(files, count), tf.ensure_shape(plain, count)


def _tf_image(
    tf: ModuleType, pictures: _Pictures, kind: str, row: Any, file: Any, plain: Any
) -> Any:
    """One picture as the plan wants it, padded to its bucket."""
    index, bucket, resized, offset, size, turns, flip = tf.split(row, [1, 2, 2, 2, 2, 1, 1])

    def in_python():
        def pixels(index, resized, file):
            if file:
                return pictures.decoded(int(index), file)
            return pictures.pixels(int(index), tuple(resized.tolist()))

        image = tf.numpy_function(pixels, [index[0], resized, file], tf.uint8)
        return tf.ensure_shape(image, (None, None, 3))

    # A plain JPEG is decoded outside of Python's lock.
    image = tf.cond(plain, lambda: transforms.tf_decode_jpeg(file), in_python)
    image = transforms.tf_transform_image(
        image, resized, flip[0] > 0, turns[0], offset, size, kind=kind
    )
    return transforms.tf_pad(image, bucket)


def _culprit(tf: ModuleType, source: Source, rows: BatchPlan, error: Exception) -> Exception:
    """What is wrong with the first unusable picture of a step, found by doing it again."""
    pictures = _Pictures(source)
    for index in rows.index.tolist():
        try:
            source.image(index)
            file, plain = pictures.file(index)
            if plain:
                transforms.tf_decode_jpeg(file)
        except tf.errors.OpError:
            name = source.file_name(index)
            return ValueError(f"{name}: TensorFlow cannot decode the picture; save it anew.")
        except (OSError, ValueError) as found:
            return found
    names = ", ".join(source.file_name(index) for index in rows.index.tolist())
    return OSError(f"reading failed once, and now succeeds, for one of {names}: {error}")
