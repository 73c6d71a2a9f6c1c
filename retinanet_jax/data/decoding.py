"""Decoding image files to RGB pixels, oriented by their EXIF tag."""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from retinanet_jax.data.value_range import ValueRange

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

    All formats of Pillow are supported. Transparency is dropped; of 16-bit pixels the upper 8 bits
    are used.

    Args:
        data: The content of the file.
        name: The file's name for error messages.
        size: The (height, width) that the annotations declare. An image that has this size only
            without its EXIF orientation was annotated that way, and is not rotated. None accepts
            any size.
        decoding: How the images of the dataset are decoded.

    Raises:
        ValueError: If the image is corrupt or truncated, or does not have the declared size.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise ValueError(
            f"{name}: the image is corrupt or truncated ({pillow_reason(error)}); replace "
            "or remove it."
        ) from None
    return oriented_pixels(image, name, size=size, decoding=decoding)


def pillow_reason(error: Exception) -> str:
    """Return why Pillow could not read an image, without the object that Pillow's text contains."""
    unknown = isinstance(error, UnidentifiedImageError)
    return "unknown image format" if unknown else str(error)


def oriented_pixels(
    image: Image.Image,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of a Pillow image in RGB, with its EXIF orientation applied.

    Args:
        image: The image.
        name: As in `decode_image`.
        size: As in `decode_image`.
        decoding: As in `decode_image`.

    Raises:
        ValueError: If the image does not have the declared size, or has floating-point pixels.
    """
    transpose, flip_y, flip_x = ORIENTATIONS[valid_orientation(image, name, size, decoding.exif)]
    pixels = np.asarray(_to_rgb(image, name))
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


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
    choices = ((oriented, orientation), (stored, 1))
    for choice, result in choices[:: -1 if exif == "ignored" else 1]:
        if size is None or choice == tuple(size):
            return result
    raise ValueError(
        f"{name}: the image has height and width {oriented}, but the annotations declare "
        f"{tuple(size)}; correct the annotations, or restore the image that they were made for."
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
    if not data.startswith(b"\xff\xd8"):
        return False
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError):
        return False  # `decode_image` raises the error
    return valid_orientation(image, name, size, decoding.exif) == 1 and image.mode in ("L", "RGB")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError(
            f"{name}: has floating-point pixels, of unknown brightness; save it with 8 bits."
        )
    if image.mode.startswith("I"):
        # `convert` would saturate 16-bit gray. For 16-bit color, Pillow already uses the upper 8
        # bits.
        gray = np.clip(np.asarray(image), 0, 2**16 - 1).astype(np.uint16) >> 8
        image = Image.fromarray(gray.astype(np.uint8))
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
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # With a broken EXIF block the pixels can still be valid; they are used as they are stored.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError):
        return 1
    return orientation if orientation in ORIENTATIONS else 1
