"""The detections that the tests of the export expect of an image, and a detector."""

import jax
import numpy as np

from retinanet_jax import checkpoint, modeling
from retinanet_jax.data.sources.base import Category
from retinanet_jax.export.comparison import DetectionArrays
from retinanet_jax.export.servable import ArtifactOutputs

CATEGORIES = (Category(3, "egg"), Category(7, "hen"))
EXPECTED = DetectionArrays(
    np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32),
    np.array([0.9, 0.5], np.float32),
    np.array([3, 7], np.int32),
)
BUCKETS = ((64, 64), (64, 96), (96, 64))


def write_checkpoint(workdir, config, buckets=BUCKETS) -> None:
    """Writes a toy detector with random weights that detect something, and some buckets."""
    config.model.update(head_norm="group", prior_probability=0.3)
    config.data.update(buckets=buckets, eval_short_side=64, long_side=96, eval_batch_size=2)
    config.detections.score_threshold = 0.3
    variables = jax.device_get(modeling.initialize(config, 2, seed=0))
    predict = variables["params"]["classification_head"]["predict"]
    predict["kernel"] = predict["kernel"] * 5
    checkpoint.write_imported(workdir, variables, config, CATEGORIES)


def padded_outputs(boxes, scores, categories) -> ArtifactOutputs:
    """The outputs for a batch of one image, padded to three detections."""
    padding = ((0, 3 - len(scores)),)
    return ArtifactOutputs(
        np.pad(boxes, (*padding, (0, 0)))[None],
        np.pad(scores, padding)[None],
        np.pad(categories, padding)[None],
        np.array([len(scores)]),
    )
