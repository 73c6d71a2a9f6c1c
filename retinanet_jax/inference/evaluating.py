"""The detections of a dataset by a detector that wraps another, for evaluation."""

from typing import Any

from retinanet_jax.data.sources.base import Source
from retinanet_jax.inference.detecting import ImageDetector
from retinanet_jax.inference.network_inputs import raise_error
from retinanet_jax.inference.predictions import input_dataset, scaled_to
from retinanet_jax.utils.progress import make_progress


def dataset_results(
    detector: ImageDetector, source: Source, batch_size: int
) -> list[dict[str, Any]]:
    """Return the detections of all images of a dataset in COCO's results format.

    Args:
        detector: The detector; the ids of its categories are the dataset's.
        source: The dataset.
        batch_size: The number of images that the network processes at once.

    Raises:
        ValueError: If an image cannot be read or used.
    """
    images = input_dataset(source)
    outcomes = detector.batch_with_errors([item.image for item in images], batch_size)
    results = []
    print_progress = make_progress("evaluating", len(images))
    for count, (item, outcome) in enumerate(zip(images, outcomes, strict=True), 1):
        detections = scaled_to(raise_error(outcome), item.size)
        results += detections.to_coco(item.image_id)
        print_progress(count)
    return results
