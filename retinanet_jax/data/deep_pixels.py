"""The values of images of more than 8 bits a channel, which conversion to RGB would not keep."""

import io
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image

from retinanet_jax.data.image_formats import load_pixels, open_image

# Values of TIFF's tags.
UNSIGNED, WHITE_IS_ZERO, SEPARATE_PLANES = 1, 0, 2
BITS_PER_SAMPLE = ExifTags.Base.BitsPerSample
# Of 16-bit color Pillow decodes only one byte, which the byte order in its raw mode selects.
OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Compressed TIFF is decoded to the machine's byte order. Pillow expects the file's for these.
NATIVE_RAW_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


class DeepPixels(NamedTuple):
    """The pixels of an image of more than 8 bits a channel.

    Attributes:
        values: Gray or RGB values, as the file contains them.
        bits: The number of bits of its values, at most 16: 16 unless the file states fewer.
        white_is_zero: Whether larger values are darker.
    """

    values: Num[np.ndarray, "H W *C"]
    bits: int = 16
    white_is_zero: bool = False


def deep_pixels(image: Image.Image, name: str, data: bytes | None = None) -> DeepPixels | None:
    """Load an image of more than 8 bits a channel, and return its pixels.

    16-bit color is found in PNG and TIFF files; other formats give it with 8 bits.

    Args:
        image: The image.
        name: The image's name for error messages.
        data: The file of an image that has just been opened. Without it, 16-bit color counts as
            color of 8 bits, as Pillow decodes it.

    Returns:
        The pixels, or None if the image has 8 bits a channel; it is then not loaded.

    Raises:
        ValueError: If the image is corrupt or truncated, or has 16-bit color that cannot be read.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    if tags:
        _prepare_tiff(image, tags, name)
    lower = None if data is None else _lower_bytes(image, data, name)
    is_deep_gray = image.mode == "F" or image.mode.startswith("I")
    if lower is None and not is_deep_gray:
        return None
    load_pixels(image, name)
    values = np.asarray(image)
    if lower is not None:
        return DeepPixels((values.astype(np.uint16) << 8 | lower)[..., :3])
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if bits == 32 and tags.get(ExifTags.Base.SampleFormat, (UNSIGNED,))[0] == UNSIGNED:
        values = values.view(np.uint32)  # Pillow's integers are signed
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO
    return DeepPixels(values, bits if 8 < bits < 16 else 16, white_is_zero)


def _prepare_tiff(image: Any, tags: Mapping[int, Any], name: str) -> None:
    """Correct the decoding of a TIFF file that Pillow would decode wrongly, or raise ValueError."""
    is_separate = tags.get(ExifTags.Base.PlanarConfiguration) == SEPARATE_PLANES
    for position, tile in enumerate(image.tile):
        raw_mode, *others = tile.args
        if tile.codec_name == "libtiff" and raw_mode in NATIVE_RAW_MODES:
            image.tile[position] = tile._replace(args=(NATIVE_RAW_MODES[raw_mode], *others))
        elif tile.codec_name != "libtiff" and is_separate and max(tags[BITS_PER_SAMPLE]) > 8:
            raise _color_error(name, "separate planes")


def _lower_bytes(image: Image.Image, data: bytes, name: str) -> UInt8[np.ndarray, "H W C"] | None:
    """Return the lower bytes of an image of 16-bit color, or None if it is none."""
    tiles = getattr(image, "tile", []) if image.format in ("PNG", "TIFF") else []
    raw_mode = str(_arguments(tiles[0])[0]) if tiles else ""
    channels, is_deep, byte_order = raw_mode.partition(";16")
    if not is_deep or image.mode.startswith("I"):
        return None
    if getattr(image, "tag_v2", {}).get(ExifTags.Base.PlanarConfiguration) == SEPARATE_PLANES:
        raise _color_error(name, "separate planes")
    if channels not in ("LA", "RGB", "RGBA", "RGBX") or byte_order not in OTHER_BYTE_ORDER:
        raise _color_error(name, f"the form {raw_mode}")
    # Pillow has no other order for gray with alpha; as four channels it gives all of its bytes.
    is_gray = channels == "LA"
    other = "RGBA" if is_gray else f"{channels};16{OTHER_BYTE_ORDER[byte_order]}"
    lower = open_image(io.BytesIO(data), name)
    lower.tile = [tile._replace(args=(other, *_arguments(tile)[1:])) for tile in tiles]
    load_pixels(lower, name)
    pixels = np.asarray(lower)
    return pixels[..., [1, 1, 1, 3]] if is_gray else pixels


def _arguments(tile: Any) -> tuple[Any, ...]:
    """Return the arguments of the decoder of a part of a file, of which the first is a raw mode."""
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)


def _color_error(name: str, reason: str) -> ValueError:
    return ValueError(
        f"{name}: has 16-bit color in {reason}, which Pillow cannot read; save it as 16-bit PNG."
    )
