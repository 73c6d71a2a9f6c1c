"""Files of pictures, as a person names them: one by one, by folder or by pattern."""

import glob
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retinanet_jax.data.transforms import decode_image, oriented_pixels

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(paths: Iterable[str]) -> list[pathlib.Path]:
    """The picture files at `paths`, each once; folders are searched to the bottom.

    What does not exist is taken for a pattern (`*.jpg`, `**/*.png`), as a shell takes it.
    Raises FileNotFoundError where there is neither, or no picture at all.
    """
    found: list[pathlib.Path] = []
    for given in paths:
        path = pathlib.Path(given).expanduser()
        matches = [path] if path.exists() else sorted(_matching(path))
        if not matches:
            raise FileNotFoundError(f"{given}: no such picture or folder.")
        for match in matches:
            found += _pictures_in(match) if match.is_dir() else [match]
    if not found:
        raise FileNotFoundError(
            f"no picture ({', '.join(SUFFIXES)}) in {', '.join(paths) or 'an empty list'}; "
            "give pictures, or folders with some."
        )
    return list(dict.fromkeys(found))


def _matching(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    return map(pathlib.Path, glob.iglob(str(pattern), recursive=True))


def _pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [path for path in inside if path.is_file()]


Picture = str | os.PathLike[str] | Image.Image | np.ndarray
_loading = threading.Lock()  # Pillow reads a file when it is first used; the same may come twice


def _name(image: Picture) -> str:
    """For messages."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return getattr(image, "filename", "") or "the picture"


def _pixels(image: Picture, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """RGB; ValueError where the picture cannot be read."""
    try:
        if isinstance(image, str | os.PathLike):
            return decode_image(pathlib.Path(image).expanduser().read_bytes(), name)
        if isinstance(image, Image.Image):
            with _loading:
                image.load()
            return oriented_pixels(image, name)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error}).") from None
    image = np.asarray(image)
    if image.dtype != np.uint8 or (image.ndim != 2 and image.shape[2:] != (3,)) or not image.size:
        raise ValueError(
            f"{name}: an array of {image.dtype} {image.shape} is no picture; give uint8 "
            "(height, width, 3) in RGB, or (height, width) in grey."
        )
    return np.stack([image] * 3, axis=-1) if image.ndim == 2 else image
