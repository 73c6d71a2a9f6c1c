"""Export of a trained detector to verified artifacts with their model cards."""

import importlib.util
import inspect
import pathlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from retinanet_jax import checkpoint
from retinanet_jax.config import choose
from retinanet_jax.data.image_files import ImageLike, find_images, read_image
from retinanet_jax.data.sizes import SIZE_MULTIPLE, round_up
from retinanet_jax.data.sources.synthetic import generate_image
from retinanet_jax.evaluation.limits import with_limits
from retinanet_jax.export import (
    client,
    model_card,
    quantization,
    raw_verification,
    savedmodel,
    stablehlo,
    tflite,
    verification,
)
from retinanet_jax.export.onnx import model as onnx_model
from retinanet_jax.export.raw import RawServable
from retinanet_jax.export.raw_verification import TOLERANCES, RawVerification
from retinanet_jax.export.servable import Servable, default_image_size
from retinanet_jax.export.verification import Verification
from retinanet_jax.utils.files import check_absent, write_folder
from retinanet_jax.utils.packages import not_installed
from retinanet_jax.utils.progress import format_count, make_progress
from retinanet_jax.utils.threads import map_ahead

# Each module has `write(servable, folder)`, `load(folder)`, `PACKAGES` that they import, and
# `check_supported(servable)`, which raises ValueError for what the format cannot express.
FORMATS: dict[str, ModuleType] = {
    "stablehlo": stablehlo,
    "savedmodel": savedmodel,
    "onnx": onnx_model,
    "tflite": tflite,
}
CLIENT = "client.py"  # the file next to the artifact that makes its inputs
# The synthetic images to verify on if the user passes none: height and width, each as a fraction.
SYNTHETIC_SHAPES = ((1, 1), (1, 0.75), (0.75, 1), (0.5, 1))
MAX_REPRESENTATIVE = 100  # images by which int8 chooses its ranges; more change little
FEW_REPRESENTATIVE = 20  # fewer need not contain all that the detector will see


def load_servables(
    path: str,
    *,
    image_sizes: Sequence[Sequence[int]] | None,
    batch_size: int | None,
    raw: bool = False,
    dtype: str | None = None,
    **limits: float | None,
) -> list[Servable]:
    """Return the checkpoint at `path` as a function of images of each size.

    Args:
        path: A working directory, or the folder of one step's checkpoint.
        image_sizes: Heights and widths of the input in pixels; if empty, `default_image_size`. None
            for one function of images of any size.
        batch_size: Number of images per call; None for any number.
        raw: Whether to return the boxes and scores of all anchors instead of detections, as
            `RawServable`; its clients apply the limits.
        dtype: The dtype of the computation, in place of `config.dtype`; None for that.
        **limits: As in `with_limits`: the limits of the artifact's detections, or None for those in
            the checkpoint's config. The score thresholds that the checkpoint stores are used unless
            one is given.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If a size or a limit is out of range.
    """
    check_sizes(image_sizes, batch_size)
    trained = checkpoint.load(pathlib.Path(path))
    if limits.get("score_threshold") is not None:
        trained = trained._replace(thresholds=None)
    config = with_limits(trained.config, **limits)
    config.dtype = dtype or config.dtype
    sizes = list(dict.fromkeys(map(tuple, image_sizes or ()))) or [default_image_size(config)]
    servable = (RawServable if raw else Servable)(trained, config, None, batch_size)
    if image_sizes is None:
        return [servable]
    return [servable._replace(image_size=(size[0], size[1])) for size in sizes]


def export_detector(
    format_name: str,
    servables: Sequence[Servable],
    output: pathlib.Path,
    images: pathlib.Path | None = None,
    precision: str = "float32",
) -> dict[pathlib.Path, Verification | RawVerification]:
    """Write an artifact and its model card to a new folder.

    The artifact is loaded, and its detections on a few images are compared with those of `predict`,
    or its raw outputs with those of the checkpoint. The folder is only created if they are equal up
    to rounding.

    Args:
        format_name: One of FORMATS.
        servables: The detector to export, as `load_servables` returns it. If there are several, the
            folder contains a folder HEIGHTxWIDTH for each, with an artifact and a model card.
        output: The folder to create.
        images: A folder of images to verify on; None for a few synthetic ones.
        precision: One of TOLERANCES; other than float32 only for tflite. For int8,
            `images` must also represent what the detector will see.

    Returns:
        The folder of each artifact, and the differences that its verification measured. If the
        detector has no detections on the images, nothing has been verified.

    Raises:
        FileExistsError: If `output` exists.
        FileNotFoundError: If `images` contains no image.
        ValueError: If the format is unknown, a package is not installed, the format does not
            support the config, an image cannot be read, or the artifact's detections differ from
            those of `predict`.
    """
    check_request(format_name, output, images, precision)
    for servable in servables:
        FORMATS[format_name].check_supported(servable)
    inputs = verification_images(servables[0], images)
    names = ["x".join(map(str, servable.image_size or ())) for servable in servables]
    if len(servables) == 1:
        names = [""]  # the folder itself
    verifications: dict[pathlib.Path, Verification | RawVerification] = {}

    def write(folder: pathlib.Path) -> None:
        for servable, name in zip(servables, names, strict=True):
            (folder / name).mkdir(exist_ok=True)
            verifications[output / name] = _write(
                format_name, servable, folder / name, inputs, precision
            )

    write_folder(output, write, lambda: False)
    return verifications


def _write(
    format_name: str,
    servable: Servable,
    folder: pathlib.Path,
    images: Sequence[ImageLike],
    precision: str,
) -> Verification | RawVerification:
    """Write an artifact to an existing folder, verify it on images, and write its model card."""
    artifact_format = FORMATS[format_name]
    print(f"writing {format_name}", flush=True)
    artifact_format.write(servable, folder)
    if precision != "float32":
        _quantize(servable, folder, images, precision)
    (folder / CLIENT).write_text(inspect.getsource(client))
    print("loading it and the checkpoint, and comparing their outputs", flush=True)
    artifact = artifact_format.load(folder)
    if isinstance(servable, RawServable):
        outcome = raw_verification.verify(servable, artifact, images, TOLERANCES[precision])
    else:
        outcome = verification.verify(servable, artifact, images)
    packages = packages_of(format_name, precision)
    model_card.write(folder, format_name, servable, packages, outcome, precision)
    return outcome


def _quantize(
    servable: Servable, folder: pathlib.Path, images: Sequence[ImageLike], precision: str
) -> None:
    """Replace the LiteRT artifact in `folder` by one in another precision."""
    step = -(-len(images) // MAX_REPRESENTATIVE)
    chosen = images[::step]
    represented = ""
    if precision == "int8":
        represented = f", by {len(chosen)} of {format_count(len(images), 'image')}"
        if len(images) < FEW_REPRESENTATIVE:
            represented += f"; about {MAX_REPRESENTATIVE} images are better"
    print(f"quantizing to {precision}{represented}", flush=True)
    examples = verification.read_examples(servable, chosen)
    quantization.quantize(folder / tflite.FILE, precision, examples)


def check_request(
    format_name: str,
    output: pathlib.Path,
    images: pathlib.Path | None = None,
    precision: str = "float32",
) -> None:
    """Check what can be checked without the checkpoint, which may have to be downloaded first.

    The arguments and the errors are those of `export_detector`.
    """
    choose("format", format_name, FORMATS)
    check_precision(format_name, precision, images)
    check_packages(format_name, packages_of(format_name, precision))
    check_absent(output, "folder")


def check_sizes(image_sizes: Sequence[Sequence[int]] | None, batch_size: int | None) -> None:
    """Check the sizes of an artifact's input; the arguments are as in `load_servables`.

    Raises:
        ValueError: If one is invalid.
    """
    for size in image_sizes or ():
        if len(size) != 2 or any(side < SIZE_MULTIPLE or side % SIZE_MULTIPLE for side in size):
            valid = tuple(max(round_up(side), SIZE_MULTIPLE) for side in (*size, *size)[:2])
            raise ValueError(
                f"image_size={tuple(size)} must be (height, width), each a multiple of "
                f"{SIZE_MULTIPLE}; try {valid}."
            )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; try 1.")


def check_precision(format_name: str, precision: str, images: pathlib.Path | None) -> None:
    """Check that a format has a precision, and that there are images to choose int8's ranges.

    Raises:
        ValueError: If not.
    """
    choose("precision", precision, TOLERANCES)
    if precision != "float32" and format_name != "tflite":
        raise ValueError(
            f"precision={precision!r} is only available for the format tflite, not for "
            f"{format_name}; leave it out."
        )
    if precision == "int8" and images is None:
        raise ValueError(
            "precision='int8' requires --images=FOLDER: about 100 images like those that the "
            "detector will see, by which the range of each feature map is chosen."
        )


def packages_of(format_name: str, precision: str) -> tuple[str, ...]:
    """Return the packages that the export to a format in a precision imports."""
    quantizer = () if precision == "float32" else (quantization.PACKAGE,)
    return *FORMATS[format_name].PACKAGES, *quantizer


def check_packages(format_name: str, packages: Sequence[str]) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ValueError: If one is missing; the message has the command that installs it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise not_installed(
            f"the format {format_name}",
            f"{', '.join(missing)}, not installed here",
            f"retinanet-jax[{format_name}]",
        )


def verification_images(servable: Servable, folder: pathlib.Path | None) -> Sequence[ImageLike]:
    """Return the images of a folder, or synthetic ones if it is None.

    The files are decoded, so that one that cannot be read is reported before the export, but only
    their paths are returned: the pixels of many images would fill the memory.

    Raises:
        FileNotFoundError: If the folder contains no image.
        ValueError: If an image cannot be read.
    """
    if folder is None:
        side = servable.config.data.eval_short_side
        images = [np.asarray(generate_image(0, k, side)[0]) for k in range(len(SYNTHETIC_SHAPES))]
        return [
            image[: int(height * side), : int(width * side)]
            for image, (height, width) in zip(images, SYNTHETIC_SHAPES, strict=True)
        ]
    files = find_images([str(folder)])
    print_progress = make_progress("reading", len(files))
    value_range = servable.config.data.value_range
    shapes = map_ahead(lambda file: read_image(file, value_range).shape, files)
    for num_read, _ in enumerate(shapes, 1):
        print_progress(num_read)
    return files
