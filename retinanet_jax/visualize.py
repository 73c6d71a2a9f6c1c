"""Drawings for people: images with labeled boxes, and sheets that compare several images."""

import bisect
import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from retinanet_jax import core
from retinanet_jax.data.sources.base import Source
from retinanet_jax.utils.progress import one_line

SHEET_GAP = 4  # pixels between the cells of a sheet
TEXT_SIZE = 14  # pixels of a font, in the captions of a sheet
LINE = 20  # pixels from one line of text to the next
MAX_LEGEND_LINES = 4
NUM_COLORS = 256  # after which the colors of classes repeat
# Classes have other colors than these, in which the dataset report draws anchors and crowd regions.
YELLOW, PINK, WHITE, BLACK = (255, 230, 0), (255, 0, 200), (255, 255, 255), (0, 0, 0)
# Pillow's own font has ASCII only. Of these fonts, those that the system has are tried in turn.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",  # macOS
    "msyh.ttc",  # Windows: Chinese, Japanese, Korean
    "YuGothR.ttc",
    "malgun.ttf",
)


def class_color(class_index: int) -> tuple[int, int, int]:
    """Return the RGB color of a class, in 0..255; it depends on the index only."""
    red, green, blue = _palette()[class_index % NUM_COLORS].tolist()
    return red, green, blue


def text_color(background: tuple[int, int, int]) -> str:
    """Return "black" or "white", whichever has the higher contrast on an RGB color."""
    # Both have the same contrast on a luminance of 0.179 (https://www.w3.org/TR/WCAG21).
    luminance = _linear(np.array(background)) @ (0.2126, 0.7152, 0.0722)
    return "black" if luminance > 0.179 else "white"


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
        boxes: yxyx in pixels of the image; the maximum is exclusive. The first boxes, such as those
            of the best detections, are drawn over later ones, and all labels over all boxes.
        labels: A text for each box; an empty one is not drawn, and a long one is shortened.
        classes: The class index of each box, which determines its color.
    """
    colors = [class_color(int(class_index)) for class_index in classes]
    return draw_in_colors(image, boxes, labels, colors)


def draw_in_colors(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
) -> Image.Image:
    """Return a copy of an image with labeled boxes drawn on it in any colors.

    Args:
        image: As in `draw`.
        boxes: As in `draw`.
        labels: As in `draw`.
        colors: The RGB color of each box, in 0..255.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 400))
    last_first = list(zip(boxes, labels, colors, strict=True))[::-1]
    for (y1, x1, y2, x2), _, color in last_first:
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)
    for (y1, x1, _, _), label, color in last_first:
        size = max(10, round(max(canvas.size) / 45))
        text, font = fit_text(label, size, canvas.width - 1 - width)
        if text:
            # Above the box, or inside it at the top of the image; never beyond the right edge.
            x = max(0, min(x1, canvas.width - 1 - width - font.getlength(text)))
            left, top, right, bottom = pen.textbbox((x, y1), text, font=font)
            up = min(bottom - y1 + width, y1)
            pen.rectangle((left, top - up, right + width, bottom - up + 1), fill=color)
            pen.text((x, y1 - up), text, font=font, fill=text_color(color))
    return canvas


def fit_text(
    text: str, size: int, max_width: float = float("inf")
) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text as it can be drawn in one line, and the font that has its characters.

    If no font has them all, accents are left out and other characters replaced by "?". A text that
    is too wide ends in an ellipsis; it is empty if there is no room for one.

    Args:
        text: The text.
        size: The size of the font in pixels.
        max_width: The largest width of the text in pixels.
    """
    # File names that are no UTF-8 contain surrogates, which no font can draw.
    text = one_line(unicodedata.normalize("NFC", text).encode(errors="replace").decode())
    fonts = filter(None, (_load_font(name, size) for name in (None, *SYSTEM_FONTS)))
    font = next((font for font in fonts if _has_all(font, text)), None)
    if font is None:
        font = _load_font(None, size)
        assert font is not None
        letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        text = "".join(c if _has_all(font, c) else "?" for c in letters)
    if font.getlength(text) <= max_width:
        return text, font
    lengths = range(1, len(text))
    fitting = bisect.bisect(lengths, max_width, key=lambda n: font.getlength(text[:n] + "…"))
    return (text[:fitting].rstrip() + "…" if fitting else ""), font


def comparison_sheet(
    source: Source,
    results: Sequence[dict[str, Any]],
    *,
    title: str = "",
    count: int = 8,
    threshold: float = 0.5,
    side: int = 400,
) -> Image.Image:
    """Return a sheet of images, each with its ground truth and next to it its detections.

    Above each image is its file name, and below all of them a legend of the categories in them.

    Args:
        source: The dataset.
        results: Detections of its images in COCO's results format.
        title: The first line of the sheet.
        count: The number of images to show, evenly spread over the dataset.
        threshold: The lowest score of a detection that is drawn.
        side: The square, in pixels, that each image is scaled to fit.
    """
    spread = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist()
    by_image: dict[int, list[dict[str, Any]]] = {int(source.image_ids[i]): [] for i in spread}
    for result in results:
        if result["image_id"] in by_image and result["score"] >= threshold:
            by_image[result["image_id"]].append(result)
    class_of = {category.id: k for k, category in enumerate(source.categories)}
    classes = {
        class_of[result["category_id"]] for selected in by_image.values() for result in selected
    }
    classes.update(k for i in spread for k in source.annotations(i).classes.tolist())
    pairs = [_comparison(source, i, by_image[int(source.image_ids[i])], side) for i in spread]
    columns = max(1, min(2, len(pairs)))
    width = columns * 2 * (side + SHEET_GAP)
    headings = ["ground truth", f"detections (score >= {threshold:g})"] * columns
    return arrange(
        [
            *([[text_line([title], width)]] if title else []),
            [text_line(headings, width)],
            *(pairs[first : first + columns] for first in range(0, len(pairs), columns)),
            [legend({k: source.categories[k].name for k in sorted(classes)}, width)],
        ]
    )


def arrange(rows: Sequence[Sequence[Image.Image]], gap: int = 0) -> Image.Image:
    """Return an image of several rows of images.

    Args:
        rows: The rows; each is as high as its highest image.
        gap: The pixels after each image and below each row.
    """
    heights = [max(image.height for image in row) + gap for row in rows]
    width = max(sum(image.width + gap for image in row) for row in rows)
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for image in row:
            canvas.paste(image, (x, y))
            x += image.width + gap
        y += height
    return canvas


def legend(names: dict[int, str], width: int) -> Image.Image:
    """Return an image of the colors of classes with their names, in a few lines.

    Args:
        names: The names by class index, in the order in which they are shown.
        width: The width of the image in pixels.
    """
    canvas = Image.new("RGB", (width, LINE * (MAX_LEGEND_LINES + 1)), "white")
    pen = ImageDraw.Draw(canvas)
    x = y = 0
    for index, (class_index, name) in enumerate(names.items()):
        text, font = fit_text(name, TEXT_SIZE, width / 4)
        step = 2 * LINE + round(font.getlength(text))
        if x + step > width:
            x, y = 0, y + LINE
        if y == LINE * MAX_LEGEND_LINES:
            rest = text_line([f"and {len(names) - index} more"], width)
            canvas.paste(rest, (0, y))
            break
        pen.rectangle((x + 2, y + 2, x + LINE - 4, y + LINE - 4), fill=class_color(class_index))
        pen.text((x + LINE, y), text, font=font, fill="black")
        x += step
    return canvas.crop((0, 0, width, y + LINE))


def text_line(texts: Sequence[str], width: int) -> Image.Image:
    """Return an image of one line with some texts at equal distances.

    Args:
        texts: The texts; those that are too long are shortened.
        width: The width of the image in pixels.
    """
    canvas = Image.new("RGB", (width, LINE), "white")
    step = width // len(texts)
    for index, text in enumerate(texts):
        fitting, font = fit_text(text, TEXT_SIZE, step - LINE)
        ImageDraw.Draw(canvas).text((index * step + 2, 0), fitting, font=font, fill="black")
    return canvas


def _comparison(
    source: Source, index: int, results: Sequence[dict[str, Any]], side: int
) -> Image.Image:
    """Return one image twice, with its ground truth and with its detections, and its file name."""
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
    truth = draw(image, annotations.boxes * scale, truth_labels, annotations.classes)
    detected = draw(image, core.xywh_to_yxyx(boxes) * scale, labels, classes)
    caption = text_line([source.file_name(index)], 2 * (side + SHEET_GAP))
    return arrange([[caption], [_cell(truth, side), _cell(detected, side)]])


def _cell(image: Image.Image, side: int) -> Image.Image:
    """Return an image of at most `side` x `side` pixels, padded to that width and by a gap."""
    canvas = Image.new("RGB", (side + SHEET_GAP, image.height + SHEET_GAP), "white")
    canvas.paste(image)
    return canvas


@functools.cache
def _load_font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font of the system, or Pillow's own; None if the system does not have it."""
    try:
        font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _has_all(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Return whether a font has all characters of a text."""
    return all(_has_glyph(font, character) for character in text)


@functools.cache
def _has_glyph(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Return whether a font draws a character differently from one that it lacks."""
    glyph: Any = font.getmask(character)
    missing: Any = font.getmask("\U0010ffff")
    return bytes(glyph) != bytes(missing)


@functools.cache
def _palette() -> Int[np.ndarray, "256 3"]:
    """Return NUM_COLORS colors of which the first n are far from each other, for any n.

    Each is the one of a grid of colors, neither dark nor pale nor gray, that is farthest from those
    before it in CIELAB, where distances are differences that people see.
    """
    levels = np.linspace(0, 255, 16).astype(int)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    points = _lab(colors)
    lightness, chroma = points[:, 0], np.hypot(points[:, 1], points[:, 2])
    candidates = (lightness > 40) & (lightness < 90) & (chroma > 30)
    colors, points = colors[candidates], points[candidates]
    chosen: list[int] = []
    reserved = _lab(np.array([YELLOW, PINK, WHITE, BLACK]))
    distances = np.linalg.norm(points[:, None] - reserved, axis=-1).min(axis=1)
    for _ in range(NUM_COLORS):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=-1))
    return colors[chosen]


def _lab(colors: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Return the CIELAB coordinates of sRGB colors in 0..255 (IEC 61966-2-1, white D65)."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = _linear(colors) @ np.array(to_xyz).T / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _linear(colors: Int[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Return the light intensities, from 0 to 1, of sRGB values in 0..255."""
    values = colors / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
