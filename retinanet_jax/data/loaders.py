"""Two loaders that read, decode and transform images in parallel: tf.data, and plain threads.

Both return the same images in the same order, except that their JPEG libraries may differ by one
gray level. tf.data is faster if images must be decoded; threads do not need TensorFlow.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Int32, UInt8

from retinanet_jax.data import tf_transforms, transforms
from retinanet_jax.data.batch_plan import BatchPlan
from retinanet_jax.data.composition import compose_image
from retinanet_jax.data.decoding import decode_image, is_plain_jpeg
from retinanet_jax.data.effects import apply_effects
from retinanet_jax.data.reading import read_patiently
from retinanet_jax.data.sources.base import Source
from retinanet_jax.utils.packages import not_installed
from retinanet_jax.utils.threads import DaemonThreads, map_ahead


class LoadedImages(NamedTuple):
    """The plan of one step, and its images."""

    batch_plan: BatchPlan
    images: UInt8[np.ndarray, "B H W 3"] | Float32[np.ndarray, "B H W 3"]


def load_by_tf(
    source: Source,
    host_plan: Callable[[int], BatchPlan],
    steps: range,
    prefetch: int,
    num_threads: int | None,
) -> Iterator[LoadedImages]:
    """Yield the images of each step, in order, loaded by tf.data.

    Args:
        source: Where the images come from.
        host_plan: Returns this host's plan of a step.
        steps: The steps to load.
        prefetch: The number of batches to load ahead.
        num_threads: The number of tf.data's threads; None lets tf.data choose.

    Raises:
        ValueError: If TensorFlow is not installed, or an image is invalid.
        OSError: If an image cannot be read.
    """
    tf = _import_tensorflow()
    reader = _ImageReader(source)
    waiting: dict[int, BatchPlan] = {}  # plans of batches that are being loaded

    def plan_step(step: np.int64) -> Int32[np.ndarray, "B 15"]:
        batch_plan = waiting[int(step)] = host_plan(int(step))
        return _plan_columns(batch_plan, int(step))

    dataset = _tf_dataset(
        *(tf, reader, plan_step, waiting, host_plan(0), steps, prefetch, num_threads)
    )
    iterator = dataset.as_numpy_iterator()
    for step in steps:
        try:
            images = next(iterator)
        except tf.errors.OpError as error:
            raise _find_error(tf, source, host_plan(step), error) from None
        yield LoadedImages(waiting.pop(step), images)


def load_by_threads(
    source: Source,
    host_plan: Callable[[int], BatchPlan],
    steps: range,
    prefetch: int,
    num_threads: int | None,
) -> Iterator[LoadedImages]:
    """Yield the images of each step, in order, loaded by threads.

    The threads run in parallel, because Pillow and numpy release Python's lock. The arguments and
    errors are those of `load_by_tf`; for `num_threads`, None means the number of cores.
    """
    reader = _ImageReader(source)
    workers = DaemonThreads(num_threads or os.cpu_count() or 1)

    def load(image: np.ndarray, batch_plan: BatchPlan, example: int) -> None:
        pixels = _with_effects(reader.transformed(batch_plan, example), batch_plan, example)
        height, width = pixels.shape[:2]
        image[:height, :width] = pixels

    def start(step: int) -> tuple[LoadedImages, list[futures.Future[None]]]:
        batch_plan = host_plan(step)
        pixel_type = transforms.PIXEL_TYPES[batch_plan.resize]
        images = np.zeros((len(batch_plan.index), *batch_plan.bucket, 3), pixel_type)
        loading = [
            workers.submit(load, image, batch_plan, example) for example, image in enumerate(images)
        ]
        return LoadedImages(batch_plan, images), loading

    # `start` runs in a thread, too, because planning an epoch of many images takes a second.
    started = map_ahead(start, steps, num_ahead=prefetch, num_threads=1)
    try:
        for loaded, loading in started:
            for future in loading:
                future.result()
            yield loaded
    finally:
        started.close()
        workers.close()


class _ImageReader:
    """Reads the images of a source, and warns once if they are smaller than requested."""

    def __init__(self, source: Source):
        self._source = source
        self._has_warned = False

    def file(self, index: int) -> tuple[bytes, bool]:
        """Return the file, empty if the source has pixels, and whether TensorFlow decodes it."""
        data = read_patiently(self._source, index, self._source.read)
        if data is None:
            return b"", False
        name, size = self._name_and_size(index)
        return data, is_plain_jpeg(data, name, size, self._source.decoding_of(index))

    def decode(self, index: int, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """Decode a file that TensorFlow would decode differently."""
        name, size = self._name_and_size(index)
        return decode_image(data, name, size=size, decoding=self._source.decoding_of(index))

    def pixels(self, index: int, resized: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Return the image that is to be resized to `resized`, (height, width)."""
        image = read_patiently(self._source, index, self._source.image)
        original_height = int(self._source.sizes[index, 0])
        if image.shape[0] < min(resized[0], original_height) and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "%s: contains %s, originally %d pixels high, at a height of %d, and %d pixels are "
                "requested: such images are enlarged and lack detail; pack them with larger sides.",
                self._source.name,
                self._source.file_name(index),
                original_height,
                image.shape[0],
                resized[0],
            )
        return image

    def transformed(self, batch_plan: BatchPlan, example: int) -> transforms.Pixels:
        """Return an example's transformed image, which may be composed of several images."""
        method, geometry = batch_plan.resize, batch_plan.geometry(example)
        if (composition := batch_plan.composition_of(example)) is not None:
            return compose_image(composition, geometry.size, self.pixels, method=method)
        pixels = self.pixels(int(batch_plan.index[example]), geometry.resized)
        return transforms.transform_image(pixels, geometry, method=method)

    def _name_and_size(self, index: int) -> tuple[str, tuple[int, int]]:
        """Return the file name and the declared (height, width)."""
        height, width = self._source.sizes[index].tolist()
        return self._source.file_name(index), (height, width)


def _import_tensorflow() -> ModuleType:
    """Import TensorFlow and keep it off the accelerator, which the network needs."""
    try:
        tf = tf_transforms.import_tensorflow()
    except ImportError as error:
        what = f"TensorFlow, which cannot be imported ({error})"
        otherwise = "load without it: --config.data.loader=numpy"
        raise not_installed("loader='tf'", what, "tensorflow-cpu", otherwise) from None
    # This raises if the program has already used, and so chosen, TensorFlow's devices.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf


def _tf_dataset(
    tf: ModuleType,
    reader: _ImageReader,
    plan_step: Callable[[np.int64], np.ndarray],
    waiting: Mapping[int, BatchPlan],
    example_plan: BatchPlan,
    steps: range,
    prefetch: int,
    num_threads: int | None,
) -> Any:
    """Return a tf.data dataset of the images of each step.

    `plan_step` returns the `_plan_columns` of a step, and adds its plan to `waiting`.
    `example_plan` has the batch size, the resize method and the optional parts of all steps.
    """
    options = tf.data.Options()
    options.deterministic = True
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    batch_size = len(example_plan.index)
    unconverted = tf.autograph.experimental.do_not_convert  # TensorFlow would parse this code
    parallel = num_threads or tf.data.AUTOTUNE
    return (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(unconverted(lambda step: _tf_plan(tf, plan_step, step, batch_size)))
        # All files of a batch in one call, because entering Python is slow. Several batches are
        # read at the same time.
        .map(unconverted(lambda plan: _tf_read(tf, reader, plan)), num_parallel_calls=parallel)
        .unbatch()
        .map(
            unconverted(lambda *example: _tf_image(tf, reader, waiting, example_plan, *example)),
            num_parallel_calls=parallel,
        )
        .batch(batch_size, drop_remainder=True)
        .prefetch(prefetch)
        .with_options(options)
    )


def _plan_columns(batch_plan: BatchPlan, step: int) -> Int32[np.ndarray, "B 15"]:
    """Return the plan of a batch as one array, which `_tf_image` splits in this order."""
    buckets = np.tile(np.array(batch_plan.bucket, np.int32), (len(batch_plan.index), 1))
    columns = (
        batch_plan.index,
        buckets,
        batch_plan.resized,
        batch_plan.offset,
        batch_plan.size,
        batch_plan.rot90_k,
        batch_plan.flip,
        np.full(len(buckets), step),
        np.arange(len(buckets)),
        batch_plan.has_effects,
        batch_plan.is_composed,
    )
    return np.column_stack(columns).astype(np.int32)


def _tf_plan(
    tf: ModuleType, plan_step: Callable[[np.int64], np.ndarray], step: Any, batch_size: int
) -> Any:
    """Return the plan's columns of one step as a tensor."""
    columns = tf.numpy_function(plan_step, [step], tf.int32)
    return tf.ensure_shape(columns, (batch_size, 15))


def _tf_read(tf: ModuleType, reader: _ImageReader, columns: Any) -> tuple[Any, Any, Any]:
    """Return the plan's columns, each example's file, and whether TensorFlow decodes it."""

    def read(
        indices: Int32[np.ndarray, " B"], is_composed: Int32[np.ndarray, " B"]
    ) -> tuple[np.ndarray, Bool[np.ndarray, " B"]]:
        loaded = [
            (b"", False) if composed else reader.file(index)
            for index, composed in zip(indices.tolist(), is_composed, strict=True)
        ]
        files, is_plain = zip(*loaded, strict=True)
        return np.array(files, object), np.array(is_plain)

    inputs = [columns[:, 0], columns[:, -1]]
    files, is_plain = tf.numpy_function(read, inputs, (tf.string, tf.bool))
    count = columns.shape[:1]
    return columns, tf.ensure_shape(files, count), tf.ensure_shape(is_plain, count)


def _tf_image(
    tf: ModuleType,
    reader: _ImageReader,
    waiting: Mapping[int, BatchPlan],
    example_plan: BatchPlan,
    columns: Any,
    file: Any,
    is_plain: Any,
) -> Any:
    """Return the image of one example, transformed by its plan and padded to its bucket."""
    widths = [1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    index, bucket, resized, offset, size, rot90_k, flip, *rest = tf.split(columns, widths)
    step, example, has_effects, is_composed = (column[0] for column in rest)
    method = example_plan.resize

    def decode(index: np.int32, resized: np.ndarray, file: bytes) -> np.ndarray:
        if file:
            return reader.decode(int(index), file)
        return reader.pixels(int(index), tuple(resized.tolist()))

    def compose(step: np.int32, example: np.int32) -> transforms.Pixels:
        return reader.transformed(waiting[int(step)], int(example))

    def affect(image: transforms.Pixels, step: np.int32, example: np.int32) -> transforms.Pixels:
        return _with_effects(image, waiting[int(step)], int(example))

    def call(function: Callable[..., np.ndarray], inputs: list[Any], dtype: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(function, inputs, dtype), (None, None, 3))

    def transform() -> Any:
        # A plain JPEG is decoded outside Python's lock.
        image = tf.cond(
            is_plain,
            lambda: tf_transforms.decode_jpeg(file),
            lambda: call(decode, [index[0], resized, file], tf.uint8),
        )
        return tf_transforms.transform_image(
            image, resized, flip[0] > 0, rot90_k[0], offset, size, method=method
        )

    dtype = transforms.PIXEL_TYPES[method]
    if example_plan.composition:
        image = tf.cond(is_composed > 0, lambda: call(compose, [step, example], dtype), transform)
    else:
        image = transform()
    if example_plan.effects:
        inputs = [image, step, example]
        image = tf.cond(has_effects > 0, lambda: call(affect, inputs, dtype), lambda: image)
    return tf_transforms.pad(image, bucket)


def _with_effects(
    image: transforms.Pixels, batch_plan: BatchPlan, example: int
) -> transforms.Pixels:
    """Return the transformed image of an example with the effects of its plan."""
    if batch_plan.effects is None:
        return image
    return apply_effects(image, batch_plan.effects.select(example))


def _find_error(
    tf: ModuleType, source: Source, batch_plan: BatchPlan, error: Exception
) -> Exception:
    """Read the images of a step again, and return the error of the first invalid image."""
    reader = _ImageReader(source)
    for index in batch_plan.images():
        try:
            file, is_plain = reader.file(index)
            source.decode(index, file) if file else source.image(index)
            if is_plain:
                tf_transforms.decode_jpeg(file)
        except tf.errors.OpError:
            name = source.file_name(index)
            return ValueError(f"{name}: TensorFlow cannot decode the image; save it again.")
        except (OSError, ValueError) as image_error:
            return image_error
    names = ", ".join(source.file_name(index) for index in batch_plan.images())
    return OSError(f"reading one of the images {names} failed, but succeeded again: {error}")
