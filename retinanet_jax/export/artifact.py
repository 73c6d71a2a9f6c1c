"""A trained detector as an artifact that runs without this package.

python -m retinanet_jax.export --checkpoint=DIR --format=stablehlo|savedmodel|onnx --output=DIR

OUTPUT holds the artifact and a card that says what it is. Before it appears, the artifact is run on
pictures, and is not kept where it finds anything else than the checkpoint. docs/export.md shows how
each format is loaded.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from retinanet_jax.config import choose
from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.sizes import SIZE_MULTIPLE
from retinanet_jax.data.sources.synthetic import draw_image
from retinanet_jax.data.transforms import decode_image
from retinanet_jax.detector import Detector
from retinanet_jax.export import model_card, savedmodel, stablehlo, verification
from retinanet_jax.export.onnx import model as onnx_model
from retinanet_jax.export.servable import Servable, default_image_size
from retinanet_jax.utils.files import write_folder

FORMATS: dict[str, ModuleType] = {
    "stablehlo": stablehlo,
    "savedmodel": savedmodel,
    "onnx": onnx_model,
}
DRAWN = 4  # pictures to verify on where none are given


def export_detector(
    kind: str, servable: Servable, output: pathlib.Path, images: pathlib.Path | None
) -> None:
    """Writes the verified artifact and its card to `output`, which must not be there.

    Raises ValueError where a package is missing or the artifact differs from the checkpoint.
    """
    artifact = choose("format", kind, FORMATS)
    check_packages(kind, artifact.PACKAGES)
    if output.exists():
        raise FileExistsError(f"--output={output} is there already; give another folder.")
    pictures = [servable.prepared(picture) for picture in example_pictures(servable, images)]

    def write(folder: pathlib.Path) -> None:
        print(f"writing {kind}, then running it on {len(pictures)} pictures", flush=True)
        artifact.write(servable, folder)
        found = verification.verified(servable, artifact.load(folder), pictures)
        if found.detections:
            print(f"verified: {verification.tell(found)}", flush=True)
        else:
            print(
                f"not verified: nothing was found on {found.pictures} pictures; give "
                "--images=FOLDER of what it was trained to find, or a lower --score_threshold"
            )
        model_card.write(folder, kind, servable, artifact.PACKAGES, found)

    write_folder(output, write, lambda: False)


def check_packages(kind: str, packages: Sequence[str]) -> None:
    """Raises ValueError where a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--format={kind} needs {' and '.join(missing)}, not installed here; "
            f"pip install {' '.join(missing)}, or 'retinanet_jax[{kind}]'."
        )


def example_pictures(servable: Servable, folder: pathlib.Path | None) -> list[np.ndarray]:
    """The pictures of a folder, or drawn ones; FileNotFoundError where it has none."""
    if folder is None:
        side = servable.config.data.eval_short_side
        return [np.asarray(draw_image(0, number, side)[0]) for number in range(DRAWN)]
    return [decode_image(file.read_bytes(), str(file)) for file in find_images([str(folder)])]


def servable_of(
    path: str,
    *,
    image_size: Sequence[int] | None,
    batch_size: int | None,
    score_threshold: float | None,
    max_detections: int | None,
) -> Servable:
    """The checkpoint at `path`, for pictures of `image_size`, with other limits where given."""
    trained = Detector.load(
        path, score_threshold=score_threshold, max_detections=max_detections
    ).trained
    size = tuple(image_size or default_image_size(trained.config))
    if len(size) != 2 or min(size) < SIZE_MULTIPLE or any(side % SIZE_MULTIPLE for side in size):
        raise ValueError(f"--image_size={size} must be height,width, multiples of {SIZE_MULTIPLE}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch_size={batch_size} must be at least 1.")
    return Servable(trained, size, batch_size)
