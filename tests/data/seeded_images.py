"""Pixels that depend only on a seed, and their encoding."""

import io

import numpy as np
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image in which all pixels are independent."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image that JPEG changes little, like a photograph."""
    coarse = Image.fromarray(noise(5, 5, seed))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encode_image(
    pixels: np.ndarray,
    file_format: str = "PNG",
    *,
    mode: str | None = None,
    orientation: int = 1,
    **options,
) -> bytes:
    """Return the content of an image file, with a given Pillow mode and EXIF orientation."""
    image = Image.fromarray(pixels)
    if mode:
        image = image.convert(mode)
    if orientation != 1:
        tags = Image.Exif()
        tags[0x0112] = orientation
        options["exif"] = tags.tobytes()
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()
