"""The inputs that users pass as images: files, folders, patterns, Pillow images and arrays."""

import glob
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retinanet_jax.data.decoding import decode_image, oriented_pixels, pillow_reason
from retinanet_jax.utils.progress import one_line

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
        path = _expand_user(path_or_pattern)
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


def image_name(image: object) -> str:
    """Return the name of an image for messages: the path of its file, if it has one.

    Args:
        image: A path, or an object that may know its file, such as a Pillow image or a memory map.
    """
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    is_path = isinstance(path, str | bytes | os.PathLike)  # a memory map of an open file has none
    return (os.fsdecode(path) if is_path else "") or "the image"


def is_single_image(images: object) -> bool:
    """Return whether a value is one image, or one open file, and not several images.

    Args:
        images: Any value. An array of four axes contains several images, and so may one of a single
            axis, which contains paths.
    """
    single_types = str | bytes | bytearray | os.PathLike | Image.Image
    is_file = hasattr(images, "read")
    return is_file or isinstance(images, single_types) or getattr(images, "ndim", None) in (0, 2, 3)


def read_image(image: object) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an image.

    Args:
        image: A file, a Pillow image, or a uint8 array: (height, width, 3) in RGB or
            (height, width) in gray. What numpy can convert counts as an array.

    Raises:
        ValueError: If the image cannot be read, is something else, or has no pixels. The message
            begins with the image's name.
    """
    name = image_name(image)
    if isinstance(image, str | os.PathLike):
        try:
            content = _expand_user(image).read_bytes()
        except (OSError, ValueError) as error:  # the latter for a path with a null character
            raise ValueError(f"{name}: cannot be read ({_reason(error)}).") from None
        return decode_image(content, name)
    if isinstance(image, Image.Image):
        return _pillow_pixels(image, name)
    return _array_pixels(image, name)


def _pillow_pixels(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of a Pillow image."""
    try:
        with _pillow_lock:
            image.load()
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise ValueError(f"{name}: cannot be read ({_reason(error)}).") from None
    if not (image.width and image.height):
        raise ValueError(f"{name}: has no pixels ({image.width} x {image.height}).")
    return oriented_pixels(image, name)


def _array_pixels(image: object, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an array."""
    try:
        array = np.asarray(image)
    except Exception as error:  # of another library, for example if its array is on a GPU
        raise ValueError(
            f"{name}: numpy cannot convert this {type(image).__name__} to an array "
            f"({one_line(error)}); convert it first."
        ) from None
    if array.dtype != np.uint8 or (array.ndim != 2 and array.shape[2:] != (3,)) or not array.size:
        is_array = hasattr(image, "__array__")
        type_name = f"array of {array.dtype} {array.shape}" if is_array else type(image).__name__
        raise ValueError(
            f"{name}: this {type_name} is not an image; give uint8 (height, width, 3) in RGB, "
            "uint8 (height, width) in gray, a path, or a Pillow image."
        )
    return np.stack([array] * 3, axis=-1) if array.ndim == 2 else array


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path."""
    return getattr(error, "strerror", None) or one_line(pillow_reason(error))


def _expand_user(path: str | os.PathLike) -> pathlib.Path:
    """Return a path with ~ as the user's folder; ~NAME is unchanged if there is no such user."""
    return pathlib.Path(os.path.expanduser(os.fsdecode(path)))


def _matching(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    return map(pathlib.Path, glob.iglob(str(pattern), recursive=True))


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in inside if path.is_file()]
