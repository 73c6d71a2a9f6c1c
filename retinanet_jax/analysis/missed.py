"""The missed objects, by their size and by the IoU of the anchor that overlaps each most.

An object is missed if no detection of its category, whatever its score, has an IoU of .5 with it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from retinanet_jax import input_pipeline
from retinanet_jax.analysis.evaluated import Evaluated
from retinanet_jax.data.buckets import smallest_bucket
from retinanet_jax.data.sources.objects import clip_to_image
from retinanet_jax.data_report import coverage
from retinanet_jax.data_report.anchor_choice import EpochBoxes, anchor_shapes, place
from retinanet_jax.data_report.summary import SIZE_EDGES, count_bins

IOU_EDGES = tuple(k / 10 for k in range(11))


def missed_objects(evaluated: Evaluated, boxes: EpochBoxes | None) -> dict[str, Any]:
    """Return the numbers of objects and of missed ones, without crowd regions, in two histograms.

    "by_size" is by the square root of the annotated area in pixels of the image; "by_anchor_iou" is
    by the IoU with the anchor that overlaps the object most, None without the detector's config.

    Args:
        evaluated: The dataset and its detections.
        boxes: From `input_boxes`.
    """
    is_object = ~evaluated.objects.is_crowd
    missed = evaluated.objects.detection[is_object] < 0
    sizes = np.sqrt(np.maximum(evaluated.objects.area[is_object], 0))
    return {
        "by_size": _histogram(sizes, missed, SIZE_EDGES, " px"),
        "by_anchor_iou": None if boxes is None else _histogram(boxes.ious, missed, IOU_EDGES),
    }


def input_boxes(evaluated: Evaluated) -> EpochBoxes | None:
    """Return the objects as the network sees them in evaluation, without crowd regions.

    Args:
        evaluated: The dataset and its detections; without a config the result is None.

    Raises:
        ValueError: If an image fits in none of the config's buckets.
    """
    config, source, objects = evaluated.config, evaluated.source, evaluated.objects
    if config is None:
        return None
    plan = input_pipeline.eval_plan(config, source.sizes, batch_size=1)
    resized = plan.transforms.resized
    is_object = ~objects.is_crowd
    image = objects.image[is_object]
    clipped, _, _ = clip_to_image(objects.box[is_object], source.sizes[image])
    boxes = clipped * np.tile(resized / source.sizes, 2)[image]
    buckets = plan.buckets[smallest_bucket(resized, plan.buckets)]
    placed = place(config, boxes, buckets=buckets[image], sizes=resized[image])
    ious = coverage.best_ious(placed, **anchor_shapes(config))
    return EpochBoxes(
        image_index=image,
        classes=objects.class_index[is_object],
        sides=boxes[:, 2:] - boxes[:, :2],
        ious=ious,
        covered=ious >= config.matching.foreground_iou,
    )


def _histogram(
    values: Float[np.ndarray, " n"],
    missed: Bool[np.ndarray, " n"],
    edges: Sequence[float],
    unit: str = "",
) -> list[dict[str, Any]]:
    """Return the bins of a histogram as JSON has them, without empty ones at either end."""
    within = np.clip(values, edges[0], edges[-1])  # an IoU of 1 may be rounded up
    uppers = {edge: edge for edge in edges if np.isfinite(edge)}  # JSON has no infinity
    return [
        {
            "label": f"{b.low:g} to {b.high:g}{unit}"
            if b.high in uppers
            else f"{b.low:g}{unit} or more",
            "lower": b.low,
            "upper": uppers.get(b.high),
            "objects": b.boxes,
            "missed": b.uncovered,
        }
        for b in count_bins(within, missed, edges)
    ]
