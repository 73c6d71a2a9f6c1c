"""Decoding image files to RGB pixels of 8 bits, oriented by their EXIF tag."""

import contextlib
import functools
import io
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from retinanet_jax.data.deep_pixels import DeepPixels, deep_pixels
from retinanet_jax.data.image_formats import load_pixels, open_image
from retinanet_jax.data.value_range import FilledBits, ValueRange, filled_bits, to_8_bits

JPEG_START = b"\xff\xd8"  # of every JPEG file; Pillow decodes only those of 8 bits
# The steps that each EXIF orientation requires: (transpose, then flip top to bottom, then flip left
# to right).
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Decoding(NamedTuple):
    """How the images of a dataset are decoded; the defaults are those of version 0.3.0.

    Attributes:
        value_range: The range of the values of images of more than 8 bits, as
            `value_range.parse_value_range` returns it.
        exif: "applied" or "ignored": whether the boxes were drawn on images with their EXIF
            orientation applied. It decides wherever an image's declared size fits both ways, as
            for orientations that do not exchange the sides. A size that fits only one way shows how
            that image was annotated, and is followed.
    """

    value_range: ValueRange = "type"
    exif: str = "applied"


# The decoding of version 0.3.0.
DEFAULT_DECODING = Decoding()


def decode_image(
    data: bytes,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to RGB and apply its EXIF orientation.

    All formats of Pillow are supported, and of a file with several images the first is read.
    Transparency is dropped.

    Args:
        data: The content of the file.
        name: The file's name for error messages.
        size: The (height, width) that the annotations declare. An image that has this size only
            without its EXIF orientation was annotated that way, and is not rotated. None accepts
            any size.
        decoding: How the images of the dataset are decoded.

    Raises:
        ValueError: If the image is corrupt, truncated or too large, does not have the declared
            size, or its values are outside the range of its type.
    """
    image = open_image(io.BytesIO(data), name)
    return oriented_pixels(image, name, size=size, decoding=decoding, data=data)


def oriented_pixels(
    image: Image.Image,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    decoding: Decoding = DEFAULT_DECODING,
    data: bytes | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of a Pillow image in RGB, with its EXIF orientation applied.

    Args:
        image: The image.
        name: As in `decode_image`.
        size: As in `decode_image`.
        decoding: As in `decode_image`.
        data: As in `deep_pixels`.

    Raises:
        ValueError: As in `decode_image`.
    """
    pixels = _rgb_pixels(image, name, decoding.value_range, data)
    transpose, flip_y, flip_x = ORIENTATIONS[valid_orientation(image, name, size, decoding.exif)]
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def filled_bits_of_file(data: bytes, name: str, value_range: ValueRange) -> FilledBits | None:
    """Return how many of the 8 bits that reach the network an image fills.

    Args:
        data: The content of the file.
        name: The file's name for error messages.
        value_range: As in `Decoding`.

    Returns:
        The bits, or None for an image of 8 bits a channel, which is not scaled, and for one that
        cannot be read, or only the upper bytes of its color.
    """
    with contextlib.suppress(ValueError):
        deep = deep_pixels(open_image(io.BytesIO(data), name), name, data)
        if deep is not None:
            return filled_bits(deep.values, _to_8_bits(deep, value_range, name))
    return None


def valid_orientation(
    image: Image.Image, name: str, size: tuple[int, int] | None, exif: str = "applied"
) -> int:
    """Return the EXIF orientation (1 to 8) in which an image has the declared size.

    Only the header is read.

    Args:
        image: The image.
        name: As in `decode_image`.
        size: As in `decode_image`.
        exif: `Decoding.exif`.

    Raises:
        ValueError: If the image has the declared size neither rotated nor unrotated.
    """
    orientation = _exif_orientation(image)
    stored = (image.height, image.width)
    oriented = stored[::-1] if ORIENTATIONS[orientation][0] else stored
    fits_oriented, fits_stored = (
        size is None or side == tuple(size) for side in (oriented, stored)
    )
    if fits_stored and (exif == "ignored" or not fits_oriented):
        return 1
    if fits_oriented:
        return orientation
    raise ValueError(
        f"{name}: the image has height and width {oriented}, but the annotations declare "
        f"{size}; correct the annotations, or restore the image that they were made for."
    )


def is_plain_jpeg(
    data: bytes, name: str, size: tuple[int, int], decoding: Decoding = DEFAULT_DECODING
) -> bool:
    """Return whether `tf_transforms.decode_jpeg` decodes a file as `decode_image` does.

    This is the case for JPEG files in gray or RGB that need no rotation. Only the header is read.

    Args:
        data: The content of the file.
        name: The file's name for error messages.
        size: The (height, width) that the annotations declare.
        decoding: How the images of the dataset are decoded.

    Raises:
        ValueError: If the image does not have the declared size.
    """
    if not data.startswith(JPEG_START):
        return False
    try:
        image = open_image(io.BytesIO(data), name)
    except ValueError:
        return False  # `decode_image` raises it, too
    return valid_orientation(image, name, size, decoding.exif) == 1 and image.mode in ("L", "RGB")


def _rgb_pixels(
    image: Image.Image, name: str, value_range: ValueRange, data: bytes | None
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image in RGB, as they are stored."""
    # Of 16-bit color Pillow decodes the upper bytes, which is the range of its type.
    deep = deep_pixels(image, name, None if value_range == "type" else data)
    if deep is None:
        rgb = _jpeg_pixels(image, data)
        if rgb is not None:
            return rgb
        load_pixels(image, name)
        return np.asarray(to_rgb(image, name))
    pixels = _to_8_bits(deep, value_range, name)
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


def _jpeg_pixels(image: Image.Image, data: bytes | None) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the pixels of a JPEG file as Pillow decodes them, in less time; None if Pillow must.

    simplejpeg may not be installed (the extra `fast`), and refuses damaged files, of which Pillow
    reads some, and unusual subsampling.
    """
    is_jpeg = data is not None and data.startswith(JPEG_START) and image.mode in ("L", "RGB")
    if not is_jpeg or (simplejpeg := _simplejpeg()) is None:
        return None
    with contextlib.suppress(ValueError, MemoryError):
        return simplejpeg.decode_jpeg(data, "RGB")
    return None


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return simplejpeg


def _to_8_bits(deep: DeepPixels, value_range: ValueRange, name: str) -> UInt8[np.ndarray, "H W *C"]:
    """Return the pixels of an image of more than 8 bits with 8 bits."""
    pixels = to_8_bits(deep.values, value_range, name, bits=deep.bits)
    return 255 - pixels if deep.white_is_zero else pixels


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return a loaded image of 8 bits a channel in Pillow's mode RGB.

    Args:
        image: The image, or a part of it.
        name: As in `decode_image`.

    Raises:
        ValueError: If its pixels cannot be converted.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # converting to RGB directly warns about transparent colors
    try:
        return image.convert("RGB")
    except ValueError:
        raise ValueError(
            f"{name}: has pixels of Pillow's mode {image.mode}, which cannot be converted to RGB; "
            "save it as RGB."
        ) from None


def _exif_orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow applies it itself
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # With a broken EXIF block the pixels can still be valid; they are used as they are stored.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError):
        return 1
    return orientation if orientation in ORIENTATIONS else 1
