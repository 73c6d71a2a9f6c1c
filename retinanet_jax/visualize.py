"""Drawings for people: images with labeled boxes, and contact sheets of several images."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from retinanet_jax import core
from retinanet_jax.data.sources.base import Source

SHEET_GAP = 4  # pixels between the cells of a contact sheet


def class_color(class_index: int) -> tuple[int, int, int]:
    """Return the RGB color of a class, in 0..255.

    The hues of consecutive classes are a golden ratio apart, so that they differ clearly.
    """
    red, green, blue = colorsys.hsv_to_rgb(class_index * 0.61803398875 % 1, 0.85, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def score_label(class_name: str, score: float) -> str:
    """Return the label that is drawn at the box of a detection."""
    return f"{class_name} {score:.2f}"


def draw(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[str],
    classes: Sequence[int] | np.ndarray,
) -> Image.Image:
    """Return a copy of an image with labeled boxes drawn on it.

    Args:
        image: RGB pixels.
        boxes: yxyx in pixels of the image; the maximum is exclusive.
        labels: A text for each box; an empty one is not drawn.
        classes: The class index of each box, which determines its color.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 400))
    font = ImageFont.load_default(size=max(10, round(max(canvas.size) / 45)))
    for (y1, x1, y2, x2), label, class_index in zip(boxes, labels, classes, strict=True):
        color = class_color(int(class_index))
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)
        if label:
            # Above the box, or inside it at the top of the image; never beyond the right edge.
            rightmost = canvas.width - 1 - width - pen.textlength(label, font=font)
            x = max(0, min(x1, rightmost))
            left, top, right, bottom = pen.textbbox((x, y1), label, font=font)
            up = min(bottom - y1 + width, y1)
            pen.rectangle((left, top - up, right + width, bottom - up + 1), fill=color)
            text_color = "white" if sum(color) < 450 else "black"
            pen.text((x, y1 - up), label, font=font, fill=text_color)
    return canvas


def comparison_sheet(
    source: Source,
    results: Sequence[dict[str, Any]],
    *,
    count: int = 8,
    threshold: float = 0.5,
    side: int = 400,
) -> Image.Image:
    """Return a contact sheet of images, each with its ground truth and next to it its detections.

    Args:
        source: The dataset.
        results: Detections of its images in COCO's results format.
        count: The number of images to show, evenly spread over the dataset.
        threshold: The lowest score of a detection that is drawn.
        side: The square, in pixels, that each image is scaled to fit.
    """
    spread = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist()
    by_image: dict[int, list[dict[str, Any]]] = {int(source.image_ids[i]): [] for i in spread}
    for result in results:
        if result["image_id"] in by_image and result["score"] >= threshold:
            by_image[result["image_id"]].append(result)
    images = [
        image
        for index in spread
        for image in _comparison(source, index, by_image[int(source.image_ids[index])], side)
    ]
    return sheet(images, side=side, columns=4)


def sheet(images: Sequence[Image.Image], *, side: int, columns: int) -> Image.Image:
    """Return a contact sheet of images.

    Args:
        images: Images of at most `side` x `side` pixels.
        side: The width and height of a cell in pixels.
        columns: The number of images in a row.
    """
    cell = side + SHEET_GAP
    num_rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (cell * min(columns, len(images)), cell * num_rows), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        canvas.paste(image, (column * cell, row * cell))
    return canvas


def _comparison(
    source: Source, index: int, results: Sequence[dict[str, Any]], side: int
) -> tuple[Image.Image, Image.Image]:
    """Return one image twice: with its ground truth and with its detections."""
    height, width = source.sizes[index].tolist()
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(Image.fromarray(source.image(index)).resize(size))
    names = [category.name for category in source.categories]
    annotations = source.annotations(index)
    class_of = {category.id: k for k, category in enumerate(source.categories)}
    classes = [class_of[result["category_id"]] for result in results]
    labels = [score_label(names[k], r["score"]) for k, r in zip(classes, results, strict=True)]
    boxes = np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4)
    truth_labels = [names[k] for k in annotations.classes]
    return (
        draw(image, annotations.boxes * scale, truth_labels, annotations.classes),
        draw(image, core.xywh_to_yxyx(boxes) * scale, labels, classes),
    )
