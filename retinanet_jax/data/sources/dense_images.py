"""Recognition of images with more objects than COCO's AP counts or a detector returns."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from retinanet_jax.data.sources.base import Source

COCO_DETECTIONS = 100  # COCO's AP counts this many detections of a category in an image


class DenseImages(NamedTuple):
    """The images of a dataset with more objects than are counted.

    Attributes:
        message: The numbers of such images; if there are none, the most objects of an image.
        advice: What to do; empty if there are none.
        image_index: The image of each case of more than COCO_DETECTIONS objects of a category.
        classes: The class of each case.
        counts: The number of objects of each case, in descending order.
    """

    message: str
    advice: str
    image_index: Int[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]


def find_dense_images(source: Source, *, max_detections: int) -> DenseImages:
    """Find the images with more objects than COCO's AP counts or the detector returns.

    Args:
        source: The dataset.
        max_detections: The largest number of detections of an image, of all categories together.
    """
    num_classes = len(source.categories)
    objects, mask = source.objects, source.object_mask
    image_index = objects.image_index[mask].astype(np.int64)
    groups, counts = np.unique(
        image_index * num_classes + objects.classes[mask], return_counts=True
    )
    order = np.argsort(-counts, stable=True)
    dense = order[: int((counts > COCO_DETECTIONS).sum())]
    cases = groups[dense] // num_classes, groups[dense] % num_classes, counts[dense]
    per_image = np.bincount(image_index, minlength=1)
    most, num_cut = int(per_image.max()), int((per_image > max_detections).sum())
    messages, advice = [], ""
    if len(dense):
        advice = f"AP of all detections, AP_max{max_detections}, is given next to COCO's"
        messages.append(
            f"{len(np.unique(cases[0]))} of {len(source)} images have more than {COCO_DETECTIONS} "
            f"objects of a category (at most {cases[2][0]}), but COCO's AP counts "
            f"{COCO_DETECTIONS} detections of a category in an image"
        )
    if num_cut:
        messages.append(
            f"{num_cut} of {len(source)} images have more than {max_detections} objects (at most "
            f"{most}), but {max_detections} objects of an image are detected"
        )
        advice = f"give --config.detections.max_detections={most} or more"
        if len(dense):
            advice += ", with which AP of all detections is given next to COCO's"
    message = "; ".join(messages) or f"an image has at most {most} objects"
    return DenseImages(message, advice, *cases)
