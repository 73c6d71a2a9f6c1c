"""The `shapes` dataset, which is generated from a seed, so that no data is needed to try a program.

It has six categories of figures in many sizes, colors, textures and rotations on textured
backgrounds. Some figures are partly hidden or cut off by the border of the image, and some images
have no figures. The dataset is written and read as a COCO dataset, with gaps in its category ids,
as in COCO.
"""

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
from retinanet_jax.data.sources.textures import paint, sample_background
from retinanet_jax.utils.files import write_folder

CATEGORIES = (
    Category(1, "ellipse"),
    Category(2, "rectangle"),
    Category(3, "triangle"),
    Category(5, "star"),
    Category(7, "ring"),
    Category(11, "cross"),
)
VERSION = 1  # of the images; increase it with every change that alters a pixel
ANNOTATIONS, IMAGES, SETTINGS = "instances.json", "images", "recipe.json"

SUPERSAMPLING = 4
SIZES = (0.15, 0.65)  # longest side over the image's side; its logarithm is sampled uniformly
MAX_STRETCH = 1.5
# In either direction. With such small rotations, training takes minutes; with any rotation, hours.
MAX_ROTATION = math.pi / 9
MAX_OBJECTS = 6
EMPTY_FRACTION = 0.03
MAX_HIDDEN = 0.6  # fraction of a figure's area that is behind others or outside the image
NUM_TRIES = 20  # to sample a figure that hides too much of no figure
# Rotations by multiples of 90 degrees.
ROT90_MATRICES = ([[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]])


class Figure(NamedTuple):
    """A rendered figure.

    Attributes:
        class_index: The index of its category in CATEGORIES.
        box: x1, y1, x2, y2 in pixels, around the part that is inside the image.
        area: Area in square pixels, including the part outside the image.
        window: The rows and columns of the image that contain it.
        coverage: The fraction of each pixel of the window that it covers.
    """

    class_index: int
    box: tuple[float, float, float, float]
    area: float
    window: tuple[slice, slice]
    coverage: Float32[np.ndarray, "h w"]


def write_shapes(
    directory: str | os.PathLike, *, seed: int, num_images: int, image_size: int
) -> pathlib.Path:
    """Generate a dataset: the file `ANNOTATIONS` and the folder `IMAGES`.

    The directory is written completely or not at all. If it already contains the same dataset, it
    is not written again.

    Args:
        directory: The folder to write.
        seed: Image i depends only on (seed, i).
        num_images: The number of images.
        image_size: The height and width of the images in pixels.

    Returns:
        The directory.

    Raises:
        ValueError: If the directory contains something else, or a number is too small.
    """
    if num_images < 1 or image_size < 32 or seed < 0:
        raise ValueError(
            f"shapes with seed={seed}, {num_images} images, image_size={image_size}: seed must be "
            "at least 0, there must be at least 1 image, and image_size must be at least 32; try "
            "0, 600, 160."
        )
    directory = pathlib.Path(directory)
    settings = {"seed": seed, "images": num_images, "image_size": image_size, "version": VERSION}
    if _is_written(directory, settings):
        return directory
    write_folder(
        directory,
        functools.partial(_write, settings=settings),
        functools.partial(_is_written, directory, settings),
    )
    return directory


def _is_written(directory: pathlib.Path, settings: dict[str, int]) -> bool:
    """Return whether the dataset exists; raise ValueError if the directory has other content."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    path = directory / SETTINGS
    existing = json.loads(path.read_text()) if path.is_file() else None
    if existing != settings:
        content = f"shapes with {existing}" if existing else "something else"
        raise ValueError(
            f"{directory}: contains {content}, not shapes with {settings}; remove it, or give "
            "another folder."
        )
    return True


def _write(directory: pathlib.Path, settings: dict[str, int]) -> None:
    """Write the images, the COCO JSON and the settings."""
    size = settings["image_size"]
    (directory / IMAGES).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(settings["images"]):
        image, figures = generate_image(settings["seed"], index, size)
        name = f"{index:06d}.jpg"
        image.save(directory / IMAGES / name, quality=90)
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for figure in figures:
            x1, y1, x2, y2 = figure.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": CATEGORIES[figure.class_index].id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": "shapes", **settings},
        "images": images,
        "annotations": annotations,
        "categories": [category._asdict() for category in CATEGORIES],
    }
    (directory / ANNOTATIONS).write_text(json.dumps(content))
    (directory / SETTINGS).write_text(json.dumps(settings))


def generate_image(seed: int, index: int, image_size: int) -> tuple[Image.Image, list[Figure]]:
    """Return an image and its figures from back to front.

    Args:
        seed: The dataset's seed.
        index: The index of the image.
        image_size: The height and width of the image in pixels.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    canvas = sample_background(rng, image_size)
    front = np.full((image_size, image_size), -1)  # the index of the figure in front, at each pixel
    figures: list[Figure] = []
    num_figures = 0 if rng.random() < EMPTY_FRACTION else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(num_figures):
        for _ in range(NUM_TRIES):
            figure = _sample_figure(rng, image_size)
            new_front = front.copy()
            new_front[figure.window][figure.coverage > 0.5] = len(figures)
            visible = np.bincount(new_front[new_front >= 0], minlength=len(figures) + 1)
            areas = np.array([other.area for other in (*figures, figure)])
            if (visible >= (1 - MAX_HIDDEN) * areas).all():
                hue = figure.class_index / len(CATEGORIES)
                paint(rng, canvas[figure.window], figure.coverage, hue)
                front = new_front
                figures.append(figure)
                break
    canvas += rng.normal(0, 3, canvas.shape)  # like the noise of a camera
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)), figures


def _sample_figure(rng: np.random.Generator, image_size: int) -> Figure:
    """Return a figure of random category, size, aspect ratio, rotation and position."""
    class_index = int(rng.integers(len(CATEGORIES)))
    outline, hole = _unit_outlines()[CATEGORIES[class_index].name]
    stretch = math.exp(rng.uniform(-1, 1) * math.log(MAX_STRETCH) / 2)
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation * [stretch, 1 / stretch]  # stretch first, then rotate
    low, high = np.log(SIZES)
    longest = math.exp(rng.uniform(low, high)) * image_size
    rotated = outline @ matrix.T
    scale = longest / np.ptp(rotated, axis=0).max()
    half = np.ptp(rotated, axis=0) * scale / 2
    # At most half of the figure's width or height is outside the image; `MAX_HIDDEN` is stricter.
    center = rng.uniform(0, image_size, 2)
    center = np.clip(center, half / 2, image_size - half / 2)
    shift = center - (rotated.max(axis=0) + rotated.min(axis=0)) / 2 * scale
    placed_hole = None if hole is None else hole @ matrix.T * scale + shift
    return render(class_index, rotated * scale + shift, placed_hole, image_size)


@functools.cache
def _unit_outlines() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return the outline and hole of each category, centered at the origin, before stretching."""
    arm = 0.34
    quarter = np.array([(arm, 1), (arm, arm), (1, arm)])  # of a cross
    return {
        "ellipse": (_polygon(96), None),
        "rectangle": (np.array([(1, 0.8), (-1, 0.8), (-1, -0.8), (1, -0.8)]), None),
        "triangle": (_polygon(3), None),
        "star": (_polygon(10) * np.tile([1, 0.45], 5)[:, None], None),
        "ring": (_polygon(96), 0.55 * _polygon(96)),
        "cross": (np.concatenate([quarter @ np.array(rot90) for rot90 in ROT90_MATRICES]), None),
    }


def _polygon(num_corners: int) -> Float[np.ndarray, "v 2"]:
    """Return the corners of a regular polygon of radius 1."""
    angle = 2 * math.pi * np.arange(num_corners) / num_corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def render(
    class_index: int,
    outline: Float[np.ndarray, "v 2"],
    hole: Float[np.ndarray, "u 2"] | None,
    image_size: int,
) -> Figure:
    """Return the figure with a given outline.

    Args:
        class_index: The index of the category in CATEGORIES.
        outline: The (x, y) corners in pixels.
        hole: The (x, y) corners of a hole in pixels, or None.
        image_size: The height and width of the image in pixels.
    """
    low = np.clip(np.floor(outline.min(axis=0)), 0, image_size - 1).astype(int)
    high = np.clip(np.ceil(outline.max(axis=0)), low + 1, image_size).astype(int)
    mask = Image.new("L", tuple(((high - low) * SUPERSAMPLING).tolist()))
    pen = ImageDraw.Draw(mask)

    def fill(polygon: np.ndarray, level: int) -> None:
        corners = (polygon - low) * SUPERSAMPLING - 0.5  # Pillow's origin is a pixel's center
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=level)

    fill(outline, 255)
    x1, y1, x2, y2 = mask.getbbox() or (0, 0, *mask.size)
    if hole is not None:
        fill(hole, 0)
    left, top = low.tolist()
    return Figure(
        class_index,
        box=(
            left + x1 / SUPERSAMPLING,
            top + y1 / SUPERSAMPLING,
            left + x2 / SUPERSAMPLING,
            top + y2 / SUPERSAMPLING,
        ),
        area=_area(outline) - (0.0 if hole is None else _area(hole)),
        window=(slice(top, int(high[1])), slice(left, int(high[0]))),
        coverage=np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / 255,
    )


def _area(outline: Float[np.ndarray, "v 2"]) -> float:
    """Return the area of a polygon by the shoelace formula."""
    x, y = outline.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
