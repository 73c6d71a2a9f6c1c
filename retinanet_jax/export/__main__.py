"""A trained detector as an artifact that runs without this package.

python -m retinanet_jax.export --checkpoint=DIR --format=stablehlo|savedmodel|onnx --output=DIR

OUTPUT holds the artifact and a card that says what it is. Before it appears, the artifact is run on
pictures, and is not kept where it finds anything else than the checkpoint. docs/export.md shows how
each format is loaded.
"""

import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType

import jax
import numpy as np
from absl import app, flags, logging

from retinanet_jax import command
from retinanet_jax.data.picture_files import find_pictures
from retinanet_jax.data.plan import STRIDE
from retinanet_jax.data.sources.folders import write_folder
from retinanet_jax.data.sources.shapes import draw_picture
from retinanet_jax.data.transforms import decode_image
from retinanet_jax.detector import choose
from retinanet_jax.export import card, onnx, savedmodel, stablehlo, verification
from retinanet_jax.export.servable import Servable, default_image_size
from retinanet_jax.inference import Detector

FORMATS: dict[str, ModuleType] = {
    "stablehlo": stablehlo,
    "savedmodel": savedmodel,
    "onnx": onnx,
}
DRAWN = 4  # pictures to verify on where none are given


def run(kind: str, servable: Servable, output: pathlib.Path, images: pathlib.Path | None) -> None:
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
        card.write(folder, kind, servable, artifact.PACKAGES, found)

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
        return [np.asarray(draw_picture(0, number, side)[0]) for number in range(DRAWN)]
    return [decode_image(file.read_bytes(), str(file)) for file in find_pictures([str(folder)])]


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
    if len(size) != 2 or min(size) < STRIDE or any(side % STRIDE for side in size):
        raise ValueError(f"--image_size={size} must be height,width, multiples of {STRIDE}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch_size={batch_size} must be at least 1.")
    return Servable(trained, size, batch_size)


def main(argv: list[str]) -> None:
    """Exports, and says what was written."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    values = flags.FLAGS
    if not values.checkpoint or not values.format or not values.output:
        sys.exit("error: give --checkpoint=DIR, --format=NAME and --output=DIR.")
    jax.config.update("jax_platforms", "cpu")  # a GPU may multiply in fewer bits
    command.use_compilation_cache()
    output = pathlib.Path(values.output).expanduser().absolute()
    with command.told_in_one_line():
        servable = servable_of(
            values.checkpoint,
            image_size=[int(side) for side in values.image_size] or None,
            # ONNX has shapes in its nodes.
            batch_size=values.batch_size or (1 if values.format == "onnx" else None),
            score_threshold=values.score_threshold,
            max_detections=values.max_detections,
        )
        images = pathlib.Path(values.images).expanduser() if values.images else None
        run(values.format, servable, output, images)
    height, width = servable.image_size
    batch = servable.batch_size or "any number of"
    pictures = "picture" if batch == 1 else "pictures"
    print(f"{output}: {values.format} for {batch} {pictures} of {height} x {width}")


if __name__ == "__main__":
    # Here, and not at import: the flags of several commands have the same names.
    flags.DEFINE_string("checkpoint", None, "A working directory, or one checkpoint in it.")
    flags.DEFINE_enum("format", None, list(FORMATS), "What is to run it.")
    flags.DEFINE_string("output", None, "The folder to write; it must not be there.")
    flags.DEFINE_list(
        "image_size", [], "height,width; unless given, the square that holds every picture."
    )
    flags.DEFINE_integer("batch_size", None, "Pictures at a time; unless given any, in onnx 1.")
    flags.DEFINE_float("score_threshold", None, "In place of the config's.")
    flags.DEFINE_integer("max_detections", None, "In place of the config's.")
    flags.DEFINE_string(
        "images", None, "Folder of pictures to verify on; unless given, drawn ones."
    )
    app.run(main, flags_parser=command.parse_flags)
