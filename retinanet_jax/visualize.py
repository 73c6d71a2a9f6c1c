"""Pictures for people: boxes with names and scores."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retinanet_jax.data.sources import Source
from retinanet_jax.data.transforms import decode_image


def color(number: int) -> tuple[int, int, int]:
    """A colour for a class; neighbours differ most (hues a golden ratio apart)."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.85, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], classes: Sequence[int]
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
            left, top, right, bottom = pen.textbbox((x1, y1), label, font=font)
            # Above the box, or inside where the picture ends.
            up = min(bottom - y1 + width, y1)
            pen.rectangle((left, top - up, right + width, bottom - up + 1), fill=ink)
            pen.text((x1, y1 - up), label, font=font, fill="white" if sum(ink) < 450 else "black")
    return picture


def compare(
    source: Source, results: list[dict[str, Any]], *, count: int = 6, threshold: float = 0.5
) -> Image.Image:
    """`count` pictures of `source`: ground truth, beside detections scoring `threshold` or more."""
    numbers = {category.id: k for k, category in enumerate(source.categories)}
    spread = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    by_image: dict[int, list[dict[str, Any]]] = {int(source.image_ids[i]): [] for i in spread}
    for result in results:
        if result["image_id"] in by_image and result["score"] >= threshold:
            by_image[result["image_id"]].append(result)
    rows = []
    for index in spread:
        image = decode_image(source.read(index), source.file_name(index))
        truth = source.annotations(index)
        names = [source.categories[k].name for k in truth.classes]
        found = by_image[int(source.image_ids[index])]
        classes = [numbers[result["category_id"]] for result in found]
        labels = [
            f"{source.categories[k].name} {result['score']:.2f}"
            for k, result in zip(classes, found, strict=True)
        ]
        boxes = [(y, x, y + h, x + w) for x, y, w, h in (result["bbox"] for result in found)]
        rows.append(
            (
                draw(image, truth.boxes, names, truth.classes),
                draw(image, np.array(boxes).reshape(-1, 4), labels, classes),
            )
        )
    return sheet(rows)


def sheet(rows: Sequence[Sequence[Image.Image]], *, side: int = 480, gap: int = 4) -> Image.Image:
    """Pictures in rows and columns, each scaled to fit a square of `side` pixels."""
    cell = side + gap
    canvas = Image.new("RGB", (cell * max(map(len, rows)) + gap, cell * len(rows) + gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            scale = side / max(picture.size)
            size = tuple(max(1, round(length * scale)) for length in picture.size)
            canvas.paste(picture.resize(size), (gap + x * cell, gap + y * cell))
    return canvas
