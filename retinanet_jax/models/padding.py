"""Masks of the valid pixels of feature maps, so that the padding of images changes no result.

Images are padded to the size of their bucket, and batches are completed with fillers. Every
operation that looks at neighbors (3x3 and 7x7 convolutions, pooling) pads its input with zeros; if
the padding of the image is zero as well, the results at valid pixels are those of an unpadded
image. Biases and norms make it nonzero again, so it is set to zero before each such operation.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

Size = tuple[Any, Any]  # height and width, which are symbolic in a program for images of any size
# The mask of the maps of each size (h, w). Maps of different strides have different sizes, except
# for maps of a single pixel, which is valid in all of them.
Masks = Mapping[Size, Bool[Array, "B _ _ 1"]]


def valid_mask(sizes: Num[Array | np.ndarray, "B 2"], map_size: Size) -> Bool[Array, "B h w"]:
    """Return a mask of the pixels that belong to the images and not to their padding.

    Args:
        sizes: Valid height and width of each image, in pixels of the map.
        map_size: Height and width of the padded images, or of one of their feature maps.
    """
    rows = jnp.arange(map_size[0])[None, :, None] < sizes[:, 0, None, None]  # B h 1
    columns = jnp.arange(map_size[1])[None, None, :] < sizes[:, 1, None, None]  # B 1 w
    return rows & columns


def level_masks(
    sizes: Num[Array | np.ndarray, "B 2"], image_size: Size, max_level: int
) -> dict[Size, Bool[Array, "B _ _ 1"]]:
    """Return the masks of the feature maps of strides 1, 2, 4, ..., 2^max_level.

    A map of stride s has ceil(size / s) valid rows and columns: as many as the map of an unpadded
    image.

    Args:
        sizes: Valid height and width of each image, in pixels; 0 for a filler.
        image_size: Height and width of the padded images.
        max_level: The coarsest level of the pyramid.
    """
    masks = {}
    for stride in (2**level for level in range(max_level + 1)):
        height, width = (-(-side // stride) for side in image_size)
        masks[height, width] = valid_mask(jnp.ceil(sizes / stride), (height, width))[..., None]
    return masks


def mask_of(x: Float[Array, "B h w C"], masks: Masks | None) -> Bool[Array, "B h w 1"] | None:
    """Return the mask of a feature map; None if there are no masks."""
    return None if masks is None else masks[x.shape[1], x.shape[2]]


def zero_padding(x: Float[Array, "B h w C"], masks: Masks | None) -> Float[Array, "B h w C"]:
    """Return the feature map with zeros in the padding, or unchanged if there are no masks."""
    mask = mask_of(x, masks)
    return x if mask is None else x * mask
