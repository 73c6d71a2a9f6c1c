"""A trained detector as an artifact that runs without this package.

python -m retinanet_jax.export --checkpoint=DIR --format=stablehlo|savedmodel|onnx --output=DIR

OUTPUT holds the artifact and a card that says what it is. Before it appears, the artifact is run on
pictures, and is not kept where it finds anything else than the checkpoint. docs/export.md shows how
each format is loaded.
"""

import pathlib
import sys

import jax
from absl import flags, logging

from retinanet_jax import compilation
from retinanet_jax.cli import common
from retinanet_jax.export.artifact import run, servable_of


def main(argv: list[str]) -> None:
    """Exports, and says what was written."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    values = flags.FLAGS
    if not values.checkpoint or not values.format or not values.output:
        sys.exit("error: give --checkpoint=DIR, --format=NAME and --output=DIR.")
    jax.config.update("jax_platforms", "cpu")  # a GPU may multiply in fewer bits
    compilation.use_compilation_cache()
    output = pathlib.Path(values.output).expanduser().absolute()
    with common.errors_in_one_line():
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
