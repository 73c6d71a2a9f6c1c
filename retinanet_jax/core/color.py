"""Colour jitter: brightness, contrast, saturation and hue of one picture, on the device."""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from retinanet_jax.core.types import Array

LUMA = (0.299, 0.587, 0.114)  # of R, G and B in a grey of equal brightness (ITU-R BT.601)


def jitter_color(
    image: Float[Array, "H W 3"], valid: Bool[Array, "H W"], factors: Float[Array, " 4"]
) -> Float[Array, "H W 3"]:
    """The RGB pixels in 0..255 with the adjustments of torchvision's ColorJitter, in its order.

    Computed in at least float32; factors of (1, 1, 1, 0) give the image itself.

    Args:
        image: pixels in 0..255.
        valid: False in the padding, which stays as it is and is no part of the mean.
        factors: brightness multiplies; contrast and saturation multiply the distance from the mean
            grey of the picture, and from each pixel's own grey; hue is a shift in turns of the
            colour circle.
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    brightness, contrast, saturation, hue = jnp.unstack(factors.astype(dtype))
    pixels = _blend(image.astype(dtype), 0.0, brightness)
    count = jnp.maximum(jnp.sum(valid, dtype=dtype), 1)
    mean = jnp.sum(_grey(pixels), where=valid[..., None]) / count
    pixels = _blend(pixels, mean, contrast)
    pixels = _blend(pixels, _grey(pixels), saturation)
    # The way there and back rounds; no shift must change nothing.
    pixels = jnp.where(hue == 0, pixels, _shift_hue(pixels, hue))
    return jnp.where(valid[..., None], pixels.astype(image.dtype), image)


def _blend(pixels: Array, other: Array | float, factor: Array) -> Array:
    """`pixels` at factor 1, `other` at 0, beyond them by extrapolation; cut to 0..255."""
    return jnp.clip(factor * pixels + (1 - factor) * other, 0, 255)


def _grey(pixels: Float[Array, "H W 3"]) -> Float[Array, "H W 1"]:
    # Not a matrix product, which accelerators round to fewer bits.
    return jnp.sum(pixels * jnp.array(LUMA, pixels.dtype), axis=-1, keepdims=True)


def _shift_hue(pixels: Float[Array, "H W 3"], turns: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Through hue, chroma and value of the HSV hexcone (Smith 1978), in sixths of a turn."""
    red, green, blue = jnp.unstack(pixels, axis=-1)  # H W
    value = jnp.max(pixels, axis=-1)
    chroma = value - jnp.min(pixels, axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # Not by comparing with `value`: compiled, that need not equal the channel that it is, to the
    # last bit, and at these borders one formula must go over into the other.
    hue = jnp.select(
        [(red >= green) & (red >= blue), green >= blue],
        [(green - blue) / divisor, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    # From its own corner of the hexagon a channel is full within 1 and gone from 2 on.
    corners = jnp.array([0, 2, 4], pixels.dtype)
    distance = jnp.abs((hue[..., None] + 6 * turns - corners + 3) % 6 - 3)  # H W 3
    return value[..., None] - chroma[..., None] * jnp.clip(distance - 1, 0, 1)
