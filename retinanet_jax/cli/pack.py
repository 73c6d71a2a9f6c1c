"""A config's data, decoded and resized once: training from it needs no decoder and no TensorFlow.

python -m retinanet_jax.pack --config=FILE[:ARG] --output=DIR [--part=train|eval|both]
    [--config.FIELD=VALUE ...]

Writes OUTPUT/train and OUTPUT/eval at the largest short side that the config trains with, and the
one it evaluates at, and prints the flags that make a run read them.
"""

import pathlib
import sys

from absl import flags, logging

from retinanet_jax.cli import common
from retinanet_jax.input_pipeline import PARTS
from retinanet_jax.pack_logic import run


def main(_: list[str]) -> None:
    """Packs, and says how to go on."""
    logging.set_verbosity(logging.WARNING)
    values = flags.FLAGS
    if not values.config or not values.output:
        sys.exit("error: give --config=FILE and --output=DIR.")
    output = pathlib.Path(values.output).expanduser().absolute()
    with common.errors_in_one_line():
        parts = PARTS if values.part == "both" else (values.part,)
        new = run(values.config, parts, output)
    print("to train from it, add to the run's flags:", *new, sep="\n  ")
