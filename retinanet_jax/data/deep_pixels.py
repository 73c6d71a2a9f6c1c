"""The values of images of more than 8 bits a channel, which conversion to RGB would not keep."""

import io
import sys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image

from retinanet_jax.data.image_formats import open_image, unreadable

UNSIGNED = 1  # a sample format of TIFF
# Of 16-bit color Pillow decodes only one byte, which the byte order in its raw mode selects.
OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class DeepPixels(NamedTuple):
    """The pixels of an image of more than 8 bits a channel.

    Attributes:
        values: Gray or RGB values, as the file contains them.
        bits: The number of bits of its values, at most 16, if the file says so; else 16.
    """

    values: Num[np.ndarray, "H W *C"]
    bits: int


def deep_pixels(image: Image.Image, name: str, data: bytes | None = None) -> DeepPixels | None:
    """Load an image, and return its pixels if they have more than 8 bits a channel.

    16-bit color is found in PNG and TIFF files; other formats give it with 8 bits.

    Args:
        image: The image.
        name: The image's name for error messages.
        data: The file of an image that has just been opened. Without it, 16-bit color counts as
            color of 8 bits, as Pillow decodes it.

    Returns:
        The pixels, or None if they have 8 bits.

    Raises:
        ValueError: If the image is corrupt or truncated.
    """
    lower = None if data is None else _lower_bytes(image, data, name)  # before loading
    load(image, name)
    if lower is not None:
        upper = np.asarray(image).astype(np.uint16)
        return DeepPixels((upper << 8 | lower)[..., :3], bits=16)
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    if bits == 32 and tags.get(ExifTags.Base.SampleFormat, (UNSIGNED,))[0] == UNSIGNED:
        values = values.view(np.uint32)  # Pillow's integers are signed
    return DeepPixels(values, bits if 8 < bits < 16 else 16)


def load(image: Image.Image, name: str) -> None:
    """Load the pixels of an image.

    Args:
        image: The image.
        name: The image's name for error messages.

    Raises:
        ValueError: If it is corrupt or truncated.
    """
    try:
        image.load()
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise unreadable(name, error) from None


def _lower_bytes(image: Image.Image, data: bytes, name: str) -> UInt8[np.ndarray, "H W C"] | None:
    """Return the lower bytes of an image of 16-bit color, or None if it is none."""
    arguments = [_of_lower_bytes(tile.args) for tile in getattr(image, "tile", [])]
    if not arguments or None in arguments:
        return None
    lower = open_image(io.BytesIO(data), name)
    lower.tile = [
        tile._replace(args=args) for tile, args in zip(lower.tile, arguments, strict=True)
    ]
    load(lower, name)
    pixels = np.asarray(lower)
    return pixels[..., [1, 1, 1, 3]] if arguments[0] == "RGBA" else pixels


def _of_lower_bytes(arguments: Any) -> Any:
    """Return the arguments of a decoder that decodes the other byte of 16-bit color, or None."""
    rawmode, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    if rawmode == "LA;16B":  # as four channels of 8 bits: both bytes of gray, both of alpha
        return "RGBA"
    channels, depth, byte_order = str(rawmode).partition(";16")
    if channels not in ("RGB", "RGBA", "RGBX") or byte_order not in OTHER_BYTE_ORDER:
        return None
    other = f"{channels}{depth}{OTHER_BYTE_ORDER[byte_order]}"
    return (other, *others) if isinstance(arguments, tuple) else other
