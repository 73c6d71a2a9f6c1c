"""Batches of random images with random ground truth."""

import numpy as np

from retinanet_jax.data.batch import Batch

SIZE = (64, 64)
NUM_CLASSES = 3


def make_batch(batch_size: int, seed: int = 0) -> Batch:
    """Return images of noise, each with up to 3 boxes and one crowd region."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (batch_size, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (batch_size, 3, 2))], axis=-1)
    batch = Batch.of_images(
        rng.integers(0, 256, (batch_size, *SIZE, 3), np.uint8),
        sizes=np.tile(np.float32([60, 50]), (batch_size, 1)),
        scales=np.full((batch_size, 2), 2, np.float32),
    )
    return batch._replace(
        boxes=boxes.astype(np.float32),
        classes=rng.integers(0, NUM_CLASSES, (batch_size, 3), np.int32),
        mask=rng.random((batch_size, 3)) < 0.8,
        crowd_boxes=np.tile(np.float32([0, 0, 20, 20]), (batch_size, 1, 1)),
        crowd_mask=np.ones((batch_size, 1), bool),
        colors=np.tile(np.float32([1.2, 0.7, 1.3, 0.1]), (batch_size, 1)),
    )
