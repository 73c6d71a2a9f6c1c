"""Objects planted in an image, and what overlapping windows see of them."""

import numpy as np

from retinanet_jax.inference.merging import ScoredBoxes


def plant(
    rng: np.random.Generator, height: int, width: int, *, largest: int, pitch: int
) -> np.ndarray:
    """Return boxes of half to all of the side `largest`, one in each cell of a grid."""
    y, x = np.mgrid[0 : height - pitch + 1 : pitch, 0 : width - pitch + 1 : pitch]
    sides = rng.integers(max(1, largest // 2), largest + 1, (x.size, 2))
    corner = np.stack([x.ravel(), y.ravel()], 1) + rng.integers(1, pitch - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def visible_parts(objects, grid, *, rng=None, noise=0.0, min_visible=0.0):
    """Return what an exact detector finds in each window, and the windows of these detections.

    Args:
        objects: The boxes in the image, all of class 0.
        grid: The windows.
        rng: Samples the scores; they are 0.5 without it.
        noise: The standard deviation of each coordinate, as a fraction of the box's side.
        min_visible: The smallest visible fraction of an object's area that is detected.
    """
    boxes, window = [], []
    for index, (x0, y0, x1, y1) in enumerate(grid.windows):
        low, high = [x0, y0, x0, y0], [x1, y1, x1, y1]
        visible = np.clip(objects, low, high)
        sides = visible[:, 2:] - visible[:, :2]
        area = (objects[:, 2:] - objects[:, :2]).prod(1)
        detected = visible[(sides > 0).all(1) & (sides.prod(1) >= min_visible * area)]
        if noise:
            sides = np.tile(detected[:, 2:] - detected[:, :2], 2)
            detected = np.clip(detected + sides * rng.normal(0, noise, detected.shape), low, high)
        boxes.append(detected)
        window += [index] * len(detected)
    scores = np.full(len(window), 0.5) if rng is None else rng.uniform(0.3, 1, len(window))
    classes = np.zeros(len(window), int)
    merged = np.concatenate(boxes).astype(np.float32)
    return ScoredBoxes(merged, scores.astype(np.float32), classes), np.array(window, int)


def assert_each_once(boxes, objects, *, tolerance=0.0) -> None:
    """Assert that each object has exactly one box, and each box an object."""
    assert len(boxes) == len(objects)
    distance = np.abs(boxes[:, None] - objects[None]).max(axis=-1)
    np.testing.assert_array_equal((distance <= tolerance).sum(axis=0), 1)
