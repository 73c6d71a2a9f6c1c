"""The detections that the tests of the export expect of an image."""

import numpy as np

from retinanet_jax.data.sources.base import Category
from retinanet_jax.export.comparison import DetectionArrays
from retinanet_jax.export.servable import ArtifactOutputs

CATEGORIES = (Category(3, "egg"), Category(7, "hen"))
EXPECTED = DetectionArrays(
    np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32),
    np.array([0.9, 0.5], np.float32),
    np.array([3, 7], np.int32),
)


def padded_outputs(boxes, scores, categories) -> ArtifactOutputs:
    """The outputs for a batch of one image, padded to three detections."""
    padding = ((0, 3 - len(scores)),)
    return ArtifactOutputs(
        np.pad(boxes, (*padding, (0, 0)))[None],
        np.pad(scores, padding)[None],
        np.pad(categories, padding)[None],
        np.array([len(scores)]),
    )
