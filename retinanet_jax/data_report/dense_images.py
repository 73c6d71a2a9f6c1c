"""A check for images with more objects than evaluation or detection counts."""

import numpy as np

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.annotation_checks import AnnotatedBoxes
from retinanet_jax.data_report.findings import INFO, WARNING, Finding, first_examples, shorten

COCO_DETECTIONS = 100  # COCO's AP counts this many detections of a category in an image


def check_dense_images(source: Source, boxes: AnnotatedBoxes, *, max_detections: int) -> Finding:
    """Report the images with more objects than COCO's AP or the config's detections can match.

    Args:
        source: The dataset.
        boxes: Its annotations.
        max_detections: The config's detections.max_detections, the most of an image.
    """
    image_index, classes = (
        values[boxes.object_mask].astype(np.int64) for values in (boxes.image_index, boxes.classes)
    )
    num_classes = len(source.categories)
    groups, counts = np.unique(image_index * num_classes + classes, return_counts=True)
    dense = np.flatnonzero(counts > COCO_DETECTIONS)
    dense = dense[np.argsort(-counts[dense], stable=True)]
    most = int(np.bincount(image_index).max(initial=0))
    message = f"an image has at most {most} objects"
    if not len(dense) and most <= max_detections:
        return Finding(INFO, "dense images", message)
    if len(dense):
        count = len(np.unique(groups[dense] // num_classes))
        message += (
            f"; {count} of {len(source)} images have more than {COCO_DETECTIONS} of a category "
            f"(at most {counts[dense[0]]}), of which COCO's AP counts no more detections"
        )
    advice = "AP at config.detections.max_detections is given beside COCO's"
    if most > max_detections:
        message += f"; no more than {max_detections} objects of an image are detected"
        advice = f"give --config.detections.max_detections={most} or more"
        if len(dense):
            advice += ", at which AP is then given beside COCO's"
    examples = first_examples(
        f"{shorten(source.file_name(group // num_classes))}: {number} of "
        f"{shorten(source.categories[group % num_classes].name)}"
        for group, number in zip(groups[dense].tolist(), counts[dense].tolist(), strict=True)
    )
    return Finding(WARNING, "dense images", message, f"{advice}.", examples)
