"""What training sees in one epoch, without pixels: each picture's boxes, and what anchors do there.

Joins plan, boxes and matching as the training step does, for those who want to look at it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.data.pipeline import shown
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.modeling import image_anchors


class View(NamedTuple):
    """One picture as an epoch shows it; boxes are yxyx in pixels of the network's input."""

    index: int  # row of the source
    bucket: tuple[int, int]
    size: tuple[int, int]  # height and width of the picture inside the bucket
    boxes: Float32[np.ndarray, "n 4"]
    classes: Int32[np.ndarray, " n"]
    crowd_boxes: Float32[np.ndarray, "c 4"]
    dropped: int  # boxes that are cut below the share that must be visible


def epoch_views(source: Source, plan: TrainPlan, *, min_visible: float) -> Iterator[View]:
    """Each picture of the first epoch, in the order of training."""
    for step in range(plan.steps_per_epoch):
        rows = plan.batch(step)
        for row in np.flatnonzero(rows.weights).tolist():
            objects, dropped = shown(source, rows, row, min_visible=min_visible)
            own = ~objects.crowd
            height, width = rows.size[row].tolist()
            yield View(
                index=int(rows.index[row]),
                bucket=rows.bucket,
                size=(height, width),
                boxes=objects.boxes[own],
                classes=objects.classes[own],
                crowd_boxes=objects.boxes[objects.crowd],
                dropped=dropped,
            )


def make_matcher(config: ConfigDict, bucket: tuple[int, int]) -> Callable[[View], core.Targets]:
    """Returns `view -> targets` of all anchors of pictures in `bucket`, compiled."""
    anchors = jnp.asarray(np.concatenate(image_anchors(bucket, config)))
    assign = jax.jit(functools.partial(core.assign_targets, **config.matching))

    def match(view: View) -> core.Targets:
        boxes, mask = _padded(view.boxes)
        crowd_boxes, crowd_mask = _padded(view.crowd_boxes)
        classes = np.zeros(len(boxes), np.int32)
        classes[: len(view.classes)] = view.classes
        size = np.array(view.size, np.float32)
        return assign(anchors, boxes, classes, mask, crowd_boxes, crowd_mask, size)

    return match


def label_counts(labels: Int[Array, " A"]) -> Int[Array, "3"]:
    """How many anchors are foreground, background, ignored."""
    return jnp.stack(
        [(labels >= 0).sum(), (labels == core.BACKGROUND).sum(), (labels == core.IGNORE).sum()]
    )


def _padded(boxes: Float[np.ndarray, "n 4"]) -> tuple[np.ndarray, np.ndarray]:
    """To a power of two, so that few shapes are compiled; and which rows are real."""
    count = max(8, 1 << (len(boxes) - 1).bit_length())
    padded = np.zeros((count, 4), np.float32)
    padded[: len(boxes)] = boxes
    return padded, np.arange(count) < len(boxes)
