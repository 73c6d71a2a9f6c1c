"""A check for images with more objects than evaluation or detection counts."""

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.dense_images import find_dense_images
from retinanet_jax.data_report.findings import INFO, WARNING, Finding, first_examples


def check_dense_images(source: Source, *, max_detections: int) -> Finding:
    """Report the images with more objects than COCO's AP or the config's detections can match.

    Args:
        source: The dataset.
        max_detections: The config's detections.max_detections, the most of an image.
    """
    message, advice, examples = find_dense_images(source, max_detections=max_detections)
    if not advice:
        return Finding(INFO, "dense images", message)
    return Finding(WARNING, "dense images", message, f"{advice}.", first_examples(examples))
