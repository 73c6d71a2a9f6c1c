"""Scaling the values of images of more than 8 bits a channel to 0..255."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

FIELD = "config.data.value_range"
MIN_FILLED_BITS = 7  # of the 8 bits that reach the network
# "type", "image", or the values that become 0 and 255.
ValueRange = str | tuple[float, float]


class FilledBits(NamedTuple):
    """How much of the range of 8 bits the values of an image fill.

    Attributes:
        low: The smallest value in the file.
        high: The largest value in the file.
        bits: The number of bits, from 0 to 8, that the distance of these two has after scaling: 8
            if they are at least 128 of 255 levels apart, 0 if they are equal.
    """

    low: float
    high: float
    bits: int


def parse_value_range(text: str) -> ValueRange:
    """Return the value range of a config field.

    Args:
        text: "type": the range of the file's type, for example the upper 8 of 16 bits; "image":
            from the smallest to the largest value of each image; or "LOW,HIGH": the values that
            become 0 and 255. Images of 8 bits a channel are never scaled.

    Raises:
        ValueError: If it is none of these, or LOW is not less than HIGH.
    """
    if text in ("type", "image"):
        return text
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"{FIELD}={text!r} must be type, image, or two numbers LOW,HIGH, of which the first is "
            "less; for images of 12 bits try 0,4095."
        )
    return low, high


def to_8_bits(
    values: Num[np.ndarray, "H W *C"], value_range: ValueRange, name: str, *, bits: int = 16
) -> UInt8[np.ndarray, "H W *C"]:
    """Scale the values of an image to 0..255.

    Values outside the range become 0 or 255, numbers that are NaN 0. An image of a single value
    becomes 0 if its own values are the range.

    Args:
        values: The pixels as the file contains them.
        value_range: The range, as `parse_value_range` returns it.
        name: The image's name for error messages.
        bits: The number of bits of the file's type, from 8 to 16, for the range "type".

    Raises:
        ValueError: If the range is that of the type, and the pixels are floating-point numbers or
            have more bits.
    """
    if value_range == "type":
        return _upper_8_bits(values, bits, name)
    low, high = value_range if isinstance(value_range, tuple) else finite_range(values)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # scales each level only once
        return _scale(np.arange(2**16), low, high)[values]
    return _scale(values, low, high)


def filled_bits(
    values: Num[np.ndarray, "H W *C"], scaled: UInt8[np.ndarray, "H W *C"]
) -> FilledBits:
    """Return how many of its 8 bits an image fills.

    Args:
        values: The pixels as the file contains them.
        scaled: The same pixels as they reach the network.
    """
    distance = int(scaled.max()) - int(scaled.min())
    return FilledBits(*finite_range(values), distance.bit_length())


class UnfilledImages(NamedTuple):
    """The images that are nearly of one brightness once scaled."""

    message: str
    advice: str
    examples: list[str]  # each image with its values


def find_unfilled(all_bits: Mapping[str, FilledBits]) -> UnfilledImages | None:
    """Find the images of more than 8 bits a channel that fill too few of the 8 bits.

    Args:
        all_bits: How much images of more than 8 bits a channel fill, by their names.

    Returns:
        These images, or None if there are none.
    """
    few = {name: filled for name, filled in all_bits.items() if filled.bits < MIN_FILLED_BITS}
    if not few:
        return None
    examples = [
        f"{name}: values {low:.10g} to {high:.10g}, {bits} bits"
        for name, (low, high, bits) in few.items()
    ]
    low = min(filled.low for filled in few.values())
    high = max(filled.high for filled in few.values())
    if 0 <= low < high / 2 and high > 255:  # of a camera with so many bits
        low, high = 0, 2 ** int(high).bit_length() - 1
    return UnfilledImages(
        f"{len(few)} of {len(all_bits)} images of more than 8 bits a channel fill fewer than "
        f"{MIN_FILLED_BITS} of the 8 bits that reach the network (first: {examples[0]})",
        f"set --{FIELD}={low:.10g},{high:.10g} so that these become 0 and 255, or --{FIELD}=image "
        "to use the smallest and the largest value of each image",
        examples,
    )


def finite_range(values: Num[np.ndarray, "H W *C"]) -> tuple[float, float]:
    """Return the smallest and the largest finite value, or zeros if there is none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _upper_8_bits(
    values: Num[np.ndarray, "H W *C"], bits: int, name: str
) -> UInt8[np.ndarray, "H W *C"]:
    """Return the upper 8 of `bits` bits."""
    advice = f"set {FIELD} to LOW,HIGH (the values that become 0 and 255) or image"
    if values.dtype.kind == "f":
        raise ValueError(
            f"{name}: has floating-point pixels, of unknown brightness; {advice}, or save it with "
            "8 bits."
        )
    low, high = finite_range(values)
    if low < 0 or high >= 2**bits:
        raise ValueError(
            f"{name}: has values from {low:.0f} to {high:.0f}, but {FIELD}='type' expects them "
            f"from 0 to {2**bits - 1}; {advice}."
        )
    return (values >> (bits - 8)).astype(np.uint8)


def _scale(values: Num[np.ndarray, "*dims"], low: float, high: float) -> UInt8[np.ndarray, "*dims"]:
    """Map low..high linearly to 0..255."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(np.rint(scaled).clip(0, 255), nan=0).astype(np.uint8)
