"""The inputs that users pass as images: files, folders, patterns, Pillow images and arrays."""

import glob
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retinanet_jax.data.decoding import decode_image, oriented_pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
# Pillow reads a file when its pixels are first used, and two threads may use the same image.
_pillow_lock = threading.Lock()


def find_images(paths: Iterable[str]) -> list[pathlib.Path]:
    """Return the image files at `paths`, without duplicates.

    Args:
        paths: Image files, folders, which are searched recursively, and patterns such as `*.jpg`
            and `**/*.png`.

    Raises:
        FileNotFoundError: If a path neither exists nor matches a file, or there is no image.
    """
    files: list[pathlib.Path] = []
    for path_or_pattern in paths:
        path = pathlib.Path(path_or_pattern).expanduser()
        matches = [path] if path.exists() else sorted(_matching(path))
        if not matches:
            raise FileNotFoundError(f"{path_or_pattern}: no such image or folder.")
        for match in matches:
            files += _images_in(match) if match.is_dir() else [match]
    if not files:
        raise FileNotFoundError(
            f"no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(paths) or 'an empty list'}; "
            "give image files, or folders that contain some."
        )
    return list(dict.fromkeys(files))


def image_name(image: ImageLike) -> str:
    """Return the name of an image for messages: its path, if it has one."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return getattr(image, "filename", "") or "the image"


def read_image(image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an image.

    Args:
        image: A file, a Pillow image, or a uint8 array: (height, width, 3) in RGB or
            (height, width) in gray.

    Raises:
        ValueError: If the image cannot be read, or the array has another type or shape.
    """
    name = image_name(image)
    try:
        if isinstance(image, str | os.PathLike):
            return decode_image(pathlib.Path(image).expanduser().read_bytes(), name)
        if isinstance(image, Image.Image):
            with _pillow_lock:
                image.load()
            return oriented_pixels(image, name)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error}).") from None
    array = np.asarray(image)
    if array.dtype != np.uint8 or (array.ndim != 2 and array.shape[2:] != (3,)) or not array.size:
        raise ValueError(
            f"{name}: an array of {array.dtype} {array.shape} is not an image; give uint8 "
            "(height, width, 3) in RGB, or (height, width) in gray."
        )
    return np.stack([array] * 3, axis=-1) if array.ndim == 2 else array


def _matching(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    return map(pathlib.Path, glob.iglob(str(pattern), recursive=True))


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in inside if path.is_file()]
