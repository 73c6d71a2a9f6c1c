"""`shapes`: a data set drawn from a seed, so that everything can be tried with nothing at hand.

Six kinds of figures of many sizes, colours, textures and rotations, before textured backgrounds,
some hidden in part, some cut by the picture's edge, now and then none at all. It is written as a
true COCO data set, with gaps in its category ids as COCO has, and takes the same road as COCO.
"""

import colorsys
import functools
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw

from retinanet_jax.data.sources.base import Category
from retinanet_jax.utils.files import write_folder

CATEGORIES = (
    Category(1, "ellipse"),
    Category(2, "rectangle"),
    Category(3, "triangle"),
    Category(5, "star"),
    Category(7, "ring"),
    Category(11, "cross"),
)
VERSION = 1  # of the drawing: raise it with any change that moves a pixel
ANNOTATIONS, PICTURES, RECIPE = "instances.json", "images", "recipe.json"

SUPERSAMPLING = 4
SIZES = (0.15, 0.65)  # of the picture's side, drawn evenly in the logarithm
MAX_STRETCH = 1.5
MAX_TURN = math.pi / 9  # either way: upright kinds are learnt in minutes, tumbled ones in hours
MAX_OBJECTS = 6
EMPTY_SHARE = 0.03
MAX_HIDDEN = 0.6  # of a figure's area, behind others or outside the picture
# Each kind has a hue of its own, as apples and bananas have, that reaches into its neighbours':
# colour is a hint, form decides.
HUE_SPREAD = 0.12
GREY_SHARE = 0.1  # of the figures have no hue
MIN_CONTRAST = 90.0  # RGB distance between a figure's colours and what lies behind it
TRIES = 20  # for a place, and for colours


class Figure(NamedTuple):
    """What is drawn of one figure, and the box around what of it lies in the picture."""

    kind: int  # row of CATEGORIES
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
    area: float  # in square pixels, with what lies outside of the picture
    window: tuple[slice, slice]  # the rows and columns that it touches
    coverage: Float32[np.ndarray, "h w"]  # the share of each of the window's pixels it covers


def write_shapes(
    directory: str | os.PathLike, *, seed: int, images: int, image_size: int
) -> pathlib.Path:
    """Draws the data set into `directory`: instances.json and the folder images.

    images: how many. image_size: their side in pixels. Picture i depends on (seed, i) alone.
    A folder that holds the same data set already is left as it is. It appears as a whole or not
    at all. Returns the folder. Raises ValueError where it holds something else.
    """
    if images < 1 or image_size < 32 or seed < 0:
        raise ValueError(
            f"shapes of seed={seed}, images={images}, image_size={image_size}: seed must be at "
            "least 0, images 1, image_size 32; try 0, 600, 160."
        )
    directory = pathlib.Path(directory)
    recipe = {"seed": seed, "images": images, "image_size": image_size, "version": VERSION}
    if _is_written(directory, recipe):
        return directory
    write_folder(
        directory,
        functools.partial(_write, recipe=recipe),
        functools.partial(_is_written, directory, recipe),
    )
    return directory


def draw_image(seed: int, number: int, image_size: int) -> tuple[Image.Image, list[Figure]]:
    """Picture `number` of `seed` and the figures in it, from back to front."""
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    canvas = _background(rng, image_size)
    owner = np.full((image_size, image_size), -1)  # which figure is in front, at each pixel
    figures: list[Figure] = []
    wanted = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(wanted):
        for _ in range(TRIES):
            figure = _draw_figure(rng, image_size)
            covered = owner.copy()
            covered[figure.window][figure.coverage > 0.5] = len(figures)
            visible = np.bincount(covered[covered >= 0], minlength=len(figures) + 1)
            areas = np.array([one.area for one in (*figures, figure)])
            if (visible >= (1 - MAX_HIDDEN) * areas).all():
                _paint(rng, canvas, figure)
                owner = covered
                figures.append(figure)
                break
    canvas += rng.normal(0, 3, canvas.shape)  # what a camera adds
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)), figures


def _is_written(directory: pathlib.Path, recipe: dict[str, int]) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    path = directory / RECIPE
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != recipe:
        what = f"shapes of {found}" if found else "something else"
        raise ValueError(
            f"{directory}: holds {what}, not shapes of {recipe}; remove it or name another folder."
        )
    return True


def _write(directory: pathlib.Path, recipe: dict[str, int]) -> None:
    size = recipe["image_size"]
    (directory / PICTURES).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(recipe["images"]):
        picture, figures = draw_image(recipe["seed"], number, size)
        name = f"{number:06d}.jpg"
        picture.save(directory / PICTURES / name, quality=90)
        images.append({"id": number + 1, "file_name": name, "height": size, "width": size})
        for figure in figures:
            x1, y1, x2, y2 = figure.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": CATEGORIES[figure.kind].id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": "shapes", **recipe},
        "images": images,
        "annotations": annotations,
        "categories": [category._asdict() for category in CATEGORIES],
    }
    (directory / ANNOTATIONS).write_text(json.dumps(content))
    (directory / RECIPE).write_text(json.dumps(recipe))


def _draw_figure(rng: np.random.Generator, image_size: int) -> Figure:
    """Kind, size, form, rotation and place, all at random."""
    kind = int(rng.integers(len(CATEGORIES)))
    outline, hole = _unit_outlines()[CATEGORIES[kind].name]
    stretch = math.exp(rng.uniform(-1, 1) * math.log(MAX_STRETCH) / 2)
    angle = rng.uniform(-MAX_TURN, MAX_TURN)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    form = turn * [stretch, 1 / stretch]  # stretched first, then turned
    low, high = np.log(SIZES)
    longest = math.exp(rng.uniform(low, high)) * image_size
    turned = outline @ form.T
    scale = longest / np.ptp(turned, axis=0).max()
    half = np.ptp(turned, axis=0) * scale / 2
    # At most half of the figure's width or height may lie outside; `MAX_HIDDEN` asks for more.
    centre = rng.uniform(0, image_size, 2)
    centre = np.clip(centre, half / 2, image_size - half / 2)
    shift = centre - (turned.max(axis=0) + turned.min(axis=0)) / 2 * scale
    placed = None if hole is None else hole @ form.T * scale + shift
    return render(kind, turned * scale + shift, placed, image_size)


@functools.cache
def _unit_outlines() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Each kind's outline and hole about the origin, before stretching."""
    arm = 0.34
    cross = [(arm, 1), (arm, arm), (1, arm)]  # a quarter; the others are it, turned
    quarters = [np.array(cross) @ np.array(turn) for turn in _QUARTER_TURNS]
    return {
        "ellipse": (_polygon(96), None),
        "rectangle": (np.array([(1, 0.8), (-1, 0.8), (-1, -0.8), (1, -0.8)]), None),
        "triangle": (_polygon(3), None),
        "star": (_polygon(10) * np.tile([1, 0.45], 5)[:, None], None),
        "ring": (_polygon(96), 0.55 * _polygon(96)),
        "cross": (np.concatenate(quarters), None),
    }


_QUARTER_TURNS = (
    [[1, 0], [0, 1]],
    [[0, -1], [1, 0]],
    [[-1, 0], [0, -1]],
    [[0, 1], [-1, 0]],
)


def _polygon(corners: int) -> Float[np.ndarray, "v 2"]:
    angle = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def render(
    kind: int,
    outline: Float[np.ndarray, "v 2"],
    hole: Float[np.ndarray, "v 2"] | None,
    image_size: int,
) -> Figure:
    """The figure in the window that it touches; outlines are in pixels (x, y)."""
    low = np.clip(np.floor(outline.min(axis=0)), 0, image_size - 1).astype(int)
    high = np.clip(np.ceil(outline.max(axis=0)), low + 1, image_size).astype(int)
    drawn = Image.new("L", tuple(((high - low) * SUPERSAMPLING).tolist()))
    pen = ImageDraw.Draw(drawn)

    def fill(polygon: np.ndarray, level: int) -> None:
        corners = (polygon - low) * SUPERSAMPLING - 0.5  # Pillow counts from pixels' centres
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=level)

    fill(outline, 255)
    x1, y1, x2, y2 = drawn.getbbox() or (0, 0, *drawn.size)
    if hole is not None:
        fill(hole, 0)
    left, top = low.tolist()
    return Figure(
        kind,
        box=(
            left + x1 / SUPERSAMPLING,
            top + y1 / SUPERSAMPLING,
            left + x2 / SUPERSAMPLING,
            top + y2 / SUPERSAMPLING,
        ),
        area=_area(outline) - (0.0 if hole is None else _area(hole)),
        window=(slice(top, int(high[1])), slice(left, int(high[0]))),
        coverage=np.asarray(drawn.reduce(SUPERSAMPLING), np.float32) / 255,
    )


def _area(outline: Float[np.ndarray, "v 2"]) -> float:
    """By the shoelace formula."""
    x, y = outline.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _paint(rng: np.random.Generator, canvas: Float[np.ndarray, "H W 3"], figure: Figure) -> None:
    """Onto the canvas, in place."""
    behind = canvas[figure.window]
    first, second = _figure_colours(rng, figure.kind, behind[figure.coverage > 0.5].mean(axis=0))
    texture = _texture(rng, *figure.coverage.shape)[..., None]
    behind += figure.coverage[..., None] * (first + (second - first) * texture - behind)


def _figure_colours(
    rng: np.random.Generator, kind: int, behind: Float[np.ndarray, " 3"]
) -> tuple[np.ndarray, np.ndarray]:
    """Two like colours, of the kind's own hue or grey, both apart from what lies behind them."""
    for _ in range(TRIES):
        hue = kind / len(CATEGORIES) + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
        value = rng.uniform(0.2, 1)
        saturation = 0.0 if rng.random() < GREY_SHARE else rng.uniform(0.6, 1)
        first = _rgb(hue, saturation, value)
        second = _rgb(hue + rng.uniform(-0.05, 0.05), saturation, value + rng.uniform(-0.2, 0.2))
        if min(np.linalg.norm(first - behind), np.linalg.norm(second - behind)) >= MIN_CONTRAST:
            break
    return first, second


def _background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "H W 3"]:
    """Muted, of two colours not far from each other."""
    hue, saturation, value = rng.random(), rng.uniform(0, 0.5), rng.uniform(0.2, 0.95)
    first = _rgb(hue, saturation, value)
    second = _rgb(hue + rng.uniform(-0.15, 0.15), saturation, value + rng.uniform(-0.25, 0.25))
    mix = 0.6 * _texture(rng, size, size) + 0.4 * _clouds(rng, size, size)
    return first + (second - first) * mix[..., None]


def _rgb(hue: float, saturation: float, value: float) -> Float[np.ndarray, " 3"]:
    return 255.0 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(max(value, 0.1), 1)))


def _texture(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "H W"]:
    """In [0, 1]: plain, a gradient, stripes, a check, dots or clouds."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:height, :width] + 0.5
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    period = max(4.0, max(height, width) * rng.uniform(0.15, 0.4))

    def wave(way: np.ndarray) -> np.ndarray:
        return np.sin(2 * math.pi / period * way)

    patterns = (
        lambda: np.full((height, width), rng.random()),
        lambda: (along - along.min()) / max(float(np.ptp(along)), 1.0),
        lambda: _step(wave(along)),
        lambda: _step(wave(along) * wave(across)),
        lambda: _step(wave(along) + wave(across) - 0.8),
        lambda: _clouds(rng, height, width),
    )
    return patterns[rng.integers(len(patterns))]()


def _step(wave: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    return np.clip(0.5 + 2 * wave, 0, 1)  # steep, yet without jagged edges


def _clouds(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "H W"]:
    """Smooth noise of several octaves, in [0, 1]."""
    total = np.zeros((height, width))
    for cells in (2, 4, 8, 16):
        noise = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)
