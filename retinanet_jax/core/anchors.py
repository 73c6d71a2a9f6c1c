"""The pyramid's anchors for an image size: static numpy, a function of the config alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32


def pyramid_anchors(
    image_size: tuple[int, int],
    *,
    min_level: int,
    max_level: int,
    base_scale: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    offset: float,
    rounding: str,
    stride_rule: str,
) -> tuple[Float32[np.ndarray, "_ 4"], ...]:
    """One array of anchors "h*w*a 4" a level, in the order row, column, scale, ratio.

    Level l has ceil(H / 2^l) x ceil(W / 2^l) cells, and len(scales) * len(ratios) anchors in each.

    Args:
      image_size: (H, W) of the network's input, pixels.
      min_level: the finest level; the paper's pyramid is 3 to 7.
      max_level: the coarsest level.
      base_scale: at scale 1 and ratio 1, level l's anchor is a square of base_scale * 2^l pixels.
      scales: factors of that size; the paper's are 2^0, 2^(1/3) and 2^(2/3).
      ratios: height / width, at equal area.
      offset: where in its cell an anchor's centre lies, in strides: 0 the corner, 0.5 the middle.
      rounding: "exact", or "torchvision": sizes cut to whole pixels, then half sides rounded (half
        to even).
      stride_rule: "nominal" sets cells 2^l pixels apart, "grid" H // h and W // w, as torchvision.

    Raises:
      ValueError: a size, level, scale, ratio, rounding or stride rule that cannot be.
    """
    if min(image_size) < 1:
        raise ValueError(f"image_size={image_size} must be (height, width), both at least 1.")
    if not 0 <= min_level <= max_level:
        raise ValueError(f"Levels {min_level}..{max_level} must ascend from 0 or more; try 3..7.")
    if stride_rule not in ("nominal", "grid"):
        raise ValueError(f"stride_rule={stride_rule!r} must be 'nominal' or 'grid'.")
    image = np.array(image_size)
    levels = []
    for level in range(min_level, max_level + 1):
        grid = -(-image // 2**level)  # (h, w), rounded up
        stride = np.full(2, 2**level) if stride_rule == "nominal" else image // grid
        cells = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)  # h w 2
        centres = ((cells + offset) * stride).astype(np.float32)
        one_cell = cell_anchors(base_scale * 2**level, scales, ratios, rounding)  # a 4
        levels.append((np.tile(centres, 2)[:, :, None] + one_cell).reshape(-1, 4))
    return tuple(levels)


def cell_anchors(
    size: float, scales: Sequence[float], ratios: Sequence[float], rounding: str
) -> Float32[np.ndarray, "a 4"]:
    """The anchors of one cell around (0, 0), in the order scale, ratio. See `pyramid_anchors`."""
    for name, values in (("scales", scales), ("ratios", ratios)):
        if len(values) == 0 or min(values) <= 0:
            raise ValueError(f"{name}={values} must be one or more positive numbers.")
    if rounding not in ("exact", "torchvision"):
        raise ValueError(f"rounding={rounding!r} must be 'exact' or 'torchvision'.")
    sizes = size * np.array(scales, float)
    if rounding == "torchvision":
        sizes = np.trunc(sizes)
    heights = sizes[:, None] * np.sqrt(ratios)
    widths = sizes[:, None] / np.sqrt(ratios)
    half_sides = np.stack([heights, widths], axis=-1).reshape(-1, 2) / 2  # a 2
    if rounding == "torchvision":
        half_sides = np.round(half_sides)
    return np.concatenate([-half_sides, half_sides], axis=-1).astype(np.float32)
