"""Export of a trained detector to a verified artifact with its model card."""

import importlib.util
import pathlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from retinanet_jax.config import choose
from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.sources.synthetic import draw_image
from retinanet_jax.data.transforms import decode_image
from retinanet_jax.export import model_card, savedmodel, stablehlo, verification
from retinanet_jax.export.onnx import model as onnx_model
from retinanet_jax.export.servable import Servable
from retinanet_jax.export.verification import DetectionDifference
from retinanet_jax.utils.files import write_folder

# Each module has `PACKAGES`, which it imports, `write(servable, folder)` and `load(folder)`.
FORMATS: dict[str, ModuleType] = {
    "stablehlo": stablehlo,
    "savedmodel": savedmodel,
    "onnx": onnx_model,
}
NUM_SYNTHETIC = 4  # images to verify on if the user gives none


def export_detector(
    servable: Servable,
    format_name: str,
    output: pathlib.Path,
    images: pathlib.Path | None = None,
) -> DetectionDifference:
    """Write an artifact and its model card to a new folder.

    Before the folder appears, the artifact is loaded and its detections on a few images are
    compared with the checkpoint's. If they differ, nothing is left.

    Args:
        servable: The detector to export, as `load_servable` returns it.
        format_name: One of FORMATS.
        output: The folder to make.
        images: A folder of images to verify on; None for a few synthetic ones.

    Returns:
        The differences that the verification measured. If no detections were expected on the
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
            f"The format {format_name} requires the package {' and '.join(missing)}, which is not "
            f"installed; run `pip install {' '.join(missing)}` or "
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
        return [np.asarray(draw_image(0, index, side)[0]) for index in range(NUM_SYNTHETIC)]
    return [decode_image(file.read_bytes(), str(file)) for file in find_images([str(folder)])]
