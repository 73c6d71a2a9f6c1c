"""The headers of image files: their size and EXIF orientation, read without decoding the pixels."""

import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from retinanet_jax.data.decoding import ORIENTATIONS, valid_orientation
from retinanet_jax.data.image_formats import ImageBytes, open_image
from retinanet_jax.utils.threads import map_ahead

NUM_READERS = 16  # threads
# A PNG with an EXIF orientation contains at least one of these chunk names and keywords.
PNG_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
PNG_SIGNATURE_SIZE = 8  # bytes
PNG_END_SIZE = 65_536  # bytes, in which chunks after the pixels are searched


class ImageHeader(NamedTuple):
    """The size of an image in pixels, and its EXIF orientation."""

    stored_size: tuple[int, int]  # height and width without the orientation
    orientation: int  # 1 to 8

    def size(self, exif: str) -> tuple[int, int]:
        """Return the height and width of the decoded image.

        Args:
            exif: `Decoding.exif`.
        """
        height, width = self.stored_size
        exchanges_sides = ORIENTATIONS[self.orientation][0] and exif != "ignored"
        return (width, height) if exchanges_sides else (height, width)


def read_headers(
    folder: pathlib.Path, file_names: Sequence[str]
) -> Iterator[ImageHeader | ValueError]:
    """Yield the headers of images, or the errors about those that cannot be read.

    5,000 images on a local disk take a few seconds; threads help on disks with a high latency.

    Args:
        folder: The folder that the file names are relative to.
        file_names: The image files.
    """
    yield from map_ahead(
        lambda file_name: _header_or_error(folder / file_name),
        file_names,
        num_ahead=2 * NUM_READERS,
        num_threads=NUM_READERS,
    )


def _header_or_error(path: pathlib.Path) -> ImageHeader | ValueError:
    """Return the header of an image, or the error about it."""
    try:
        with path.open("rb") as file:
            return _read_header(file, str(path))
    except OSError as error:
        return ValueError(f"{path}: the image's size cannot be read ({error.strerror}).")
    except ValueError as error:
        return error


def _read_header(file: ImageBytes, name: str) -> ImageHeader:
    """Return the header of an open image file."""
    image = open_image(file, name)
    size = image.height, image.width
    # To find an EXIF tag, which few PNGs have, Pillow would decode the whole image.
    if image.format == "PNG" and not _png_may_have_exif(file):
        return ImageHeader(size, 1)
    return ImageHeader(size, valid_orientation(image, name, None))


def _png_may_have_exif(file: ImageBytes) -> bool:
    """Return whether a PNG has a mark of EXIF before its pixels, or near the end of the file."""
    file.seek(PNG_SIGNATURE_SIZE)
    while (head := file.read(8)) and head[4:] != b"IDAT":  # length and name of a chunk
        length = int.from_bytes(head[:4])
        content = file.read(min(length, PNG_END_SIZE))
        if any(mark in head + content for mark in PNG_EXIF_MARKS):
            return True
        file.seek(length - len(content) + 4, io.SEEK_CUR)  # to the end of the chunk's checksum
    end = file.seek(0, io.SEEK_END)
    file.seek(max(end - PNG_END_SIZE, 0))
    content = file.read()
    return any(mark in content for mark in PNG_EXIF_MARKS)
