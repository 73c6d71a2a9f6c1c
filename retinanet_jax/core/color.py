"""Color jitter of an image on the device: brightness, contrast, saturation and hue."""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from retinanet_jax.core.structures import Array

LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B in a pixel's gray value (ITU-R BT.601)


def jitter_color(
    image: Float[Array, "H W 3"], valid: Bool[Array, "H W"], factors: Float[Array, " 4"]
) -> Float[Array, "H W 3"]:
    """Adjust brightness, contrast, saturation and hue, in this order, as torchvision's ColorJitter.

    Computed in at least float32; the factors (1, 1, 1, 0) return the image unchanged.

    Args:
        image: RGB pixels in 0..255.
        valid: False in the padding, which is left unchanged and is no part of the mean.
        factors: (brightness, contrast, saturation, hue). Brightness multiplies the pixels.
            Contrast scales their distance from the image's mean gray value, saturation the distance
            from each pixel's own gray value. Hue is a shift in units of the full color circle.
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    brightness, contrast, saturation, hue = jnp.unstack(factors.astype(dtype))
    pixels = _blend(image.astype(dtype), 0.0, brightness)
    count = jnp.maximum(jnp.sum(valid, dtype=dtype), 1)
    mean = jnp.sum(_gray(pixels), where=valid[..., None]) / count
    pixels = _blend(pixels, mean, contrast)
    pixels = _blend(pixels, _gray(pixels), saturation)
    # The conversion to hue and back rounds, and a shift of 0 must change nothing.
    pixels = jnp.where(hue == 0, pixels, _shift_hue(pixels, hue))
    return jnp.where(valid[..., None], pixels.astype(image.dtype), image)


def _blend(pixels: Array, other: Array | float, factor: Array) -> Array:
    """Interpolate from `other` (factor 0) to `pixels` (factor 1) and beyond, clipped to 0..255."""
    return jnp.clip(factor * pixels + (1 - factor) * other, 0, 255)


def _gray(pixels: Float[Array, "H W 3"]) -> Float[Array, "H W 1"]:
    """Return the gray value of each pixel."""
    # Not a matrix product, which accelerators round to fewer bits.
    return jnp.sum(pixels * jnp.array(LUMA, pixels.dtype), axis=-1, keepdims=True)


def _shift_hue(pixels: Float[Array, "H W 3"], shift: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Shift the hue by way of the hue, chroma and value of the HSV hexcone (Smith 1978)."""
    red, green, blue = jnp.unstack(pixels, axis=-1)  # H W
    value = jnp.max(pixels, axis=-1)
    chroma = value - jnp.min(pixels, axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # Channels are compared with each other, not with `value`: compiled, it may differ in the last
    # bit from the channel that it equals, and the formulas agree only where channels are equal.
    hue = jnp.select(  # in sixths of the color circle
        [(red >= green) & (red >= blue), green >= blue],
        [(green - blue) / divisor, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    # A channel has its full value up to a distance of 1 from its own corner of the hexagon, and
    # none of the chroma from a distance of 2.
    corners = jnp.array([0, 2, 4], pixels.dtype)
    distance = jnp.abs((hue[..., None] + 6 * shift - corners + 3) % 6 - 3)  # H W 3
    return value[..., None] - chroma[..., None] * jnp.clip(distance - 1, 0, 1)
