"""Whether the boxes of a dataset were drawn on images with their EXIF orientation applied.

Annotation tools differ in this. An orientation that keeps the sides, such as a rotation by 180
degrees, does not show it. So it is decided for the whole dataset by the images with an orientation
that exchanges the sides: their declared size, or else their boxes, fit only one of the two ways.
"""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from retinanet_jax.data.sources.image_headers import ImageHeader
from retinanet_jax.data.sources.objects import OUTSIDE_TOLERANCE, Objects

MAX_EXAMINED = 1_000  # images of which only the header is read for this


class ExifDecision(NamedTuple):
    """How the images of a dataset were annotated, and by how many images that was decided.

    Attributes:
        exif: "applied" or "ignored", as in `Decoding`.
        num_applied: The number of images that show that their orientation was applied.
        num_ignored: The number of images that show that it was not.
        num_unknown: The number of images with an orientation other than 1 that fit both ways, or
            neither.
        num_examined: The number of images of which the header was read.
    """

    exif: str
    num_applied: int
    num_ignored: int
    num_unknown: int
    num_examined: int

    def __str__(self) -> str:
        """Return the decision and its reasons as a sentence without a period."""
        applied_or_not = "with" if self.exif == "applied" else "without"
        if not self.num_applied + self.num_ignored + self.num_unknown:
            return f"none of {self.num_examined} examined images has an EXIF orientation"
        return (
            f"boxes are read as drawn on images {applied_or_not} their EXIF orientation: "
            f"{self.num_applied} images show that it was applied, {self.num_ignored} that it was "
            f"not, and {self.num_unknown} with an orientation do not show it (of "
            f"{self.num_examined} examined)"
        )


def decide_exif(
    headers: Mapping[int, ImageHeader],
    sizes: Int[np.ndarray, "N 2"],
    objects: Objects,
) -> ExifDecision:
    """Decide by the majority of the images that show it; "applied" if neither is the majority.

    Args:
        headers: The headers that were read, by the indices of the images.
        sizes: The declared heights and widths of all images in pixels; 0 if an image has none. Such
            an image counts if its boxes fit in it only one way.
        objects: The annotated objects, with boxes in pixels.
    """
    rotated = {index: header for index, header in headers.items() if header.orientation != 1}
    extents = _extents(objects, len(sizes)) if rotated else np.zeros((len(sizes), 2))
    votes = collections.Counter(
        _vote(header, sizes[index], extents[index]) for index, header in rotated.items()
    )
    return ExifDecision(
        "ignored" if votes["ignored"] > votes["applied"] else "applied",
        votes["applied"],
        votes["ignored"],
        votes["unknown"],
        len(headers),
    )


def _vote(
    header: ImageHeader, declared: Int[np.ndarray, "2"], extent: Float[np.ndarray, "2"]
) -> str:
    """Return the value of `Decoding.exif` that fits an image, or "unknown"."""
    fits = [
        exif
        for exif in ("applied", "ignored")
        if (
            tuple(declared) == header.size(exif)
            if declared.all()
            else (extent <= np.add(header.size(exif), OUTSIDE_TOLERANCE)).all()
        )
    ]
    return fits[0] if len(fits) == 1 else "unknown"


def _extents(objects: Objects, num_images: int) -> Float[np.ndarray, "N 2"]:
    """Return the largest y and x of the boxes of each image."""
    extents = np.zeros((num_images, 2))
    for axis in (0, 1):
        np.maximum.at(extents[:, axis], objects.image_index, objects.boxes[:, 2 + axis])
    return extents
