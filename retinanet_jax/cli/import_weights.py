"""A detector that another library trained on COCO, as a checkpoint of this one.

python -m retinanet_jax.import_weights --source=torchvision_v1|torchvision_v2|detectron2
    --input=FILE_OR_URL_OR_KNOWN_NAME --output=DIR [--outputs=coco|all] [--categories=NAME,NAME]
    [--norm_epsilon=NUMBER] [--config=FILE[:ARG] --config.FIELD=VALUE ...]

Prediction, evaluation and fine-tuning take DIR as they take a working directory that training
wrote. Published files are known by name (download.KNOWN) and fetched where they are not there.
The config is the source's preset, with the backbone that the file holds; --config replaces it,
for weights that were trained with other settings.
"""

import pathlib
import sys

from absl import flags, logging

from retinanet_jax.cli import common
from retinanet_jax.weights.convert import next_commands, run


def main(_: list[str]) -> None:
    """Imports, and says how to go on."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    values = flags.FLAGS
    if not values.source or not values.input or not values.output:
        sys.exit("error: give --source=NAME, --input=FILE_OR_URL_OR_KNOWN_NAME and --output=DIR.")
    with common.errors_in_one_line():
        written = run(
            values.source,
            values.input,
            pathlib.Path(values.output).expanduser().absolute(),
            outputs=values.outputs,
            names=values.categories,
            norm_epsilon=values.norm_epsilon,
            config=values.config,
        )
    model = written.config.model
    print(
        f"{written.folder}: {model.backbone}, {len(written.categories)} classes, norm_epsilon "
        f"{model.norm_epsilon:g}; to go on:",
        *next_commands(values.source, written),
        sep="\n  ",
    )
