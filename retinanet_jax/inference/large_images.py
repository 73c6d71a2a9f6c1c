"""Reading images that are too large to be copied, and making them smaller.

A large file is decoded once by Pillow, which takes 4 bytes of memory for each pixel, and its RGB
pixels are written strip by strip to a temporary file, which is mapped into memory: there is never
a second copy, and the memory of what has been read is released.
"""

import contextlib
import mmap
import os
import pathlib
import tempfile

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from retinanet_jax.data.decoding import ORIENTATIONS, to_rgb, valid_orientation
from retinanet_jax.data.deep_pixels import deep_pixels
from retinanet_jax.data.image_files import ImageLike, image_name, local_file
from retinanet_jax.data.image_formats import is_large, load_pixels, open_image
from retinanet_jax.data.sources.base import DatasetImage
from retinanet_jax.inference.network_inputs import read_pixels
from retinanet_jax.utils.download import is_url

STRIP_HEIGHT = 512  # rows that are converted or reduced at once
BYTES_PER_PIXEL = 10  # while Pillow decodes JPEG; other formats take less


def read_large(
    image: ImageLike | DatasetImage, config: ConfigDict
) -> UInt8[np.ndarray, "H W 3"] | ValueError:
    """Return the RGB pixels of an image of any size, or the error of one that cannot be read.

    Those of a large file of 8 bits a channel are mapped from a temporary file. A memory map is
    returned as it is.

    Args:
        image: The image.
        config: A run's config; its `data` has the range of the values of deep images.
    """
    pixels = None
    is_8_bits = config.data.value_range == "type"  # 16-bit color has as many in this range
    if is_8_bits and isinstance(image, str | os.PathLike) and not is_url(str(image)):
        try:
            pixels = _mapped_pixels(local_file(image), image_name(image))
        except ValueError as error:
            return error
    return read_pixels(image, config) if pixels is None else pixels


def reduced(pixels: UInt8[np.ndarray, "H W 3"], factor: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return an image with the means of squares of another as its pixels.

    Args:
        pixels: The other image, of which only a strip is copied at a time.
        factor: The side of the squares in pixels; those at the right and at the bottom may be less.
    """
    if factor == 1:
        return pixels
    step = factor * max(1, STRIP_HEIGHT // factor)
    strips = []
    for top in range(0, len(pixels), step):
        strips.append(np.asarray(Image.fromarray(pixels[top : top + step]).reduce(factor)))
        release_memory(pixels)
    return np.concatenate(strips)


def release_memory(pixels: np.ndarray) -> None:
    """Let go of the memory in which a mapped file has been read; it is read again when needed.

    Args:
        pixels: An image. Only that of a file which is mapped for reading has such memory.
    """
    owner, base = pixels, pixels.base
    while isinstance(base, np.ndarray):
        owner, base = base, base.base
    is_read_only = isinstance(owner, np.memmap) and owner.mode == "r"
    if is_read_only and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _mapped_pixels(path: pathlib.Path, name: str) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the pixels of a large file of 8 bits a channel; None for any other file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        file = path.open("rb")
    except (OSError, ValueError):  # `read_pixels` returns the error
        return None
    # Otherwise the decoded image is released when the garbage collector finds it.
    with (
        file,
        contextlib.closing(open_image(file, name, bytes_per_pixel=BYTES_PER_PIXEL)) as image,
    ):
        if not is_large(image.size) or image.mode == "F" or image.mode.startswith("I"):
            return None
        deep_pixels(image, name)  # there are none, but it corrects how some TIFF files are decoded
        load_pixels(image, name)
        pixels = _mapped(image, name)
        transpose, flip_y, flip_x = ORIENTATIONS[valid_orientation(image, name, None)]
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _mapped(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of a loaded image, mapped from a temporary file without a name."""
    width, height = image.size
    try:
        with tempfile.TemporaryFile() as file:
            for top in range(0, height, STRIP_HEIGHT):
                strip = image.crop((0, top, width, min(height, top + STRIP_HEIGHT)))
                file.write(np.asarray(to_rgb(strip, name)).data)
            file.flush()
            # The mapping lasts as long as the array. As a plain array it is like any other image.
            return np.memmap(file, np.uint8, "r", shape=(height, width, 3)).view(np.ndarray)
    except OSError as error:
        raise ValueError(
            f"{name}: its {3e-9 * width * height:.1f} GB of pixels cannot be written to "
            f"{tempfile.gettempdir()} ({error.strerror}); let TMPDIR be a folder with room."
        ) from None
