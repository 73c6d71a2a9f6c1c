"""Pictures for people: boxes with names and scores."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retinanet_jax.data.sources.base import Source


def color(number: int) -> tuple[int, int, int]:
    """A colour for a class; neighbours differ most (hues a golden ratio apart)."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.85, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def score_label(name: str, score: float) -> str:
    """What is written at the box of a detection."""
    return f"{name} {score:.2f}"


def draw(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], classes: Sequence[int] | np.ndarray
) -> Image.Image:
    """The picture (H x W x 3 uint8) with yxyx boxes (pixels of it), each with its label."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 400))
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 45)))
    for (y1, x1, y2, x2), label, number in zip(boxes, labels, classes, strict=True):
        ink = color(int(number))
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=ink, width=width)
        if label:
            # Above the box, or inside where the picture ends; never beyond its right edge.
            room = picture.width - 1 - width - pen.textlength(label, font=font)
            x = max(0, min(x1, room))
            left, top, right, bottom = pen.textbbox((x, y1), label, font=font)
            up = min(bottom - y1 + width, y1)
            pen.rectangle((left, top - up, right + width, bottom - up + 1), fill=ink)
            pen.text((x, y1 - up), label, font=font, fill="white" if sum(ink) < 450 else "black")
    return picture


def compare(
    source: Source,
    results: list[dict[str, Any]],
    *,
    count: int = 8,
    threshold: float = 0.5,
    side: int = 400,
) -> Image.Image:
    """`count` pictures of `source`, ground truth beside detections scoring `threshold` or more.

    The source's pictures are taken evenly spread, scaled to fit a square of `side` pixels.
    """
    spread = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    found: dict[int, list[dict[str, Any]]] = {int(source.image_ids[i]): [] for i in spread}
    for result in results:
        if result["image_id"] in found and result["score"] >= threshold:
            found[result["image_id"]].append(result)
    pairs = [
        pair for i in spread for pair in _pair(source, i, found[int(source.image_ids[i])], side)
    ]
    return sheet(pairs, side=side, columns=4)


def sheet(pictures: Sequence[Image.Image], *, side: int, columns: int) -> Image.Image:
    """Pictures of at most `side` pixels in rows of `columns`."""
    cell = side + 4
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (cell * min(columns, len(pictures)), cell * rows), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        canvas.paste(picture, (column * cell, row * cell))
    return canvas


def _pair(
    source: Source, index: int, found: list[dict[str, Any]], side: int
) -> tuple[Image.Image, Image.Image]:
    """(ground truth, detections) drawn on one picture of `source`."""
    height, width = source.sizes[index].tolist()
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(Image.fromarray(source.image(index)).resize(size))
    names = [category.name for category in source.categories]
    truth = source.annotations(index)
    numbers = {category.id: k for k, category in enumerate(source.categories)}
    classes = [numbers[one["category_id"]] for one in found]
    labels = [score_label(names[k], one["score"]) for k, one in zip(classes, found, strict=True)]
    boxes = [(y, x, y + h, x + w) for x, y, w, h in (one["bbox"] for one in found)]
    return (
        draw(image, truth.boxes * scale, [names[k] for k in truth.classes], truth.classes),
        draw(image, np.array(boxes).reshape(-1, 4) * scale, labels, classes),
    )
