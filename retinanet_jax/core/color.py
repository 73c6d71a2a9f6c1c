"""Color jitter of an image on the device: brightness, contrast, saturation and hue."""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from retinanet_jax.core.structures import Array

LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B in a pixel's gray value (ITU-R BT.601)


def jitter_color(
    image: Float[Array, "H W 3"], valid: Bool[Array, "H W"], factors: Float[Array, " 4"]
) -> Float[Array, "H W 3"]:
    """Adjust brightness, contrast, saturation and hue, in this order.

    Each adjustment is that of torchvision's ColorJitter. The computation uses at least float32, and
    the factors (1, 1, 1, 0) return the image unchanged.

    Args:
        image: RGB pixels in 0..255.
        valid: False in the padding, which is left unchanged and does not count in the mean gray
            value.
        factors: (brightness, contrast, saturation, hue). Brightness multiplies the pixels.
            Contrast scales their difference from the image's mean gray value, and saturation their
            difference from their own gray value. Hue is a shift; 1 is the full color circle.
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
    # A sum of products, because accelerators compute matrix products with fewer bits.
    return jnp.sum(pixels * jnp.array(LUMA, pixels.dtype), axis=-1, keepdims=True)


def _shift_hue(pixels: Float[Array, "H W 3"], shift: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Shift the hue in the HSV color model (the hexcone of Smith 1978)."""
    red, green, blue = jnp.unstack(pixels, axis=-1)  # H W
    value = jnp.max(pixels, axis=-1)
    chroma = value - jnp.min(pixels, axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # Channels are compared with each other and not with `value`, which in a compiled program may
    # differ in the last bit from the channel that it was taken from. The formulas give the same hue
    # only where channels are exactly equal.
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
