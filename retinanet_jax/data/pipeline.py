"""Source, plan and transforms joined: this host's batches.

Index driven: the plan says what a step holds, so that the iterator has no state to save and a
resumed run sees bit-equal batches from any step on. Pictures are made ahead and in parallel by a
loader, boxes here.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from retinanet_jax.data import transforms
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.loaders import Loaded, geometry, load_by_tf, load_by_threads
from retinanet_jax.data.plan import BatchPlan, Plan
from retinanet_jax.data.sources.base import Annotations, Source

BOX_MULTIPLE = 8  # boxes are padded to a multiple of this: data sets alike share a compilation
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
) -> Iterator[Batch]:
    """This host's rows of the steps from `start_step` on, in order.

    `num_steps` None: to the plan's end. `prefetch`: batches made ahead. `num_threads` None: as
    many as the loader finds useful. `loader`: "tf" (tf.data) or "numpy", which never imports
    TensorFlow. Boxes, crowd regions too, of which less than `min_visible` of the area is left in
    the picture, or none, are left out.
    Raises ValueError or FileNotFoundError that names the picture where one cannot be used.
    """
    if loader not in LOADERS:
        raise ValueError(f"loader={loader!r} must be one of {', '.join(map(repr, LOADERS))}.")
    if not 0 <= min_visible <= 1:
        raise ValueError(f"min_visible={min_visible} must be a share, from 0 to 1; try 0.")

    def host_plan(step: int) -> BatchPlan:
        return plan.batch(step).rows(process_index, process_count)

    host_plan(0)  # a batch that does not divide among the hosts is refused here, not by a thread
    stop = plan.num_batches if num_steps is None else start_step + num_steps
    steps = range(start_step, np.iinfo(np.int64).max if stop is None else stop)
    num_boxes, num_crowd = padded_counts(source)
    for loaded in LOADERS[loader](source, host_plan, steps, prefetch, num_threads):
        yield _add_boxes(source, loaded, num_boxes, num_crowd, min_visible)


def batch_shapes(source: Source, plan: Plan, steps: Iterable[int]) -> Iterator[Batch]:
    """A batch for each shape of picture in these steps, over all hosts, in order of appearance.

    For those who want to know the arrays' shapes and types beforehand: the pictures are black.
    """
    num_boxes, num_crowd = padded_counts(source)
    found = set()
    for step in steps:
        rows = plan.batch(step)
        if rows.bucket not in found:
            found.add(rows.bucket)
            black = np.zeros((), transforms.PIXEL_TYPES[rows.resize])
            images = np.broadcast_to(black, (len(rows.index), *rows.bucket, 3))
            yield _add_boxes(source, Loaded(rows, images), num_boxes, num_crowd, min_visible=0)


def padded_counts(source: Source) -> tuple[int, int]:
    """How many boxes and how many crowd regions every picture of `source` is padded to."""
    crowds = [source.annotations(index).crowd for index in range(len(source))]
    most_boxes = max(int((~crowd).sum()) for crowd in crowds)
    most_crowd = max(int(crowd.sum()) for crowd in crowds)
    return max(1, -(-most_boxes // BOX_MULTIPLE)) * BOX_MULTIPLE, max(1, most_crowd)


def shown(
    source: Source, rows: BatchPlan, row: int, *, min_visible: float
) -> tuple[Annotations, int]:
    """A row's objects where its picture shows them, in its pixels.

    Without those of which no area is left, or a share below `min_visible`; second, how many of
    these were objects and not crowd regions.
    """
    index = int(rows.index[row])
    objects = source.annotations(index)
    height, width = source.sizes[index].tolist()
    boxes, visible = transforms.transform_boxes(objects.boxes, (height, width), geometry(rows, row))
    kept = (visible > 0) & (visible >= min_visible)
    dropped = int((~kept & ~objects.crowd).sum())
    return Annotations(boxes[kept], objects.classes[kept], objects.crowd[kept]), dropped


def _add_boxes(
    source: Source, loaded: Loaded, num_boxes: int, num_crowd: int, min_visible: float
) -> Batch:
    rows = loaded.rows
    batch_size = len(rows.index)
    boxes = np.zeros((batch_size, num_boxes, 4), np.float32)
    classes = np.zeros((batch_size, num_boxes), np.int32)
    mask = np.zeros((batch_size, num_boxes), bool)
    crowd_boxes = np.zeros((batch_size, num_crowd, 4), np.float32)
    crowd_mask = np.zeros((batch_size, num_crowd), bool)
    dropped = np.zeros(batch_size, np.int32)
    for row in range(batch_size):
        objects, dropped[row] = shown(source, rows, row, min_visible=min_visible)
        own, crowd = ~objects.crowd, objects.crowd
        boxes[row, : own.sum()] = objects.boxes[own]
        classes[row, : own.sum()] = objects.classes[own]
        mask[row, : own.sum()] = True
        crowd_boxes[row, : crowd.sum()] = objects.boxes[crowd]
        crowd_mask[row, : crowd.sum()] = True
    return Batch(
        images=loaded.images,
        sizes=rows.size.astype(np.float32),
        scales=_scales(source.sizes[rows.index], rows),
        boxes=boxes,
        classes=classes,
        mask=mask,
        crowd_boxes=crowd_boxes,
        crowd_mask=crowd_mask,
        weights=rows.weights,
        index=rows.index,
        colors=rows.colors,
        dropped=dropped,
    )


def _scales(original: np.ndarray, rows: BatchPlan) -> np.ndarray:
    """Original pixels per input pixel, (y, x) of the input: a quarter turn exchanges them."""
    scales = (original / rows.resized).astype(np.float32)
    return np.where(rows.turns[:, None] % 2 == 1, scales[:, ::-1], scales)
