"""The inputs that users pass as images: files, folders, URLs, Pillow images and arrays."""

import contextlib
import glob
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retinanet_jax.data.decoding import (
    JPEG_START,
    Decoding,
    decode_image,
    filled_bits_of_file,
    oriented_pixels,
)
from retinanet_jax.data.image_formats import (
    HEIF_ADVICE,
    HEIF_SUFFIXES,
    has_image_suffix,
    is_image,
    pillow_reason,
)
from retinanet_jax.data.value_range import (
    FIELD,
    FilledBits,
    UnfilledImages,
    ValueRange,
    find_unfilled,
    parse_value_range,
    to_8_bits,
)
from retinanet_jax.utils.download import DownloadError, download_image, is_url, public_url
from retinanet_jax.utils.output_folder import RECORD, OutputFolder
from retinanet_jax.utils.paths import SYSTEM_NAMES
from retinanet_jax.utils.progress import one_line
from retinanet_jax.utils.remote import local_copy
from retinanet_jax.utils.threads import map_ahead

# Text files, of which there may be one for each image, are not opened to look for images.
TEXT_SUFFIXES = (".csv", ".json", ".md", ".txt", ".xml", ".yaml", ".yml")
NUM_NAMES = 3  # in a message


@runtime_checkable
class BinaryFile(Protocol):
    """What can be read as an open file: of a disk, in memory, or uploaded to a server."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to this number of bytes, or all that are left."""
        ...


ImageLike = str | os.PathLike[str] | BinaryFile | Image.Image | np.ndarray
# Pillow reads a file when its pixels are first used, and two threads may use the same image.
_pillow_lock = threading.Lock()


def find_images(
    paths: Iterable[str], *, report: Callable[[str], None] = lambda line: None
) -> list[pathlib.Path]:
    """Return the image files at `paths`, without duplicates.

    Args:
        paths: Image files, folders, which are searched recursively, and patterns such as `*.jpg`
            and `**/*.png`. A folder's images are files of all formats that Pillow reads, whatever
            their suffix; hidden files and folders are not searched, and what an earlier run wrote
            to an output folder in it is left out.
        report: Called with a line about the files of folders that are not returned, if there are
            any.

    Raises:
        FileNotFoundError: If a path neither exists nor matches a file, or there is no image.
    """
    files: dict[pathlib.Path, bool] = {}  # whether each file is returned
    for path_or_pattern in paths:
        path = local_file(path_or_pattern)
        matches = [path] if path.exists() else sorted(_matching(path))
        if not matches:
            raise FileNotFoundError(f"{path_or_pattern}: no such image or folder.")
        for match in matches:
            if match.is_dir():
                inside = _files_in(match).items()
                files.update((file, is_image) for file, is_image in inside if not files.get(file))
            else:
                files[match] = True
    line = _line_on_others([file for file, is_returned in files.items() if not is_returned])
    if not any(files.values()):
        raise FileNotFoundError(
            f"no image in {', '.join(paths) or 'an empty list'}; give image files, or folders that "
            f"contain some{f' ({line})' if line else ''}."
        )
    if line:
        report(line)
    return [file for file, is_returned in files.items() if is_returned]


def image_name(image: object) -> str:
    """Return the name of an image for messages: its URL, or the path of its file, if it has one.

    Args:
        image: A path, a URL, or an object that may know its file, such as an open file, a Pillow
            image or a memory map.
    """
    attribute = getattr(image, "filename", getattr(image, "name", ""))
    path = image if isinstance(image, str | os.PathLike) else attribute
    is_path = isinstance(path, str | bytes | os.PathLike)  # a memory map of an open file has none
    return (public_url(os.fsdecode(path)) if is_path else "") or "the image"


def is_single_image(images: object) -> bool:
    """Return whether a value is one image, or one open file, and not several images.

    Args:
        images: Any value. An array of four axes contains several images, and so may one of a single
            axis, which contains paths.
    """
    single_types = str | bytes | bytearray | os.PathLike | Image.Image | BinaryFile
    return isinstance(images, single_types) or getattr(images, "ndim", None) in (0, 2, 3)


def read_image(image: object, value_range: str = "type") -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an image.

    Args:
        image: A file, as its path, its URL or an open file; a Pillow image; or an array of the type
            uint8 or uint16: (height, width, 3) in RGB or (height, width) in gray. What numpy can
            convert counts as an array. Floating-point numbers require a value range.
        value_range: The range of the values of images of more than 8 bits, as
            `value_range.parse_value_range` reads it.

    Raises:
        ValueError: If the image cannot be read, is something else, or has no pixels, or its values
            are outside the range. The message begins with the image's name.
    """
    name = image_name(image)
    decoding = Decoding(parse_value_range(value_range))
    if isinstance(image, str | os.PathLike | BinaryFile):
        return decode_image(read_content(image), name, decoding=decoding)
    if isinstance(image, Image.Image):
        return _pillow_pixels(image, name, decoding)
    return _array_pixels(image, name, decoding.value_range)


def read_content(file: str | os.PathLike[str] | BinaryFile) -> bytes:
    """Return the content of an image file.

    Args:
        file: Its path, its URL, or an open file.

    Raises:
        ValueError: If it cannot be read. The message begins with the file's name.
    """
    name = image_name(file)
    try:
        if isinstance(file, BinaryFile):
            content = file.read()
        elif isinstance(file, str) and is_url(file):
            content = download_image(file)
        else:
            content = local_file(file).read_bytes()
    except DownloadError as error:  # which has the name
        raise ValueError(str(error)) from None
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        raise ValueError(f"{name}: cannot be read ({_reason(error)}).") from None
    if isinstance(content, str):
        raise ValueError(f"{name}: is open as text; open it with the mode 'rb'.")
    return content


def find_unfilled_files(files: Iterable[pathlib.Path], value_range: str) -> UnfilledImages | None:
    """Find the image files that are nearly of one brightness once scaled.

    Args:
        files: The files; those that cannot be read are passed over.
        value_range: As in `read_image`.
    """
    parsed = parse_value_range(value_range)

    def bits(file: pathlib.Path) -> FilledBits | None:
        with contextlib.suppress(OSError), file.open("rb") as opened:
            start = opened.read(len(JPEG_START))
            if start != JPEG_START:  # all JPEG files have 8 bits, and reading them here takes time
                return filled_bits_of_file(start + opened.read(), str(file), parsed)
        return None

    files = list(files)
    pairs = zip(map(str, files), map_ahead(bits, files), strict=True)
    return find_unfilled({name: filled for name, filled in pairs if filled})


def _pillow_pixels(image: Image.Image, name: str, decoding: Decoding) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of a Pillow image."""
    try:
        with _pillow_lock:
            image.load()
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise ValueError(f"{name}: cannot be read ({_reason(error)}).") from None
    if not (image.width and image.height):
        raise ValueError(f"{name}: has no pixels ({image.width} x {image.height}).")
    return oriented_pixels(image, name, decoding=decoding)


def _array_pixels(image: object, name: str, value_range: ValueRange) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an array."""
    try:
        array = np.asarray(image)
    except Exception as error:  # of another library, for example if its array is on a GPU
        raise ValueError(
            f"{name}: numpy cannot convert this {type(image).__name__} to an array "
            f"({one_line(error)}); convert it first."
        ) from None
    is_array = hasattr(image, "__array__")
    accepted = ("u1", "u2") if value_range == "type" else ("u1", "u2", "f2", "f4", "f8")
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype.str[1:] not in accepted or not has_shape or not array.size:
        type_name = f"array of {array.dtype} {array.shape}" if is_array else type(image).__name__
        raise ValueError(
            f"{name}: this {type_name} is not an image; give uint8 or uint16 (height, width, 3) in "
            "RGB, or (height, width) in gray, a path, or a Pillow image; floating-point numbers "
            f"only if {FIELD} is LOW,HIGH or image."
        )
    pixels = array if array.dtype == np.uint8 else to_8_bits(array, value_range, name)
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path."""
    return getattr(error, "strerror", None) or one_line(pillow_reason(error))


def local_file(path: str | os.PathLike) -> pathlib.Path:
    """Return a path with ~ as the user's folder; ~NAME is unchanged if there is no such user.

    Of what is in remote storage, this is the path of a local copy.
    """
    return local_copy(os.path.expanduser(os.fsdecode(path)))


def _matching(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    return map(pathlib.Path, glob.iglob(str(pattern), recursive=True))


def _files_in(folder: pathlib.Path) -> dict[pathlib.Path, bool]:
    """Return whether each file in a folder and its subfolders is an image to return.

    Files that an operating system has added are left out.
    """
    files, outputs = [], []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name not in SYSTEM_NAMES]
        added = {name for name in names if name.startswith("._") or name in SYSTEM_NAMES}
        files += [pathlib.Path(parent, name) for name in names if name not in added]
        outputs += [OutputFolder(pathlib.Path(parent))] * (RECORD in names)

    def is_written(file: pathlib.Path) -> bool:
        return any(
            file.is_relative_to(output.path)
            and output.wrote(file.relative_to(output.path).as_posix())
            for output in outputs
        )

    files = sorted(filter(pathlib.Path.is_file, files))
    return {file: _is_visible_image(file) and not is_written(file) for file in files}


def _is_visible_image(file: pathlib.Path) -> bool:
    if file.name.startswith(".") or file.suffix.lower() in TEXT_SUFFIXES:
        return False
    return has_image_suffix(file.name) or is_image(file)


def _line_on_others(files: list[pathlib.Path]) -> str:
    """Return a line about the files of folders that are not returned; empty if there are none."""
    if not files:
        return ""
    names = ", ".join(one_line(file.name) for file in files[:NUM_NAMES])
    more = ", ..." if len(files) > NUM_NAMES else ""
    count = "1 file that is" if len(files) == 1 else f"{len(files)} files that are"
    reasons = "hidden, written by an earlier run, or no image"
    hint = f"; {HEIF_ADVICE}" if any(file.suffix.lower() in HEIF_SUFFIXES for file in files) else ""
    return f"passed over {count} {reasons}: {names}{more}{hint}"
