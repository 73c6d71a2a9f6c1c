"""Colors and textures of the synthetic images."""

import colorsys
import math

import numpy as np
from jaxtyping import Float, Float32, Float64
from PIL import Image

# Every category has a different hue, but its range overlaps with those of its neighbors: the color
# of a figure suggests its category, and the outline decides it.
HUE_SPREAD = 0.12
GRAY_FRACTION = 0.1  # fraction of figures without a hue
MIN_CONTRAST = 90.0  # RGB distance between the colors of a figure and the mean color behind it
NUM_TRIES = 20  # to sample colors with that contrast


def paint(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "h w 3"],
    coverage: Float32[np.ndarray, "h w"],
    hue: float,
) -> None:
    """Paint a textured figure onto the canvas, in place.

    Args:
        rng: The generator of the texture and the colors.
        canvas: The window of the image that contains the figure, RGB in 0..255.
        coverage: The fraction of each pixel that the figure covers.
        hue: The hue of the figure's category.
    """
    first, second = _sample_figure_colors(rng, hue, canvas[coverage > 0.5].mean(axis=0))
    texture = sample_texture(rng, *coverage.shape)[..., None]
    canvas += coverage[..., None] * (first + (second - first) * texture - canvas)


def _sample_figure_colors(
    rng: np.random.Generator, hue: float, behind: Float[np.ndarray, " 3"]
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Return two similar colors, near `hue` or gray, that contrast with the color `behind`."""
    for _ in range(NUM_TRIES):
        figure_hue = hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
        value = rng.uniform(0.2, 1)
        saturation = 0.0 if rng.random() < GRAY_FRACTION else rng.uniform(0.6, 1)
        first = _rgb(figure_hue, saturation, value)
        second = _rgb(
            figure_hue + rng.uniform(-0.05, 0.05), saturation, value + rng.uniform(-0.2, 0.2)
        )
        if min(np.linalg.norm(first - behind), np.linalg.norm(second - behind)) >= MIN_CONTRAST:
            break
    return first, second


def sample_background(rng: np.random.Generator, size: int) -> Float64[np.ndarray, "size size 3"]:
    """Return a background of two similar muted colors, RGB in 0..255.

    Args:
        rng: The generator of the texture and the colors.
        size: The height and width in pixels.
    """
    hue, saturation, value = rng.random(), rng.uniform(0, 0.5), rng.uniform(0.2, 0.95)
    first = _rgb(hue, saturation, value)
    second = _rgb(hue + rng.uniform(-0.15, 0.15), saturation, value + rng.uniform(-0.25, 0.25))
    mix = 0.6 * sample_texture(rng, size, size) + 0.4 * _sample_clouds(rng, size, size)
    return first + (second - first) * mix[..., None]


def _rgb(hue: float, saturation: float, value: float) -> Float64[np.ndarray, " 3"]:
    """Convert HSV to RGB in 0..255; the hue may be any number, the value is clipped."""
    return 255.0 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(max(value, 0.1), 1)))


def sample_texture(
    rng: np.random.Generator, height: int, width: int
) -> Float64[np.ndarray, "height width"]:
    """Return a random texture in [0, 1]: plain, gradient, stripes, checkerboard, dots or clouds.

    Args:
        rng: The generator of the texture.
        height: The height in pixels.
        width: The width in pixels.
    """
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:height, :width] + 0.5
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    period = max(4.0, max(height, width) * rng.uniform(0.15, 0.4))

    def wave(position: np.ndarray) -> np.ndarray:
        return np.sin(2 * math.pi / period * position)

    patterns = (
        lambda: np.full((height, width), rng.random()),
        lambda: (along - along.min()) / max(float(np.ptp(along)), 1.0),
        lambda: _sharpen(wave(along)),
        lambda: _sharpen(wave(along) * wave(across)),
        lambda: _sharpen(wave(along) + wave(across) - 0.8),
        lambda: _sample_clouds(rng, height, width),
    )
    return patterns[rng.integers(len(patterns))]()


def _sharpen(wave: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """Return a steep function of the wave, yet without jagged edges."""
    return np.clip(0.5 + 2 * wave, 0, 1)


def _sample_clouds(
    rng: np.random.Generator, height: int, width: int
) -> Float64[np.ndarray, "height width"]:
    """Return smooth noise of several octaves, in [0, 1]."""
    total = np.zeros((height, width))
    for cells in (2, 4, 8, 16):
        noise = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)
