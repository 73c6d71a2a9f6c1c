"""The anchors of an image size: static numpy arrays that depend on the config only."""

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
    """Return the anchors of an image size, one array per level (RetinaNet, section 4, "Anchors").

    Level l has ceil(H / 2^l) x ceil(W / 2^l) cells with len(scales) * len(ratios) anchors each, in
    the order row, column, scale, ratio. Paper: https://arxiv.org/abs/1708.02002

    Args:
        image_size: (H, W) of the network's input in pixels.
        min_level: The finest level; the paper's pyramid has levels 3 to 7.
        max_level: The coarsest level.
        base_scale: At scale 1 and ratio 1, an anchor of level l is a square with sides of
            base_scale * 2^l pixels.
        scales: Factors of the anchors' sides; the paper's are 2^0, 2^(1/3) and 2^(2/3).
        ratios: Height / width of the anchors of a scale, which have equal areas.
        offset: Position of an anchor's center in its cell, in strides: 0 is the cell's top left
            corner, 0.5 its middle.
        rounding: "exact", or "torchvision", which truncates the sizes to whole pixels and then
            rounds half of each side (ties to even).
        stride_rule: Distance of the cells of level l: "nominal" is 2^l pixels in both directions,
            "grid" is H // h and W // w pixels, as in torchvision.

    Returns:
        One array of shape (h * w * a, 4) per level, finest level first.

    Raises:
        ValueError: If the image is empty, the levels do not ascend, a scale or ratio is not
            positive, or `rounding` or `stride_rule` is unknown.
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
        centers = ((cells + offset) * stride).astype(np.float32)
        around_zero = cell_anchors(base_scale * 2**level, scales, ratios, rounding)  # a 4
        levels.append((np.tile(centers, 2)[:, :, None] + around_zero).reshape(-1, 4))
    return tuple(levels)


def cell_anchors(
    size: float, scales: Sequence[float], ratios: Sequence[float], rounding: str
) -> Float32[np.ndarray, "a 4"]:
    """Return the anchors of a cell with its center at (0, 0), in the order scale, ratio.

    Args:
        size: Side of the anchor of scale 1 and ratio 1, in pixels.
        scales: As in `pyramid_anchors`.
        ratios: As in `pyramid_anchors`.
        rounding: As in `pyramid_anchors`.

    Raises:
        ValueError: If a scale or ratio is not positive, or `rounding` is unknown.
    """
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
