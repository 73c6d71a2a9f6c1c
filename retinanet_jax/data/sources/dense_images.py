"""Recognition of images with more objects than COCO's AP counts or a detector returns."""

from typing import NamedTuple

import numpy as np

from retinanet_jax.data.sources.base import Source

COCO_DETECTIONS = 100  # COCO's AP counts this many detections of a category in an image
MAX_EXAMPLES = 20


class DenseImages(NamedTuple):
    """The images of a dataset with more objects than are counted.

    Attributes:
        message: The numbers of such images; if there are none, the most objects of an image.
        advice: What to do; empty if there are none.
        examples: The images with the most objects of a category, if these are more than
            COCO_DETECTIONS, with the number and the category; at most MAX_EXAMPLES.
    """

    message: str
    advice: str
    examples: tuple[str, ...]


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
    groups, counts = groups[counts > COCO_DETECTIONS], counts[counts > COCO_DETECTIONS]
    cases = sorted(zip(counts.tolist(), groups.tolist(), strict=True), key=lambda case: -case[0])
    examples = tuple(
        f"{source.file_name(group // num_classes)}: {count} of "
        f"{source.categories[group % num_classes].name}"
        for count, group in cases[:MAX_EXAMPLES]
    )
    per_image = np.bincount(image_index, minlength=1)
    most, num_cut = int(per_image.max()), int((per_image > max_detections).sum())
    messages, advice = [], ""
    if examples:
        advice = f"AP of all detections, AP_max{max_detections}, is given next to COCO's"
        num_dense = len(np.unique(groups // num_classes))
        messages.append(
            f"{num_dense} of {len(source)} images have more than {COCO_DETECTIONS} objects of a "
            f"category (at most {counts.max()}), but COCO's AP counts {COCO_DETECTIONS} detections "
            "of a category in an image"
        )
    if num_cut:
        messages.append(
            f"{num_cut} of {len(source)} images have more than {max_detections} objects (at most "
            f"{most}), but {max_detections} objects of an image are detected"
        )
        advice = f"give --config.detections.max_detections={most} or more"
        if examples:
            advice += ", with which AP of all detections is given next to COCO's"
    message = "; ".join(messages) or f"an image has at most {most} objects"
    return DenseImages(message, advice, examples)
