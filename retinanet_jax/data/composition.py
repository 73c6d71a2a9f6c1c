"""Composes the image and the boxes of an example of its layers, in numpy and Pillow.

Both loaders use this function, so that composed images are bit for bit the same.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image

from retinanet_jax.data.layers import Composition
from retinanet_jax.data.transforms import (
    PIXEL_TYPES,
    Geometry,
    Pixels,
    transform_boxes,
    transform_image,
)

# The gray of what no layer covers: the mean of ImageNet, which is about 0 once it is normalized.
FILL = 114


class PlacedLayer(NamedTuple):
    """A layer of one example; `layers.Layers` describes the fields."""

    index: int
    geometry: Geometry
    place: tuple[int, int]
    opacity: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The yxyx that the layer is painted at."""
        (y, x), (height, width) = self.place, self.geometry.size
        return y, x, y + height, x + width


def placed_layers(composition: Composition) -> list[PlacedLayer]:
    """Return the layers of one example: that of its own image first, and the others that it has."""
    fields = zip(*(field.tolist() for field in composition.layers), strict=True)
    layers = [
        PlacedLayer(
            index,
            Geometry(tuple(resized), flip, rot90_k, tuple(offset), tuple(size)),
            tuple(place),
            opacity,
        )
        for index, resized, flip, rot90_k, offset, size, place, opacity in fields
    ]
    return layers[:1] + [layer for layer in layers[1:] if 0 not in layer.geometry.size]


def compose_image(
    composition: Composition,
    size: tuple[int, int],
    read: Callable[[int, tuple[int, int]], UInt8[np.ndarray, "_ _ 3"]],
    *,
    method: str,
) -> Pixels:
    """Return the image of an example: its layers, one painted over the other, and warped.

    Args:
        composition: What the example is composed of.
        size: Height and width of the example.
        read: Returns the image at an index, which is to be resized to a (height, width).
        method: The resize method, a key of `transforms.PIXEL_TYPES`.
    """
    top, left, bottom, right = composition.canvas.tolist()
    canvas = np.full((bottom - top, right - left, 3), FILL, PIXEL_TYPES[method])
    for layer in placed_layers(composition):
        if 0 in layer.geometry.size:
            continue
        pixels = read(layer.index, layer.geometry.resized)
        pixels = transform_image(pixels, layer.geometry, method=method)
        y1, x1, y2, x2 = layer.box
        below = canvas[y1 - top : y2 - top, x1 - left : x2 - left]
        below[:] = pixels if layer.opacity == 1 else _blended(below, pixels, layer.opacity)
    return _warped_image(canvas, composition, size)


def compose_boxes(
    composition: Composition,
    size: tuple[int, int],
    boxes: Sequence[Float32[np.ndarray, "_ 4"]],
    original_sizes: Sequence[tuple[int, int]],
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, " n"]]:
    """Return the boxes of all layers in pixels of the composed image.

    Args:
        composition: What the example is composed of.
        size: Height and width of the example.
        boxes: Those of the image of each of `placed_layers`, yxyx in pixels of the original image.
        original_sizes: (height, width) of each original image.

    Returns:
        The boxes, clipped to the example, and the fraction of each box's area that is inside it and
        not covered by another layer; 0 for an empty box.
    """
    layers = placed_layers(composition)
    placed, visible = [], []
    for number, layer in enumerate(layers):
        inside, fraction = transform_boxes(boxes[number], original_sizes[number], layer.geometry)
        inside = inside + np.tile(layer.place, 2)
        above = [other.box for other in layers[number + 1 :] if other.opacity == 1]
        placed.append(inside)
        visible.append(fraction * (1 - _covered_fractions(inside, above)))
    warped = _warped_boxes(np.concatenate(placed), composition.warp, size)
    inside = np.clip(warped, 0, np.tile(size, 2))
    fractions = np.concatenate(visible) * _ratio(_areas(inside), _areas(warped))
    return inside.astype(np.float32), fractions.astype(np.float32)


def _blended(below: Pixels, pixels: Pixels, opacity: float) -> Float32[np.ndarray, "_ _ 3"]:
    """Return the weighted average of pixels, in whole numbers if they are bytes."""
    blended = below + np.float32(opacity) * (pixels.astype(np.float32) - below)
    return blended if pixels.dtype == np.float32 else np.rint(blended)


def _warped_image(canvas: Pixels, composition: Composition, size: tuple[int, int]) -> Pixels:
    """Return the canvas after the warp, by bilinear interpolation without antialiasing."""
    if np.array_equal(composition.warp, np.eye(2)):
        return canvas
    # Pillow requires the point of the canvas, (x, y), of each point of the result.
    inverse, center = np.linalg.inv(composition.warp), np.divide(size, 2)
    start = center - inverse @ center - composition.canvas[:2]
    matrix = (*inverse[1, ::-1], start[1], *inverse[0, ::-1], start[0])

    def warp(pixels: Pixels | Float32[np.ndarray, "_ _"], fill: int | tuple[int, ...]):
        image = Image.fromarray(pixels).transform(
            (size[1], size[0]),
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BILINEAR,
            fillcolor=fill,
        )
        return np.asarray(image)

    if canvas.dtype == np.uint8:
        return warp(canvas, (FILL,) * 3)
    return np.stack([warp(channel, FILL) for channel in np.moveaxis(canvas, -1, 0)], axis=-1)


def _warped_boxes(
    boxes: Float[np.ndarray, "n 4"], warp: Float64[np.ndarray, "2 2"], size: tuple[int, int]
) -> Float[np.ndarray, "n 4"]:
    """Return the boxes around the moved corners of boxes."""
    if np.array_equal(warp, np.eye(2)):
        return boxes
    center = np.divide(size, 2)
    corners = boxes[:, [[0, 1], [0, 3], [2, 1], [2, 3]]]  # n 4 2
    moved = (corners - center) @ warp.T + center
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def _covered_fractions(
    boxes: Float[np.ndarray, "n 4"], covers: Sequence[tuple[int, int, int, int]]
) -> Float[np.ndarray, " n"]:
    """Return the fraction of each box that at least one of the covers hides; 0 if it is empty."""
    if not covers:
        return np.zeros(len(boxes))
    hiding = np.array(covers)
    # The edges of all covers form a grid, each cell of which is hidden or not.
    ys, xs = (np.unique(hiding[:, axis::2]).tolist() for axis in (0, 1))
    rows, columns = itertools.pairwise(ys), list(itertools.pairwise(xs))
    cells = np.array([(y1, x1, y2, x2) for y1, y2 in rows for x1, x2 in columns])
    starts, stops = cells[:, None, :2] >= hiding[:, :2], cells[:, None, 2:] <= hiding[:, 2:]
    cells = cells[(starts & stops).all(axis=-1).any(axis=-1)]
    first = np.maximum(boxes[:, None, :2], cells[:, :2])
    last = np.minimum(boxes[:, None, 2:], cells[:, 2:])
    areas = np.maximum(last - first, 0).prod(axis=-1).sum(axis=-1)
    return _ratio(areas, _areas(boxes))


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)


def _ratio(
    part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return part / whole; 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
