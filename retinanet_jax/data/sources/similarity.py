"""Nearly identical images: re-encoded or resized copies, and neighboring frames of a still camera.

The hash of an image has a bit for each pair of neighboring pixels of its 17 x 16 thumbnail: which
of the two is brighter (the "difference hash", https://www.hackerfactor.com/blog/?/archives/529).
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from PIL import Image

from retinanet_jax.data.image_formats import open_image
from retinanet_jax.data.sources.base import Source
from retinanet_jax.utils.threads import map_ahead

SIDE = 16  # of the hash, in bits
# Bits of 256 in which nearly identical images differ at most. Of 363 photographs of playing cards
# and 21 of COCO, copies of half the size in JPEG quality 50 differ in up to 30 bits, shots of one
# scene in 6 to 20, and all other pairs in 51 or more.
MAX_DISTANCE = 30
# The thumbnail's standard deviation below which an image has too little content to be compared.
MIN_CONTRAST = 2.0
ROWS_AT_ONCE = 256  # rows of the matrix of distances in memory


class ImageHashes(NamedTuple):
    """The perceptual hashes of n images.

    Attributes:
        bits: 256 bits of each image.
        mask: Whether an image can be compared: it can be read, and its content is not flat.
    """

    bits: UInt64[np.ndarray, "n 4"]
    mask: Bool[np.ndarray, " n"]


def hash_images(source: Source, progress: Callable[[int], None]) -> ImageHashes:
    """Return the perceptual hashes of all images of a dataset.

    Args:
        source: The dataset.
        progress: Called with the number of images read so far.
    """
    bits = np.zeros((len(source), 4), np.uint64)
    mask = np.zeros(len(source), bool)
    hashes = map_ahead(lambda index: _hash(source, index), range(len(source)))
    for index, value in enumerate(hashes):
        if value is not None:
            bits[index], mask[index] = value, True
        progress(index + 1)
    return ImageHashes(bits, mask)


def near_pairs(first: ImageHashes, second: ImageHashes | None = None) -> Int[np.ndarray, "p 2"]:
    """Return the indices of nearly identical images, each pair once.

    Args:
        first: Hashes of images.
        second: Hashes of other images, to find pairs of an image of `first` and one of `second`.
            None finds pairs among the images of `first`.
    """
    other = first if second is None else second
    rows, columns = np.flatnonzero(first.mask), np.flatnonzero(other.mask)
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        differing = first.bits[block, None] ^ other.bits[columns]
        near = np.bitwise_count(differing).sum(axis=-1, dtype=np.int32) <= MAX_DISTANCE
        row, column = np.nonzero(near)
        new = np.stack([block[row], columns[column]], axis=1)
        pairs.append(new if second is not None else new[new[:, 0] < new[:, 1]])
    return np.concatenate(pairs)


def _hash(source: Source, index: int) -> UInt64[np.ndarray, " 4"] | None:
    """Return the hash of one image, or None if it cannot be compared."""
    try:
        thumbnail = _thumbnail(source, index).astype(np.float32)
    except Exception:  # an image that cannot be read is reported where it is decoded
        return None
    if thumbnail.std() < MIN_CONTRAST:
        return None
    return np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1]).view(np.uint64)


def _thumbnail(source: Source, index: int) -> UInt8[np.ndarray, "16 17"]:
    """Return an image in gray and 16 x 17 pixels."""
    size = (SIDE + 1, SIDE)
    data = source.read(index)
    if data is None:
        image = Image.fromarray(source.image(index))
    else:
        image = open_image(io.BytesIO(data), source.file_name(index))
        image.draft("L", (8 * SIDE, 8 * SIDE))  # a JPEG is decoded at an eighth of its size
        if image.mode not in ("L", "RGB"):
            image = Image.fromarray(source.decode(index, data))
    return np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))
