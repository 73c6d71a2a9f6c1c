"""Resize, flip, rotate, crop and pad images and boxes: pure functions in numpy and Pillow.

Prediction and the numpy loader use them. `tf_transforms` has the same functions in TensorFlow for
tf.data, which runs them in parallel outside Python. Tests check that both return the same pixels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

# The resize methods, and the dtype of the pixels that they return.
# bilinear: half-pixel centers, no antialias, computed in float32, rounded half to even.
# bilinear_float: the same without rounding, as torchvision's detectors resize.
# pillow: Pillow's bilinear, which is antialiased, as detectron2 resizes.
PIXEL_TYPES = {"bilinear": np.uint8, "bilinear_float": np.float32, "pillow": np.uint8}

STRIP_HEIGHT = 12  # rows that are resized at once, few enough for the processor's cache

Pixels = UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ 3"]  # RGB in 0..255


class Geometry(NamedTuple):
    """The geometric transforms of one image, in the order in which they are applied."""

    resized: tuple[int, int]  # height and width of the resized image
    flip: bool  # whether to flip left to right
    rot90_k: int  # rotations by 90 degrees counterclockwise
    offset: tuple[int, int]  # y and x of the crop in the rotated image
    size: tuple[int, int]  # height and width of the crop


def transform_image(
    image: UInt8[np.ndarray, "H W 3"], geometry: Geometry, *, method: str
) -> Pixels:
    """Resize, flip, rotate and crop an image.

    Args:
        image: RGB pixels.
        geometry: The transforms.
        method: The resize method, a key of PIXEL_TYPES.
    """
    resized, mirrored, rot90_k, offset, size = geometry
    # Pixels outside the crop are not computed.
    window = unrotated_windows(resized, offset, size)[mirrored][rot90_k]
    if image.shape[:2] == tuple(resized):
        y, x, height, width = window
        image = image[y : y + height, x : x + width].astype(PIXEL_TYPES[method], copy=False)
    else:
        image = resize_window(image, resized, window, method)
    return np.rot90(flip(image) if mirrored else image, rot90_k)


def transform_boxes(
    boxes: Float32[np.ndarray, "n 4"], original_size: tuple[int, int], geometry: Geometry
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, " n"]]:
    """Apply the transforms of an image to its boxes.

    Args:
        boxes: yxyx in pixels of the original image.
        original_size: (height, width) of the original image.
        geometry: The transforms.

    Returns:
        The boxes, clipped to the crop and in yxyx pixels of it, and the fraction of each box's area
        that is inside the crop; 0 for an empty box.
    """
    height, width = geometry.resized
    boxes = resize_boxes(boxes, np.divide(geometry.resized, original_size))
    if geometry.flip:
        boxes = flip_boxes(boxes, width)
    boxes = rot90_boxes(boxes, geometry.rot90_k, height, width) - np.tile(geometry.offset, 2)
    inside = np.clip(boxes, 0, np.tile(geometry.size, 2))
    whole_areas, inside_areas = _areas(boxes), _areas(inside)
    visible = np.divide(
        inside_areas, whole_areas, out=np.zeros_like(whole_areas), where=whole_areas > 0
    )
    return inside.astype(np.float32), visible.astype(np.float32)


def resize(image: UInt8[np.ndarray, "H W 3"], height: int, width: int, *, method: str) -> Pixels:
    """Resize an image; resizing to its own size changes no value.

    Args:
        image: RGB pixels.
        height: The new height.
        width: The new width.
        method: A key of PIXEL_TYPES.
    """
    return resize_window(image, (height, width), (0, 0, height, width), method)


def flip(image: Pixels) -> Pixels:
    """Mirror an image left to right."""
    return image[:, ::-1]


def pad(image: Pixels, height: int, width: int) -> Pixels:
    """Pad an image with zeros at the bottom and the right.

    Args:
        image: RGB pixels.
        height: The new height.
        width: The new width.
    """
    bottom, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, bottom), (0, right), (0, 0)))


def resize_boxes(
    boxes: Float32[np.ndarray, "n 4"], scale: Float[np.ndarray, " 2"]
) -> Float32[np.ndarray, "n 4"]:
    """Scale boxes like their image.

    Args:
        boxes: yxyx in pixels of the original image.
        scale: Resized pixels per original pixel, (y, x).
    """
    return (boxes * np.tile(scale, 2)).astype(np.float32)


def flip_boxes(boxes: Float32[np.ndarray, "n 4"], width: int | float) -> Float32[np.ndarray, "n 4"]:
    """Mirror boxes left to right with their image.

    Args:
        boxes: yxyx in pixels of the image.
        width: Width of the image in pixels.
    """
    y1, x1, y2, x2 = boxes.T
    return np.stack([y1, width - x2, y2, width - x1], axis=1).astype(np.float32)


def rot90_boxes(
    boxes: Float32[np.ndarray, "n 4"], k: int, height: int | float, width: int | float
) -> Float32[np.ndarray, "n 4"]:
    """Rotate boxes as `np.rot90(image, k)` rotates their image.

    Args:
        boxes: yxyx in pixels of the image.
        k: The number of rotations by 90 degrees counterclockwise.
        height: Height of the image before the rotation, in pixels.
        width: Width of the image before the rotation, in pixels.
    """
    for _ in range(k % 4):
        y1, x1, y2, x2 = boxes.T
        boxes = np.stack([width - x2, y1, width - x1, y2], axis=1).astype(np.float32)
        height, width = width, height
    return boxes


def unrotated_windows(resized, offset, size) -> list[list[tuple]]:
    """Return the crop's (y, x, height, width) in the resized image, indexed by [flip][rot90_k].

    All arguments are pairs of numbers or of scalar tensors.

    Args:
        resized: (height, width) of the resized image.
        offset: (y, x) of the crop in the flipped and rotated image.
        size: (height, width) of the crop in the flipped and rotated image.
    """
    (height, width), (y, x), (h, w) = resized, offset, size
    unrotated = [
        (y, x, h, w),
        (x, width - y - h, w, h),
        (height - y - h, width - x - w, h, w),
        (height - x - w, y, w, h),
    ]
    unflipped = [(y, width - x - w, h, w) for y, x, h, w in unrotated]
    return [unrotated, unflipped]


def resize_window(
    image: UInt8[np.ndarray, "H W 3"],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    method: str,
) -> Pixels:
    """Resize an image and return a window of the result.

    Args:
        image: RGB pixels.
        size: The (height, width) of the whole resized image.
        window: (y, x, height, width) in the resized image.
        method: A key of PIXEL_TYPES.
    """
    y, x, height, width = window
    if method == "pillow":
        whole = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(whole)[y : y + height, x : x + width]
    row_taps = [tap[y : y + height] for tap in _taps(image.shape[0], size[0])]
    left, right, x_weights = (tap[x : x + width] for tap in _taps(image.shape[1], size[1]))
    # Channels are columns, too, since numpy is slow where the last axis is short.
    left, right = (np.add.outer(3 * columns, range(3)).ravel() for columns in (left, right))
    x_weights, image = x_weights.repeat(3), image.reshape(len(image), -1)
    resized = np.empty((height, 3 * width), PIXEL_TYPES[method])
    for start in range(0, height, STRIP_HEIGHT):
        top, bottom, y_weights = (tap[start : start + STRIP_HEIGHT] for tap in row_taps)
        first = top[0]
        pixels = image[first : bottom[-1] + 1].astype(np.float32)
        # All indices are in range; numpy is fastest where it may wrap them.
        columns = _interpolate(
            pixels.take(left, axis=1, mode="wrap"),
            pixels.take(right, axis=1, mode="wrap"),
            x_weights,
        )
        strip = _interpolate(
            columns.take(top - first, axis=0),
            columns.take(bottom - first, axis=0),
            y_weights[:, None],
        )
        if method == "bilinear":
            strip = np.rint(strip, out=strip)
        resized[start : start + STRIP_HEIGHT] = strip
    return resized.reshape(height, width, 3)


def _interpolate(
    first: Float32[np.ndarray, "*axes"],
    second: Float32[np.ndarray, "*axes"],
    weight: Float32[np.ndarray, "..."],
) -> Float32[np.ndarray, "*axes"]:
    """Return first + (second - first) * weight, in the memory of `second` to save half the time."""
    second -= first
    second *= weight
    second += first
    return second


def _taps(
    size: int, new_size: int
) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " new_size"]]:
    """Return the two old pixels around each new pixel's center, and the weight of the second."""
    scale = np.float32(size) / np.float32(new_size)
    center = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    first = np.floor(center)
    second = np.minimum(np.ceil(center), size - 1).astype(int)
    return np.maximum(first, 0).astype(int), second, center - first


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    y1, x1, y2, x2 = boxes.T
    return np.maximum(y2 - y1, 0) * np.maximum(x2 - x1, 0)
