"""The detections of a strong detector of a synthetic dataset; tests damage either."""

from typing import NamedTuple

import numpy as np
from memory_source import MemorySource

from retinanet_jax.analysis.advice import advise
from retinanet_jax.analysis.errors import error_table
from retinanet_jax.analysis.evaluated import Evaluated, evaluate_detections
from retinanet_jax.analysis.facts import collect_facts
from retinanet_jax.analysis.thresholds import find_thresholds
from retinanet_jax.config import default_config

NAMES = ("cat", "dog", "cow", "bird")
CELLS = 3  # an image has as many objects in a row and in a column, each in a cell of its own


class Scene(NamedTuple):
    """The objects and the detections of a dataset; a test may change either.

    The columns of both are the image's index, the class, xywh and, of detections, the score.
    """

    objects: np.ndarray
    detections: np.ndarray
    side: int  # of the images, in pixels

    def evaluate(self, config=None, names=NAMES) -> Evaluated:
        """Return the comparison of detections and objects; ids count from 100."""
        num_images = 1 + int(max(x[:, 0].max(initial=0) for x in self[:2]))
        ids = {"image_id": lambda row: 100 + int(row[0]), "category_id": lambda r: 100 + int(r[1])}
        content = {
            "images": [
                {"id": 100 + n, "file_name": f"{n}.jpg", "height": self.side, "width": self.side}
                for n in range(num_images)
            ],
            "categories": [{"id": 100 + k, "name": name} for k, name in enumerate(names)],
            "annotations": [
                {
                    **{name: read(row) for name, read in ids.items()},
                    **{"id": n, "bbox": row[2:6].tolist(), "area": float(row[4] * row[5])},
                    "iscrowd": 0,
                }
                for n, row in enumerate(self.objects, 1)
            ],
        }
        results = [
            {
                **{name: read(row) for name, read in ids.items()},
                **{"bbox": row[2:6].tolist(), "score": float(row[6])},
            }
            for row in self.detections
        ]
        return evaluate_detections(MemorySource(content), results, config)

    def advice(self, config=None, names=NAMES) -> list[dict]:
        """Return the advice about the detections."""
        return advice_of(self.evaluate(config, names))


def advice_of(evaluated: Evaluated) -> list[dict]:
    return advise(collect_facts(evaluated, find_thresholds(evaluated)), error_table(evaluated))


def config_of(side: int, short_side: int):
    """Return the config of a detector that resizes square images of a side to a short side."""
    config = default_config()
    bucket = (-(-short_side // 32) * 32,) * 2
    config.data.update(buckets=(bucket,), eval_short_side=short_side, long_side=short_side)
    return config


def strong_detector(*, num_images=60, side=400, noise=3, seed=0) -> Scene:
    """Return a scene of which nearly everything is detected, with precise boxes and high scores.

    Args:
        num_images: The number of images, each with nine objects.
        side: The side of the images in pixels.
        noise: The number of detections of background with a low score in each image.
        seed: The seed.
    """
    rng = np.random.default_rng(seed)
    count, cell = num_images * CELLS**2, side / CELLS
    rows, columns = np.divmod(np.arange(count) % CELLS**2, CELLS)
    sides = rng.uniform(0.4, 0.8, (count, 2)) * cell
    corners = np.stack([columns, rows], 1) * cell + rng.uniform(0.05, 0.15, (count, 2)) * cell
    classes = rng.integers(0, len(NAMES), count)
    objects = np.column_stack([np.arange(count) // CELLS**2, classes, corners, sides])
    boxes = np.concatenate([corners, sides], 1) + rng.normal(0, 0.02, (count, 4)) * np.tile(
        sides, 2
    )
    score = rng.beta(9, 1.5, count)
    detections = np.column_stack([objects[:, :2], boxes, score])[rng.random(count) > 0.02]
    background = np.column_stack(
        [
            np.repeat(np.arange(num_images), noise),
            rng.integers(0, len(NAMES), num_images * noise),
            rng.uniform(0, side / 2, (num_images * noise, 2)),
            rng.uniform(0.1, 0.4, (num_images * noise, 2)) * side,
            rng.uniform(0.05, 0.25, num_images * noise),
        ]
    )
    return Scene(objects, np.concatenate([detections, background]), side)
