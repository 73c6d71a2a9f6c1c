"""AP of images by their properties: size, number of objects and brightness."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from retinanet_jax.analysis.evaluated import Evaluated, image_numbers
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation.coco_metrics import none_if_undefined
from retinanet_jax.utils.threads import map_ahead

NUM_GROUPS = 3
MAX_READ = 1000  # images of which the brightness is measured: decoding all would take minutes


def image_properties(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Return AP of the images with a small, a medium and a large value of each property.

    The properties are the size (the square root of the number of pixels), the number of objects,
    and the brightness (the mean of the red, green and blue of all pixels, from 0 to 255). Of a
    large dataset, the brightness of 1,000 images is measured, spread evenly; images that cannot be
    read are left out. A property that is the same for all images is left out.

    Args:
        evaluated: The dataset and its detections.

    Returns:
        For each group of images its property, its lowest and highest value as a text, the number
        of images, AP, and AP minus that of all images of which the property is known. AP is None if
        the group has no objects.
    """
    source, objects = evaluated.source, evaluated.objects
    everything = np.arange(len(source))
    num_objects = np.bincount(objects.image[~objects.is_crowd], minlength=len(source))
    read = np.unique(np.linspace(0, len(source) - 1, min(MAX_READ, len(source))).astype(int))
    brightness = np.array(
        list(map_ahead(lambda index: mean_brightness(source, index), read.tolist()))
    )
    is_known = ~np.isnan(brightness)
    return [
        *groups(evaluated, "size", everything, np.sqrt(source.sizes.prod(axis=1, dtype=float))),
        *groups(evaluated, "objects", everything, num_objects.astype(float)),
        *groups(evaluated, "brightness", read[is_known], brightness[is_known]),
    ]


def groups(
    evaluated: Evaluated, name: str, images: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> list[dict[str, Any]]:
    """Return AP of groups of about equally many images, by the value of a property.

    Args:
        evaluated: The dataset and its detections.
        name: The property.
        images: Indices of the images of which the property is known.
        values: The property of each of them.
    """
    if len(np.unique(values)) < 2:
        return []
    # Images of the same value are in the same group.
    edges = np.unique(np.quantile(values, np.arange(1, NUM_GROUPS) / NUM_GROUPS))
    group_of = np.searchsorted(edges, values)
    members = [np.flatnonzero(group_of == group) for group in range(len(edges) + 1)]
    members = [indices for indices in members if len(indices)]
    numbers = image_numbers(evaluated.source)[images]
    slices = {str(group): numbers[indices].tolist() for group, indices in enumerate(members)}
    measured = evaluated.evaluation.slice_by({"all": numbers.tolist(), **slices})
    ap_of_all = measured["all"]["AP"]
    rows = []
    for group, indices in zip(slices, members, strict=True):
        ap = none_if_undefined(measured[group]["AP"])
        row = {
            "property": name,
            "group": value_range(values[indices]),
            "images": len(indices),
            "AP": ap,
            "delta": None if ap is None else ap - ap_of_all,
        }
        rows.append(row)
    return rows


def value_range(values: Float[np.ndarray, " n"]) -> str:
    """Return the lowest and the highest value as a text, or one of them if they are equal."""
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low} to {high}"


def mean_brightness(source: Source, index: int) -> float:
    """Return the mean of an image's pixels, from 0 to 255; NaN if it cannot be read.

    Args:
        source: The dataset.
        index: The index of the image.
    """
    try:
        return float(source.image(index).mean())
    except (OSError, ValueError):
        return np.nan
