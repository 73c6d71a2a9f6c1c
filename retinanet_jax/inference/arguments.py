"""The images that a command line names: files, folders, patterns, URLs, and standard input."""

import io
import os
import pathlib
import re
import sys
import urllib.parse
from collections.abc import Callable, Sequence

from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.image_formats import open_image
from retinanet_jax.inference.names import safe_name
from retinanet_jax.inference.predictions import InputImage, input_files
from retinanet_jax.inference.video import is_video
from retinanet_jax.utils.download import MAX_BYTES, is_url, public_url

STDIN = "-"  # the argument that means standard input
STDIN_NAME = "stdin"  # in the results
NOWHERE = pathlib.Path(os.devnull)  # the folder of images that are in no file


def input_arguments(
    arguments: Sequence[str], *, report: Callable[[str], None] = lambda line: None
) -> list[InputImage]:
    """Return the images that a command line names: those in files, of URLs, and of standard input.

    A URL is downloaded when its image is read.

    Args:
        arguments: Paths as `find_images` accepts them, URLs, and STDIN.
        report: As in `find_images`.

    Raises:
        FileNotFoundError: As in `find_images`.
        ValueError: If standard input contains no image.
    """
    urls = list(dict.fromkeys(filter(is_url, arguments)))
    paths = [argument for argument in arguments if argument != STDIN and not is_url(argument)]
    images = input_files(_find_files(paths, report)) if paths else []
    first = len(images) + 1
    images += [
        InputImage(url, image_id, public_url(url), url_path(url))
        for image_id, url in enumerate(urls, first)
    ]
    if STDIN in arguments:
        images.append(stdin_image(len(images) + 1))
    return images


def _find_files(paths: Sequence[str], report: Callable[[str], None]) -> list[pathlib.Path]:
    """Return the image files at paths; the error names a video if there are only videos."""
    try:
        return find_images(paths, report=report)
    except FileNotFoundError as error:
        folders = filter(pathlib.Path.is_dir, map(pathlib.Path, paths))
        files = (file for folder in folders for file in sorted(folder.iterdir()))
        video = next((file for file in files if is_video(str(file))), None)
        if video is None:
            raise
        pattern = video.with_name(f"*{video.suffix}")
        message = f'{error} Folders are searched for images; videos are "{pattern}".'
        raise FileNotFoundError(message) from None


def url_path(url: str) -> pathlib.Path:
    """Return a path after which the drawing of a URL's image is named, and at which no file is.

    Args:
        url: The URL.
    """
    file = pathlib.PurePosixPath(urllib.parse.unquote(re.sub(r"[?#].*", "", url)))
    return NOWHERE / f"{safe_name(file.stem)}.jpg"


def stdin_image(image_id: int) -> InputImage:
    """Return the image of the file that standard input contains.

    Args:
        image_id: Its id in the results.

    Raises:
        ValueError: If it is a terminal, has more than MAX_BYTES, or is no image.
    """
    name = f"{STDIN} (standard input)"
    if sys.stdin.isatty():
        raise ValueError(f"{name}: is a terminal; pipe an image file into this command.")
    file = io.BytesIO(sys.stdin.buffer.read(MAX_BYTES + 1))
    if len(file.getbuffer()) > MAX_BYTES:
        raise ValueError(
            f"{name}: has more than {MAX_BYTES / 1e6:.0f} MB; save it, and give the file's path."
        )
    open_image(file, name)  # an error before the detector is loaded
    file.seek(0)
    file.name = name
    return InputImage(file, image_id, STDIN_NAME, NOWHERE / f"{STDIN_NAME}.jpg")
