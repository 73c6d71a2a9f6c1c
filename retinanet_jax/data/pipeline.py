"""The data pipeline: the batches of this host, made from a source by a plan.

The plan determines the content of each step, so that the iterator has no state to save and a
resumed run gets bit-equal batches from any step. A loader reads and transforms the images ahead of
time and in parallel; the boxes are added here.
"""

from collections.abc import Generator, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int32

from retinanet_jax.data import transforms
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.batch_plan import BatchPlan
from retinanet_jax.data.composition import compose_boxes, placed_layers
from retinanet_jax.data.layers import Composition
from retinanet_jax.data.loaders import LoadedImages, load_by_tf, load_by_threads
from retinanet_jax.data.plan import Plan
from retinanet_jax.data.sources.base import Annotations, Source

# Boxes are padded to a multiple of this number, so that similar datasets need one compilation.
BOX_MULTIPLE = 8
LOADERS = {"tf": load_by_tf, "numpy": load_by_threads}


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
    loader: str,
    min_visible: float,
) -> Generator[Batch, None, None]:
    """Yield this host's part of each batch, in the order of the steps.

    Args:
        source: The images and annotations.
        plan: Determines the content of each step.
        start_step: The first step.
        num_steps: The number of steps; None means until the plan ends.
        process_index: The index of this host.
        process_count: The number of hosts, among which each batch is divided.
        prefetch: The number of batches to load ahead.
        num_threads: The number of the loader's threads; None lets the loader choose.
        loader: "tf" (tf.data), or "numpy", which never imports TensorFlow.
        min_visible: The fraction of a box's area, from 0 to 1, that must be inside the transformed
            image. Other boxes and crowd regions are dropped, as are those with no area inside.

    Raises:
        ValueError: If an argument is out of range, or an image is invalid.
        OSError: If an image cannot be read.
    """
    if loader not in LOADERS:
        raise ValueError(f"loader={loader!r} must be one of {', '.join(map(repr, LOADERS))}.")
    if not 0 <= min_visible <= 1:
        raise ValueError(f"min_visible={min_visible} must be a fraction from 0 to 1; try 0.")

    def host_plan(step: int) -> BatchPlan:
        return plan.batch(step).for_process(process_index, process_count)

    # Raises here, not in a thread, if the batch does not divide among the hosts.
    num_layers = host_plan(0).num_layers
    stop = plan.num_batches if num_steps is None else start_step + num_steps
    steps = range(start_step, np.iinfo(np.int64).max if stop is None else stop)
    num_boxes, num_crowd = padded_counts(source, num_layers)
    for loaded in LOADERS[loader](source, host_plan, steps, prefetch, num_threads):
        yield _add_boxes(source, loaded, num_boxes, num_crowd, min_visible)


def batch_shapes(source: Source, plan: Plan, steps: Iterable[int]) -> Iterator[Batch]:
    """Yield a batch of black images for each bucket of these steps, in the order of first use.

    The batches have the shapes and dtypes of the real batches over all hosts, so that programs can
    be compiled before any image is read.

    Args:
        source: The images and annotations.
        plan: Determines the bucket of each step.
        steps: The steps to consider.
    """
    num_boxes, num_crowd = padded_counts(source, plan.batch(0).num_layers)
    buckets = set()
    for step in steps:
        batch_plan = plan.batch(step)
        if batch_plan.bucket not in buckets:
            buckets.add(batch_plan.bucket)
            black = np.zeros((), transforms.PIXEL_TYPES[batch_plan.resize])
            images = np.broadcast_to(black, (len(batch_plan.index), *batch_plan.bucket, 3))
            loaded = LoadedImages(batch_plan, images)
            yield _add_boxes(source, loaded, num_boxes, num_crowd, min_visible=0.0)


def padded_counts(source: Source, num_layers: int = 1) -> tuple[int, int]:
    """Return the numbers of boxes and of crowd regions that every image is padded to.

    Args:
        source: The annotations.
        num_layers: The largest number of images that one is composed of.
    """
    crowds = [source.annotations(index).crowd for index in range(len(source))]
    most_boxes = num_layers * max(int((~crowd).sum()) for crowd in crowds)
    most_crowd = num_layers * max(int(crowd.sum()) for crowd in crowds)
    return max(1, -(-most_boxes // BOX_MULTIPLE)) * BOX_MULTIPLE, max(1, most_crowd)


def visible_annotations(
    source: Source, batch_plan: BatchPlan, example: int, *, min_visible: float
) -> tuple[Annotations, int]:
    """Return one example's annotations in pixels of its transformed image.

    Args:
        source: The annotations of the original images.
        batch_plan: The plan of the example's batch.
        example: The index of the example in the batch.
        min_visible: As in `batches`.

    Returns:
        The annotations that are visible enough, and the number of dropped boxes of the example's
        own image, which does not include crowd regions.
    """
    geometry = batch_plan.geometry(example)
    if (composition := batch_plan.composition_of(example)) is not None:
        annotations, visible, is_own = _composed_annotations(source, composition, geometry.size)
    else:
        index = int(batch_plan.index[example])
        annotations = source.annotations(index)
        height, width = source.sizes[index].tolist()
        boxes, visible = transforms.transform_boxes(annotations.boxes, (height, width), geometry)
        annotations, is_own = annotations._replace(boxes=boxes), np.ones(len(boxes), bool)
    keep = (visible > 0) & (visible >= min_visible)
    num_dropped = int((~keep & ~annotations.crowd & is_own).sum())
    return Annotations(*(field[keep] for field in annotations)), num_dropped


def _composed_annotations(
    source: Source, composition: Composition, size: tuple[int, int]
) -> tuple[Annotations, Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return a composed example's annotations, how much is visible, and which are its image's."""
    layers = placed_layers(composition)
    parts = [source.annotations(layer.index) for layer in layers]
    original_sizes = [tuple(source.sizes[layer.index].tolist()) for layer in layers]
    boxes, visible = compose_boxes(
        composition, size, [part.boxes for part in parts], original_sizes
    )
    _, classes, crowd = (np.concatenate(field) for field in zip(*parts, strict=True))
    return Annotations(boxes, classes, crowd), visible, np.arange(len(boxes)) < len(parts[0].boxes)


def _add_boxes(
    source: Source, loaded: LoadedImages, num_boxes: int, num_crowd: int, min_visible: float
) -> Batch:
    """Return the batch of loaded images and their ground truth."""
    batch_plan = loaded.batch_plan
    batch = Batch.of_images(
        loaded.images,
        sizes=batch_plan.size.astype(np.float32),
        scales=_scales(source.sizes[batch_plan.index], batch_plan),
        num_boxes=num_boxes,
        num_crowd=num_crowd,
    )
    for example in range(len(batch_plan.index)):
        annotations, batch.dropped[example] = visible_annotations(
            source, batch_plan, example, min_visible=min_visible
        )
        crowd = annotations.crowd
        num_objects, num_regions = int((~crowd).sum()), int(crowd.sum())
        batch.boxes[example, :num_objects] = annotations.boxes[~crowd]
        batch.classes[example, :num_objects] = annotations.classes[~crowd]
        batch.mask[example, :num_objects] = True
        batch.crowd_boxes[example, :num_regions] = annotations.boxes[crowd]
        batch.crowd_mask[example, :num_regions] = True
    return batch._replace(
        weights=batch_plan.weights, index=batch_plan.index, colors=batch_plan.colors
    )


def _scales(
    original: Int32[np.ndarray, "B 2"], batch_plan: BatchPlan
) -> Float32[np.ndarray, "B 2"]:
    """Return original pixels per input pixel, (y, x); odd multiples of 90 degrees swap the axes."""
    scales = (original / batch_plan.resized).astype(np.float32)
    return np.where(batch_plan.rot90_k[:, None] % 2 == 1, scales[:, ::-1], scales)
