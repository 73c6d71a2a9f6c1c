"""The time of the numbers of an analysis: seconds for thousands of images."""

import time

import numpy as np
import pytest
from memory_source import MemorySource, random_case

from retinanet_jax.analysis.categories import category_rows
from retinanet_jax.analysis.curves import calibration, precision_recall_curves
from retinanet_jax.analysis.errors import confusion, confusion_matrix, error_table
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.image_properties import image_properties
from retinanet_jax.analysis.intervals import confidence_intervals
from retinanet_jax.analysis.suspicious import suspicious_labels
from retinanet_jax.analysis.thresholds import find_thresholds, threshold_curve


def seconds(num_images):
    """Return the time of all processors for images with 100 detections of 80 categories each."""
    content, detections = random_case(
        0, num_images=num_images, num_categories=80, num_detections=100
    )
    source = MemorySource(content, lambda index: np.zeros((8, 8, 3), np.uint8))
    start = time.process_time()
    evaluated = evaluate_detections(source, detections)
    thresholds = find_thresholds(evaluated)
    threshold = thresholds.overall.threshold
    error_table(evaluated)
    confusion(evaluated, threshold, confusion_matrix(evaluated, threshold))
    precision_recall_curves(evaluated, thresholds)
    threshold_curve(evaluated)
    calibration(evaluated)
    category_rows(evaluated, thresholds)
    image_properties(evaluated)
    suspicious_labels(evaluated, threshold)
    confidence_intervals(evaluated)
    return time.process_time() - start


@pytest.mark.slow
def test_the_time_rises_no_faster_than_the_number_of_images():
    """A minute on two processors for 5,000 images is 12 seconds of both for 500."""
    seconds(20)  # imports
    # Other programs and waiting threads only add to the time.
    few, many = (min(seconds(count) for _ in range(3)) for count in (125, 500))
    assert many < 12
    assert many < 1.5 * 4 * few
