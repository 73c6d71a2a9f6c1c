"""The image formats of Pillow: opening a file of any of them, and recognizing files as images.

Pillow's `Image.open` refuses sound images of more than `Image.MAX_IMAGE_PIXELS` pixels, or warns
about them. That limit belongs to the whole program, so `open_image` calls Pillow's formats itself
and checks the memory that is available instead. The limit is lifted only for the moments in which a
format checks it, too.
"""

import contextlib
import functools
import io
import pathlib
import struct
import threading
from collections.abc import Container, Iterator

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from retinanet_jax.utils.memory import available_memory

ImageBytes = io.BytesIO | io.BufferedReader
# Formats that contain no pixels, or for which Pillow reads only a header or calls other programs.
WITHOUT_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_BRANDS = (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")  # from byte 4 of a HEIF file
# From byte 4 of the videos of cameras and phones.
VIDEO_BRANDS = (b"ftypiso", b"ftypmp4", b"ftypqt", b"ftypM4V", b"ftypavc1", b"ftyp3g", b"ftypMSNV")
VIDEO = "a video; give the path of its file to `retinanet-jax predict`"
# What files that should be images begin with.
OTHER_CONTENT = {
    b"\x1aE\xdf\xa3": VIDEO,  # Matroska and WebM
    b"version https://git-lf": "a pointer of Git LFS; run git lfs pull",
    b"<!DOCTYPE": "a web page; download the image again",
    b"<html": "a web page; download the image again",
    b"<?xml": "XML or SVG; save it as PNG",
    b"<svg": "SVG; save it as PNG",
    b"%PDF": "PDF; save its pages as PNG",
}
HEIF_ADVICE = "HEIF images require another package: pip install pillow-heif, or save them as JPEG"
UNKNOWN_PIXELS = "unknown pixel mode"  # Pillow's error for a sound TIFF that it cannot read
PREFIX_SIZE = 16  # bytes by which the formats recognize a file
# Memory for each pixel: while JPEG is decoded, it is 10 bytes, of WebP and JPEG 2000 18 and 19.
BYTES_PER_PIXEL = 20
UNCHECKED_PIXELS = 50_000_000  # that any machine can read
# No sound image has more pixels for each byte of its file; it would be gray all over.
MAX_PIXELS_PER_BYTE = 10_000
_limit_lock = threading.Lock()


def open_image(
    file: ImageBytes, name: str, *, bytes_per_pixel: int | None = None
) -> ImageFile.ImageFile:
    """Return an image of which Pillow has read only the header.

    Args:
        file: The file, which stays open until the pixels are loaded.
        name: The file's name for error messages.
        bytes_per_pixel: As in `check_memory`.

    Raises:
        ValueError: If it is not an image, its header is corrupt, or it is too large for the memory.
    """
    try:
        try:
            image = _identify(file, excluded=())
        except Image.DecompressionBombError:
            with _without_pixel_limit():
                image = _identify(file, excluded=())
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise _not_an_image(file, name) or unreadable(name, error) from None
    check_memory(image.size, file, name, bytes_per_pixel)
    return image


def load_pixels(image: Image.Image, name: str) -> None:
    """Load the pixels of an image.

    Args:
        image: The image.
        name: The image's name for error messages.

    Raises:
        ValueError: If it is corrupt or truncated.
    """
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and is_large(image.size):
            with _without_pixel_limit():
                image.load_prepare()
        image.load()
    except Exception as error:  # as in `open_image`
        raise unreadable(name, error) from None


def _not_an_image(file: ImageBytes, name: str) -> ValueError | None:
    """Return the error for a file that is empty, or often taken for an image; None for others."""
    file.seek(0)
    start = file.read(64)
    if not start:
        return ValueError(f"{name}: the file is empty; replace or remove it.")
    if start[4:].startswith(HEIF_BRANDS):
        return ValueError(f"{name}: {HEIF_ADVICE}.")
    text = start.lstrip().lower()
    problems = [
        problem for content, problem in OTHER_CONTENT.items() if text.startswith(content.lower())
    ]
    if start[4:].startswith(VIDEO_BRANDS):
        problems.append(VIDEO)
    return ValueError(f"{name}: is no image but {problems[0]}, or remove it.") if problems else None


@contextlib.contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit of pixels."""
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def unreadable(name: str, error: Exception) -> ValueError:
    """Return the error for an image that Pillow cannot read.

    Args:
        name: The image's name.
        error: What Pillow raised.
    """
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        reason = f" ({error})" if str(error) else ""
        return ValueError(f"{name}: the image is too large to be read{reason}; cut it into tiles.")
    if str(error) == UNKNOWN_PIXELS:
        return ValueError(
            f"{name}: Pillow cannot read pixels of this type; save the image as PNG with 8 or 16 "
            "bits, or as TIFF in gray with 32."
        )
    if isinstance(error, UnidentifiedImageError) and name.lower().endswith(HEIF_SUFFIXES):
        return ValueError(f"{name}: {HEIF_ADVICE}.")
    return ValueError(
        f"{name}: the image is corrupt or truncated ({pillow_reason(error)}); replace or remove it."
    )


def pillow_reason(error: Exception) -> str:
    """Return why Pillow could not read an image, without the object that Pillow's text contains."""
    unknown = isinstance(error, UnidentifiedImageError)
    return "unknown image format" if unknown else str(error)


def check_memory(
    size: tuple[int, int], file: ImageBytes, name: str, bytes_per_pixel: int | None = None
) -> None:
    """Check that an image can be decoded in the memory that is available.

    Args:
        size: The image's width and height.
        file: Its file.
        name: The file's name for error messages.
        bytes_per_pixel: The memory for each pixel. None for that of decoding and copying it.

    Raises:
        ValueError: If it is too large.
    """
    if not is_large(size):
        return
    num_pixels = size[0] * size[1]
    num_bytes = file.seek(0, io.SEEK_END)
    claim = f"{name}: the image is too large: {num_pixels / 1e6:,.0f} megapixels"
    if num_pixels > MAX_PIXELS_PER_BYTE * num_bytes:
        raise ValueError(
            f"{claim} ({size[0]} x {size[1]}) are claimed by a file of {num_bytes:,} bytes, which "
            "cannot contain them; replace or remove it."
        )
    needed, available = (bytes_per_pixel or BYTES_PER_PIXEL) * num_pixels, available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{claim} ({size[0]} x {size[1]}) require {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB are available; cut it into tiles."
        )


def is_large(size: tuple[int, int]) -> bool:
    """Return whether an image of this width and height could exceed the memory of a machine."""
    return size[0] * size[1] > UNCHECKED_PIXELS


def has_image_suffix(file_name: str) -> bool:
    """Return whether a file's suffix is that of an image format.

    Args:
        file_name: The name, with or without its folder.
    """
    return pathlib.PurePath(file_name).suffix.lower() in _image_suffixes()


def is_image(path: pathlib.Path) -> bool:
    """Return whether the content of a file is an image, whatever its suffix.

    Files of cameras' raw formats have the structure of TIFF, and contain a small preview. So TIFF
    is recognized only in files without a suffix.

    Args:
        path: The file.
    """
    excluded = WITHOUT_PIXELS | ({"TIFF"} if path.suffix else set())
    try:
        with path.open("rb") as file:
            _identify(file, excluded, by_prefix=True)
    except Exception:  # as in `open_image`
        return False
    return True


def _identify(
    file: ImageBytes, excluded: Container[str], *, by_prefix: bool = False
) -> ImageFile.ImageFile:
    """Return the image of the first format that recognizes a file.

    Args:
        file: The file.
        excluded: Formats that are not tried.
        by_prefix: Only try formats that recognize a file by its first bytes.

    Raises:
        UnidentifiedImageError: If there is none.
        Exception: What a format raised that recognized the first bytes.
    """
    reasons: list[Exception] = []
    file.seek(0)
    prefix = file.read(PREFIX_SIZE)
    for load_formats in (Image.preinit, _load_all_formats):
        load_formats()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            recognized = accepts(prefix) if accepts else not by_prefix
            # A text is the reason why the format is not supported.
            if name in excluded or not recognized or isinstance(recognized, str):
                continue
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                reasons += [error] if accepts else []
    raise reasons[0] if reasons else UnidentifiedImageError()


@functools.cache
def _load_all_formats() -> None:
    """Register all formats of Pillow, and HEIF if its package is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()


@functools.cache
def _image_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes that belong to an image format that Pillow can read."""
    _load_all_formats()
    return frozenset(
        suffix
        for suffix, name in Image.EXTENSION.items()
        if name in Image.OPEN and Image.MIME.get(name, "").startswith("image/")
    )
