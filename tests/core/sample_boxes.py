"""Boxes for the tests of `core`."""

import numpy as np


def boxes(*rows) -> np.ndarray:
    """Return float32 boxes "N 4", one per argument."""
    return np.array(rows, np.float32).reshape(-1, 4)


def random_boxes(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Return boxes of shape "*shape 4" with sides of 1 to 50 pixels, many of which overlap."""
    corner = generator.uniform(0, 50, (*shape, 2))
    sides = generator.uniform(1, 50, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)
