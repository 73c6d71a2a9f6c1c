"""One epoch of training without pixels: the boxes of each image, and the anchors matched to them.

The dataset report uses it. The boxes come from the training plan and are matched as in the training
step.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.compilation import compiled_off_the_clock
from retinanet_jax.data.pipeline import visible_annotations
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.modeling import image_anchors

MIN_BOXES = 8  # boxes are padded to a power of two of at least this number


class View(NamedTuple):
    """One augmented image of an epoch; boxes are yxyx in pixels of the network's input."""

    index: int  # of the image in the source
    bucket: tuple[int, int]
    size: tuple[int, int]  # height and width of the image inside the bucket
    boxes: Float32[np.ndarray, "n 4"]
    classes: Int32[np.ndarray, " n"]
    crowd_boxes: Float32[np.ndarray, "c 4"]
    dropped: int  # boxes of which the crop leaves less than the required fraction


def epoch_views(
    source: Source, plan: TrainPlan, *, min_visible: float, is_composed: bool = True
) -> Iterator[View]:
    """Yield each image of the first epoch, in the order of training.

    Args:
        source: The training data.
        plan: The plan of its epochs.
        min_visible: The fraction of a box's area that a crop must leave, as in the training config.
        is_composed: Whether images are composed of several and moved, as the plan does; otherwise
            they are only resized, flipped, rotated by 90 degrees and cropped.
    """
    for step in range(plan.steps_per_epoch):
        batch_plan = plan.batch(step)
        if not is_composed:
            batch_plan = batch_plan._replace(composition=None)
        for example in np.flatnonzero(batch_plan.weights).tolist():
            annotations, num_dropped = visible_annotations(
                source, batch_plan, example, min_visible=min_visible
            )
            object_mask = ~annotations.crowd
            height, width = batch_plan.size[example].tolist()
            yield View(
                index=int(batch_plan.index[example]),
                bucket=batch_plan.bucket,
                size=(height, width),
                boxes=annotations.boxes[object_mask],
                classes=annotations.classes[object_mask],
                crowd_boxes=annotations.boxes[annotations.crowd],
                dropped=num_dropped,
            )


def make_matcher(config: ConfigDict, bucket: tuple[int, int]) -> Callable[[View], core.Targets]:
    """Return a compiled function `view -> targets` of all anchors, for images of one bucket."""
    anchors = jnp.asarray(np.concatenate(image_anchors(bucket, config)))
    jitted = jax.jit(functools.partial(core.assign_targets, **config.matching))
    assign = compiled_off_the_clock(jitted)

    def match(view: View) -> core.Targets:
        boxes, mask = _padded(view.boxes)
        crowd_boxes, crowd_mask = _padded(view.crowd_boxes)
        classes = np.zeros(len(boxes), np.int32)
        classes[: len(view.classes)] = view.classes
        size = np.array(view.size, np.float32)
        return assign(anchors, boxes, classes, mask, crowd_boxes, crowd_mask, size)

    return match


def label_counts(labels: Int[Array, " A"] | Int[np.ndarray, " A"]) -> Int[Array, "3"]:
    """Return the numbers of foreground, background and ignored anchors."""
    return jnp.stack(
        [(labels >= 0).sum(), (labels == core.BACKGROUND).sum(), (labels == core.IGNORE).sum()]
    )


def _padded(
    boxes: Float32[np.ndarray, "n 4"],
) -> tuple[Float32[np.ndarray, "m 4"], Bool[np.ndarray, " m"]]:
    """Return the boxes padded to a power of two, which limits compilations, and their mask."""
    count = max(MIN_BOXES, 1 << (len(boxes) - 1).bit_length())
    padded = np.zeros((count, 4), np.float32)
    padded[: len(boxes)] = boxes
    return padded, np.arange(count) < len(boxes)
