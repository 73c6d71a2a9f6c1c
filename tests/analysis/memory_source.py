"""Datasets in memory, with the detections of an imaginary detector, for the tests of analysis."""

import numpy as np

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.coco import CocoContent

SIDE = 200  # pixels


class MemorySource(Source):
    """The dataset of a COCO instances dict; `pixels(index)` returns its images."""

    def __init__(self, content, pixels=None, name="memory"):
        parsed = CocoContent(name, content)
        super().__init__(
            name,
            image_ids=parsed.image_ids,
            file_names=parsed.file_names,
            sizes=parsed.sizes,
            categories=parsed.categories,
            objects=parsed.objects,
        )
        self._pixels = pixels or (lambda index: np.full((*self.sizes[index], 3), 127, np.uint8))

    def read(self, index):
        return None

    def image(self, index):
        return self._pixels(index)


def truth(*objects, num_images=1, names=("cat", "dog"), crowds=()):
    """Return COCO instances with objects (image_id, category_id, xywh); ids count from 1.

    Args:
        objects: The objects.
        num_images: The number of images.
        names: The names of the categories.
        crowds: Crowd regions, in the same form.
    """
    entries = [(entry, 0) for entry in objects] + [(entry, 1) for entry in crowds]
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": SIDE, "width": SIDE}
            for n in range(1, num_images + 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [
            {
                **{"id": n, "image_id": image, "category_id": category, "bbox": list(box)},
                **{"area": float(box[2] * box[3]), "iscrowd": is_crowd},
            }
            for n, ((image, category, box), is_crowd) in enumerate(entries, 1)
        ],
    }


def results(*detections):
    """Return COCO results of detections (image_id, category_id, xywh, score)."""
    return [
        {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        for image, category, box, score in detections
    ]


def random_case(seed, *, num_images=12, num_categories=3, num_detections=30, crowds=True):
    """Return random instances and results with errors of all types; no two scores are equal.

    Args:
        seed: The seed.
        num_images: The number of images.
        num_categories: The number of categories.
        num_detections: The number of detections of each image.
        crowds: Whether one object in eight is a crowd region.
    """
    rng = np.random.default_rng(seed)
    objects, regions, detections = [], [], []
    scores = iter(rng.permutation(num_images * num_detections) / (num_images * num_detections))
    for image in range(1, num_images + 1):
        boxes = []
        for _ in range(rng.integers(0, 9)):
            corner, sides = rng.uniform(0, SIDE / 2, 2), rng.uniform(10, SIDE / 2, 2)
            category = int(rng.integers(1, num_categories + 1))
            boxes.append((category, np.append(corner, sides)))
            is_crowd = crowds and rng.random() < 1 / 8
            (regions if is_crowd else objects).append((image, category, boxes[-1][1].tolist()))
        for _ in range(num_detections):
            category = int(rng.integers(1, num_categories + 1))
            box = np.append(rng.uniform(0, SIDE / 2, 2), rng.uniform(10, SIDE / 2, 2))
            if boxes and rng.random() < 0.7:
                true_category, true_box = boxes[rng.integers(len(boxes))]
                noise = rng.normal(0, rng.choice([0.03, 0.15]), 4) * np.tile(true_box[2:], 2)
                box = np.maximum(true_box + noise, 1)
                category = true_category if rng.random() < 0.7 else category
            detections.append((image, category, box.tolist(), float(next(scores))))
    names = [f"category {n}" for n in range(1, num_categories + 1)]
    content = truth(*objects, num_images=num_images, names=names, crowds=regions)
    return content, results(*detections)
