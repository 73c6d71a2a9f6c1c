"""The sizes that images are resized to."""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, Int32

from retinanet_jax.data.transforms import PIXEL_TYPES

SIZE_MULTIPLE = 32  # the stride of C5, the coarsest feature map that the backbone computes

Length = int | float  # the length of an image's side, in pixels
T = TypeVar("T", int, np.ndarray)


def resized_size(
    height: int, width: int, *, short_side: Length, long_side: Length, resize: str
) -> tuple[int, int]:
    """Return the (height, width) in pixels that an image is resized to.

    The short side becomes `short_side`, unless the long side would then exceed `long_side`. Both
    sides are scaled by min(short_side / short, long_side / long)
    (https://arxiv.org/abs/1708.02002, section 5) and rounded half up to at least 1 pixel. Two
    methods follow the libraries that they reproduce: "bilinear_float" rounds down, as torchvision
    does, and "pillow" multiplies in the same order as detectron2, because the last bit of a product
    decides how a tie is rounded.

    Args:
        height: Height of the original image in pixels.
        width: Width of the original image in pixels.
        short_side: The target length of the short side in pixels.
        long_side: The maximal length of the long side in pixels.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.

    Raises:
        ValueError: If `resize` is unknown.
    """
    sizes = np.array([[height, width]])
    resized = resized_sizes(sizes, short_side=short_side, long_side=long_side, resize=resize)
    return int(resized[0, 0]), int(resized[0, 1])


def resized_sizes(
    sizes: Int[np.ndarray, "N 2"], *, short_side: Length, long_side: Length, resize: str
) -> Int32[np.ndarray, "N 2"]:
    """Return the heights and widths in pixels that N images are resized to; see `resized_size`.

    Args:
        sizes: Heights and widths of the original images in pixels.
        short_side: As in `resized_size`.
        long_side: As in `resized_size`.
        resize: As in `resized_size`.

    Raises:
        ValueError: If `resize` is unknown.
    """
    check_resize_method(resize)
    return round_sizes(fit_sizes(sizes, short_side, long_side, resize), resize)


def fit_sizes(
    sizes: Int[np.ndarray, "N 2"],
    short_side: Length | Float[np.ndarray, " N"],
    long_side: Length,
    resize: str,
) -> Float[np.ndarray, "N 2"]:
    """Return the `resized_sizes` before they are rounded to whole pixels.

    Args:
        sizes: Heights and widths of the original images in pixels.
        short_side: As in `resized_size`, for all or for each of the images.
        long_side: As in `resized_size`.
        resize: As in `resized_size`.
    """
    return np.stack(_fit(sizes[:, 0], sizes[:, 1], short_side, long_side, resize, xp=np), axis=1)


def round_sizes(sizes: Float[np.ndarray, "*N 2"], resize: str) -> Int32[np.ndarray, "*N 2"]:
    """Round heights and widths to whole pixels, by the rule of the resize method.

    Args:
        sizes: From `fit_sizes`.
        resize: As in `resized_size`.
    """
    return _round(sizes, resize, xp=np).astype(np.int32)


def size_in_canvas(
    height: Any,
    width: Any,
    canvas: tuple[int, int],
    *,
    short_side: Any,
    long_side: Length,
    resize: str,
    xp: Any = np,
) -> tuple[Any, Any]:
    """Return the heights and widths in pixels that images are resized to in a canvas.

    This is the `resized_size` if the canvas can contain it. Otherwise it is the largest size in the
    canvas with the image's aspect ratio, rounded by the same rule.

    Args:
        height: Height of the original image in pixels, or an array of them.
        width: Width of the original image in pixels, or an array of them.
        canvas: (height, width) in pixels.
        short_side: As in `resized_size`.
        long_side: As in `resized_size`.
        resize: As in `resized_size`.
        xp: The module of the arrays, numpy or tensorflow; both compute the same numbers. Tensors,
            `short_side` included, must have the dtype float64.

    Returns:
        Two arrays of whole numbers in float64.
    """
    fitted = _fit(height, width, short_side, long_side, resize, xp)
    factor = xp.minimum(canvas[0] / height, canvas[1] / width)
    usual = [_round(length, resize, xp) for length in fitted]
    shrunk = [_round(length * factor, resize, xp) for length in (height, width)]
    fits = (usual[0] <= canvas[0]) & (usual[1] <= canvas[1])
    return xp.where(fits, usual[0], shrunk[0]), xp.where(fits, usual[1], shrunk[1])


def _fit(
    height: Any, width: Any, short_side: Any, long_side: Length, resize: str, xp: Any
) -> tuple[Any, Any]:
    """Return the heights and widths of `fit_sizes`; see `size_in_canvas` for the arguments."""
    short, long = xp.minimum(height, width), xp.maximum(height, width)
    if resize != "pillow":
        factor = xp.minimum(short_side / short, long_side / long)
        return height * factor, width * factor
    # The order of operations matters: the last bit decides how a product near .5 is rounded.
    factor = short_side / short
    height = xp.where(height == short, short_side, height * factor)
    width = xp.where(width == short, short_side, width * factor)
    limit = xp.minimum(long_side / xp.maximum(height, width), 1)
    return height * limit, width * limit


def _round(length: Any, resize: str, xp: Any) -> Any:
    """Return lengths in whole pixels, as floating-point numbers."""
    half = 0.0 if resize == "bilinear_float" else 0.5
    return xp.maximum(xp.floor(length + half), 1)


def round_up(size: T, multiple: int = SIZE_MULTIPLE) -> T:
    """Return the smallest multiple of `multiple` that is at least `size`.

    Args:
        size: A number of pixels, or an array of them.
        multiple: A positive number of pixels.
    """
    return -(-size // multiple) * multiple


def check_resize_method(resize: str) -> None:
    """Check that a resize method exists.

    Raises:
        ValueError: If `resize` is not a key of `transforms.PIXEL_TYPES`.
    """
    if resize not in PIXEL_TYPES:
        raise ValueError(f"resize={resize!r} must be one of {', '.join(map(repr, PIXEL_TYPES))}.")
