"""Sizes of resized images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int32

from retinanet_jax.data.transforms import PIXEL_TYPES

SIZE_MULTIPLE = 32  # of C5: the coarsest feature map that the network takes from the backbone


def resized_size(
    height: int, width: int, *, short_side: float, long_side: float, resize: str
) -> tuple[int, int]:
    """Height and width in pixels once the short side is `short_side`, the long one at most its own.

    One factor for both sides, min(short_side / short, long_side / long) (Lin et al. 2017, section
    5), each product at least 1 and rounded half up; with resize="bilinear_float" it is cut, as in
    torchvision, and with "pillow" computed in detectron2's order: ties round by their last bit.
    Raises ValueError where `resize` is none of transforms.PIXEL_TYPES.
    """
    sizes = np.array([[height, width]])
    resized = resized_sizes(sizes, short_side=short_side, long_side=long_side, resize=resize)
    return int(resized[0, 0]), int(resized[0, 1])


def resized_sizes(
    sizes: Int[np.ndarray, "N 2"], *, short_side: float, long_side: float, resize: str
) -> Int32[np.ndarray, "N 2"]:
    """`resized_size` of many pictures."""
    _check_resize(resize)
    return _whole_pixels(_fitted(sizes, short_side, long_side, resize), resize)


def _fitted(
    sizes: Int[np.ndarray, "N 2"],
    short_side: float | Float[np.ndarray, " N"],
    long_side: float,
    resize: str,
) -> Float[np.ndarray, "N 2"]:
    """Heights and widths once the sides are as long as they may be, not in whole pixels yet."""
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    if resize != "pillow":
        return sizes * np.minimum(short_side / short, long_side / long)[:, None]
    # In this order, and not by one factor: a product that ends in .5 rounds by its last bit.
    fitted = np.where(short == sizes.T, short_side, sizes.T * (short_side / short))  # 2 N
    limit = long_side / fitted.max(axis=0)
    return np.where(limit < 1, fitted * limit, fitted).T


def _whole_pixels(sizes: Float[np.ndarray, "N 2"], resize: str) -> Int32[np.ndarray, "N 2"]:
    half = 0.0 if resize == "bilinear_float" else 0.5
    return np.maximum(np.floor(sizes + half), 1).astype(np.int32)


def _check_resize(resize: str) -> None:
    if resize not in PIXEL_TYPES:
        raise ValueError(f"resize={resize!r} must be one of {', '.join(map(repr, PIXEL_TYPES))}.")


def _check_sides(short_sides: Sequence[float], sampling: str, long_side: float) -> None:
    if not short_sides or min(*short_sides, long_side) <= 0:
        raise ValueError(
            f"short_sides={tuple(short_sides)} and long_side={long_side} must be positive "
            "numbers of pixels; try short_sides=(800,), long_side=1333."
        )
    if sampling not in ("choice", "range"):
        raise ValueError(f"short_side_sampling={sampling!r} must be 'choice' or 'range'.")
    if sampling == "range" and (len(short_sides) != 2 or short_sides[0] > short_sides[1]):
        raise ValueError(
            f"short_sides={tuple(short_sides)} must be (lo, hi) with lo <= hi where "
            "short_side_sampling='range'; try (640, 800)."
        )
