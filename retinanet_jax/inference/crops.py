"""The part of its image that each detection shows, as a JPEG in a folder for its category."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image

from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.drawings import to_jpeg
from retinanet_jax.inference.names import safe_name, unique_names
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.threads import map_ahead

FOLDER = "crops"  # of an output folder


def write_crops(
    image_paths: Sequence[pathlib.Path],
    outcomes: Iterable[Detections | ValueError],
    categories: Sequence[Category],
    folder: OutputFolder,
    threshold: float,
) -> Iterator[Detections | ValueError]:
    """Yield the outcomes, and write crops/CATEGORY/IMAGE_NUMBER.jpg in threads for each detection.

    The number is that of the detection in its image, from 1 for the best score.

    Args:
        image_paths: The image files, after which the crops are named.
        outcomes: The detections of each image, or its error.
        categories: The categories, after which folders are named.
        folder: The folder to write to; its subfolder `FOLDER` is empty.
        threshold: The lowest score of a detection that is cropped.
    """
    names = unique_names([safe_name(path.stem) for path in image_paths])
    folders = unique_names([safe_name(category.name) for category in categories])

    def write(name: str, outcome: Detections | ValueError) -> Detections | ValueError:
        if isinstance(outcome, Detections):
            columns = zip(outcome.boxes, outcome.scores, outcome.classes, strict=True)
            for number, (box, score, k) in enumerate(columns, 1):
                pixels = crop(outcome.image, box)
                if score >= threshold and pixels.size:
                    path = f"{FOLDER}/{folders[k]}/{name}_{number}.jpg"
                    folder.write(path, to_jpeg(Image.fromarray(pixels)))
        return outcome

    return map_ahead(lambda pair: write(*pair), zip(names, outcomes, strict=True))


def crop(image: np.ndarray, box: Float32[np.ndarray, "4"]) -> np.ndarray:
    """Return all pixels of an image that a box overlaps.

    Args:
        image: Pixels of shape (H, W, ...).
        box: x0, y0, x1, y1 in pixels; what is outside the image is left out.
    """
    (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
