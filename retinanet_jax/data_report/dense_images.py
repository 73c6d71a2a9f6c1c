"""A check for images with more objects than evaluation or detection counts."""

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.dense_images import find_dense_images
from retinanet_jax.data_report.findings import INFO, WARNING, Finding, first_examples, shorten


def check_dense_images(source: Source, *, max_detections: int) -> Finding:
    """Report the images with more objects than COCO's AP or the config's detections can match.

    Args:
        source: The dataset.
        max_detections: The config's detections.max_detections, the most of an image.
    """
    message, advice, *cases = find_dense_images(source, max_detections=max_detections)
    if not advice:
        return Finding(INFO, "dense images", message)
    examples = first_examples(
        f"{shorten(source.file_name(index))}: {count} of {shorten(source.categories[k].name)}"
        for index, k, count in zip(*(case.tolist() for case in cases), strict=True)
    )
    return Finding(WARNING, "dense images", message, f"{advice}.", examples)
