"""Export of a trained detector to a verified artifact with its model card."""

import importlib.util
import pathlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from retinanet_jax.config import choose
from retinanet_jax.data.decoding import decode_image
from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.sizes import SIZE_MULTIPLE
from retinanet_jax.data.sources.synthetic import generate_image
from retinanet_jax.detector import Detector
from retinanet_jax.export import model_card, savedmodel, stablehlo, verification
from retinanet_jax.export.onnx import model as onnx_model
from retinanet_jax.export.servable import Servable, default_image_size
from retinanet_jax.export.verification import DetectionDifference
from retinanet_jax.utils.files import write_folder

# Each module has `write(servable, folder)`, `load(folder)`, and `PACKAGES` that they import.
FORMATS: dict[str, ModuleType] = {
    "stablehlo": stablehlo,
    "savedmodel": savedmodel,
    "onnx": onnx_model,
}
NUM_SYNTHETIC = 4  # number of images to verify on if the user passes none


def load_servable(
    path: str,
    *,
    image_size: Sequence[int] | None,
    batch_size: int | None,
    score_threshold: float | None,
    max_detections: int | None,
) -> Servable:
    """Return the checkpoint at `path` as a function of images of one size.

    Args:
        path: A working directory, or the folder of one step's checkpoint.
        image_size: Height and width of the input in pixels; None for `default_image_size`.
        batch_size: Number of images per call; None for any number.
        score_threshold: Only detections with a higher score are returned; None for the threshold
            in the checkpoint's config.
        max_detections: Largest number of detections per image; None for the limit in the
            checkpoint's config.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If a size or a limit is out of range.
    """
    checkpoint = Detector.load(
        path, score_threshold=score_threshold, max_detections=max_detections
    ).checkpoint
    size = tuple(image_size or default_image_size(checkpoint.config))
    if len(size) != 2 or min(size) < SIZE_MULTIPLE or any(side % SIZE_MULTIPLE for side in size):
        raise ValueError(
            f"image_size={size} must be (height, width), each a multiple of {SIZE_MULTIPLE}; try "
            f"{default_image_size(checkpoint.config)}."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; try 1.")
    return Servable(checkpoint, size, batch_size)


def export_detector(
    format_name: str,
    servable: Servable,
    output: pathlib.Path,
    images: pathlib.Path | None = None,
) -> DetectionDifference:
    """Write an artifact and its model card to a new folder.

    The artifact is loaded, and its detections on a few images are compared with those of the
    checkpoint. The folder is only created if they are equal up to rounding.

    Args:
        format_name: One of FORMATS.
        servable: The detector to export, as `load_servable` returns it.
        output: The folder to create.
        images: A folder of images to verify on; None for a few synthetic ones.

    Returns:
        The differences that the verification measured. If the checkpoint has no detections on the
        images (`num_detections` is 0), nothing has been verified.

    Raises:
        FileExistsError: If `output` exists.
        FileNotFoundError: If `images` contains no image.
        ValueError: If the format is unknown, a package is not installed, the format does not
            support the config, or the artifact's detections differ from the checkpoint's.
    """
    artifact_format = choose("format", format_name, FORMATS)
    check_packages(format_name, artifact_format.PACKAGES)
    if output.exists():
        raise FileExistsError(f"The output folder {output} exists already; choose another.")
    inputs = [servable.prepare(image) for image in verification_images(servable, images)]
    differences = []

    def write(folder: pathlib.Path) -> None:
        artifact_format.write(servable, folder)
        difference = verification.verify(servable, artifact_format.load(folder), inputs)
        model_card.write(folder, format_name, servable, artifact_format.PACKAGES, difference)
        differences.append(difference)

    write_folder(output, write, lambda: False)
    return differences[0]


def check_packages(format_name: str, packages: Sequence[str]) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ValueError: If one is missing; the message has the command that installs it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"The format {format_name} requires packages that are not installed: "
            f"{', '.join(missing)}; run `pip install {' '.join(missing)}` or "
            f"`pip install 'retinanet_jax[{format_name}]'`."
        )


def verification_images(servable: Servable, folder: pathlib.Path | None) -> list[np.ndarray]:
    """Return the images of a folder, or synthetic ones if it is None.

    Raises:
        FileNotFoundError: If the folder contains no image.
        ValueError: If an image cannot be read.
    """
    if folder is None:
        side = servable.config.data.eval_short_side
        return [np.asarray(generate_image(0, index, side)[0]) for index in range(NUM_SYNTHETIC)]
    return [decode_image(file.read_bytes(), str(file)) for file in find_images([str(folder)])]
