"""Source, plan and transforms joined: this host's batches, by tf.data.

Index driven: the plan says what a step holds, so that the iterator has no state to save and a
resumed run sees bit-equal batches from any step on. Pictures are made in parallel by TensorFlow,
boxes in numpy.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from retinanet_jax.data import transforms
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.plan import BatchPlan, Plan
from retinanet_jax.data.sources import Annotations, Source

BOX_MULTIPLE = 8  # boxes are padded to a multiple of this: data sets alike share a compilation


class _Rows(NamedTuple):
    """A host's batch before its boxes, as tf.data carries it."""

    images: UInt8[np.ndarray, "B H W 3"]
    index: Int32[np.ndarray, " B"]
    resized: Int32[np.ndarray, "B 2"]
    flip: Bool[np.ndarray, " B"]
    weights: Float32[np.ndarray, " B"]


def batches(
    source: Source,
    plan: Plan,
    *,
    start_step: int,
    num_steps: int | None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """This host's rows of the steps from `start_step` on, in order.

    `num_steps` None: to the plan's end. `prefetch`: batches made ahead. `num_threads` None: as
    many as tf.data finds useful.
    Raises ValueError or FileNotFoundError that names the picture where one cannot be used.
    """

    def host_rows(step: int) -> BatchPlan:
        return plan.batch(step).rows(process_index, process_count)

    host_rows(0)  # a batch that does not divide among the hosts is refused here, not by a thread
    stop = plan.num_batches if num_steps is None else start_step + num_steps
    steps = range(start_step, np.iinfo(np.int64).max if stop is None else stop)
    num_boxes, num_crowd = padded_counts(source)
    for rows in _load(source, host_rows, steps, prefetch, num_threads):
        yield _add_boxes(source, rows, num_boxes, num_crowd)


def padded_counts(source: Source) -> tuple[int, int]:
    """How many boxes and how many crowd regions every picture of `source` is padded to."""
    crowds = [source.annotations(index).crowd for index in range(len(source))]
    most_boxes = max(int((~crowd).sum()) for crowd in crowds)
    most_crowd = max(int(crowd.sum()) for crowd in crowds)
    return max(1, -(-most_boxes // BOX_MULTIPLE)) * BOX_MULTIPLE, max(1, most_crowd)


def _load(
    source: Source,
    host_rows: Callable[[int], BatchPlan],
    steps: range,
    prefetch: int,
    num_threads: int | None,
) -> Iterator[_Rows]:
    """The rows of each step, in order; what TensorFlow refuses is told as one sentence."""
    tf = _tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    batch_size = len(host_rows(0).index)
    as_it_is = tf.autograph.experimental.do_not_convert  # else TensorFlow rereads this file
    dataset = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(as_it_is(lambda step: _tf_plan(tf, host_rows, step, batch_size)))
        .unbatch()
        .map(
            as_it_is(lambda *row: _tf_image(tf, source, *row)),
            num_parallel_calls=num_threads or tf.data.AUTOTUNE,
        )
        .batch(batch_size, drop_remainder=True)
        .prefetch(prefetch)
        .with_options(options)
    )
    loaded = dataset.as_numpy_iterator()
    for step in steps:
        try:
            rows = next(loaded)
        except tf.errors.OpError as error:
            raise _culprit(tf, source, host_rows(step), error) from None
        yield _Rows(*rows)


def _tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerator, which is the network's."""
    # Its log would tell of a bad picture in C++ before we tell of it in a sentence.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    # Where the program has already used TensorFlow's devices, it has settled this itself.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf


def _tf_plan(
    tf: ModuleType, host_rows: Callable[[int], BatchPlan], step: Any, batch_size: int
) -> tuple[Any, ...]:
    """Each row's bucket, index, resized, flip, weight."""

    def planned(step):
        rows = host_rows(int(step))
        buckets = np.tile(np.array(rows.bucket, np.int32), (batch_size, 1))
        return buckets, rows.index, rows.resized, rows.flip, rows.weights

    types = (tf.int32, tf.int32, tf.int32, tf.bool, tf.float32)
    shapes = ((batch_size, 2), (batch_size,), (batch_size, 2), (batch_size,), (batch_size,))
    fields = tf.numpy_function(planned, [step], types)
    return tuple(map(tf.ensure_shape, fields, shapes))


def _tf_image(
    tf: ModuleType, source: Source, bucket: Any, index: Any, resized: Any, flip: Any, weight: Any
) -> tuple[Any, ...]:
    """One picture as the plan wants it: a row of `_Rows`."""

    def read(index):  # -> a JPEG that TensorFlow decodes outside Python's lock, or the pixels
        data, name, size = _picture(source, int(index))
        if transforms.is_plain_jpeg(data, name, size):
            return data, np.zeros((0, 0, 3), np.uint8)
        return b"", transforms.decode_image(data, name, size=size)

    data, pixels = tf.numpy_function(read, [index], (tf.string, tf.uint8))
    data, pixels = tf.ensure_shape(data, ()), tf.ensure_shape(pixels, (None, None, 3))
    image = tf.cond(
        tf.strings.length(data) > 0, lambda: transforms.tf_decode_jpeg(data), lambda: pixels
    )
    image = transforms.tf_resize(image, resized)
    image = tf.cond(flip, lambda: transforms.tf_flip(image), lambda: image)
    return transforms.tf_pad(image, bucket), index, resized, flip, weight


def _picture(source: Source, index: int) -> tuple[bytes, str, tuple[int, int]]:
    height, width = source.sizes[index].tolist()
    return source.read(index), source.file_name(index), (height, width)


def _culprit(tf: ModuleType, source: Source, rows: BatchPlan, error: Exception) -> Exception:
    """What is wrong with the first unusable picture of a step, found by doing it again."""
    for index in rows.index.tolist():
        try:
            data, name, size = _picture(source, index)
            transforms.decode_image(data, name, size=size)
            if transforms.is_plain_jpeg(data, name, size):
                transforms.tf_decode_jpeg(data)
        except tf.errors.OpError:
            return ValueError(f"{name}: TensorFlow cannot decode the picture; save it anew.")
        except (OSError, ValueError) as found:
            return found
    names = ", ".join(source.file_name(index) for index in rows.index.tolist())
    return OSError(f"reading failed once, and now succeeds, for one of {names}: {error}")


def _add_boxes(source: Source, rows: _Rows, num_boxes: int, num_crowd: int) -> Batch:
    batch_size = len(rows.index)
    original = source.sizes[rows.index]
    boxes = np.zeros((batch_size, num_boxes, 4), np.float32)
    classes = np.zeros((batch_size, num_boxes), np.int32)
    mask = np.zeros((batch_size, num_boxes), bool)
    crowd_boxes = np.zeros((batch_size, num_crowd, 4), np.float32)
    crowd_mask = np.zeros((batch_size, num_crowd), bool)
    for row, index in enumerate(rows.index.tolist()):
        objects = _transform(
            source.annotations(index), original[row], rows.resized[row], bool(rows.flip[row])
        )
        own, crowd = objects.boxes[~objects.crowd], objects.boxes[objects.crowd]
        boxes[row, : len(own)] = own
        classes[row, : len(own)] = objects.classes[~objects.crowd]
        mask[row, : len(own)] = True
        crowd_boxes[row, : len(crowd)] = crowd
        crowd_mask[row, : len(crowd)] = True
    return Batch(
        images=rows.images,
        sizes=rows.resized.astype(np.float32),
        scales=(original / rows.resized).astype(np.float32),
        boxes=boxes,
        classes=classes,
        mask=mask,
        crowd_boxes=crowd_boxes,
        crowd_mask=crowd_mask,
        weights=rows.weights,
        index=rows.index,
    )


def _transform(
    objects: Annotations, original: np.ndarray, resized: np.ndarray, flip: bool
) -> Annotations:
    """The boxes' way through what their picture went through."""
    boxes = transforms.resize_boxes(objects.boxes, resized / original)
    if flip:
        boxes = transforms.flip_boxes(boxes, float(resized[1]))
    return objects._replace(boxes=boxes)
