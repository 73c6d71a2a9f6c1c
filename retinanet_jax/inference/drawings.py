"""Images with their detections drawn, as JPEG files."""

import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.names import cut, unique_names
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.threads import map_ahead

JPEG_QUALITY = 92


def write_drawings(
    image_paths: Sequence[pathlib.Path],
    outcomes: Iterable[Detections | ValueError],
    folder: OutputFolder,
    threshold: float,
) -> Iterator[Detections | ValueError]:
    """Yield the outcomes, and write drawings in threads while the device computes the next images.

    Args:
        image_paths: The image files, after which the drawings are named.
        outcomes: The detections of each image, or its error.
        folder: The folder to write to.
        threshold: The lowest score of a detection that is drawn.
    """

    def write(name: str, outcome: Detections | ValueError) -> Detections | ValueError:
        if isinstance(outcome, Detections):
            folder.write(name, to_jpeg(outcome.draw(threshold)))
        return outcome

    named = zip(drawing_names(image_paths, folder), outcomes, strict=True)
    return map_ahead(lambda pair: write(*pair), named)


def drawing_names(
    image_paths: Sequence[pathlib.Path], folder: OutputFolder, suffix: str = ".jpg"
) -> list[str]:
    """Return a different name of a file in `folder` for each image or video, named after it.

    Names of the images themselves, and of files that no earlier run wrote, are not returned. Names
    that are too long for a number are cut.

    Args:
        image_paths: The files of the images or videos; they need not exist.
        folder: The folder.
        suffix: The end of all names.
    """
    inputs = set(map(_file_id, image_paths)) - {None}

    def is_free(stem: str) -> bool:
        name = f"{stem}{suffix}"
        return _file_id(folder.path / name) not in inputs and folder.may_write(name)

    stems = unique_names([cut(path.stem) for path in image_paths], is_free)
    return [f"{stem}{suffix}" for stem in stems]


def _file_id(path: pathlib.Path) -> tuple[int, int] | None:
    """Return what identifies a file under all of its names and links; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def to_jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """Return an image as a JPEG file.

    Args:
        image: The image.
        quality: From 0 to 95, as in Pillow.
    """
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return jpeg.getvalue()
