"""The doctor: what is wrong with a data set or with how a config reads it, before it is trained on.

python -m retinanet_jax.inspect --config=FILE[:ARG] --output=DIR [--max_images=N]
    [--config.FIELD=VALUE ...]

Prints its findings, worst first, with what to do about each, then the figures behind them. Writes
OUTPUT/report.txt and report.json (the same, and every figure), batches.png (augmented pictures as
the network sees them, with their anchors) and anchors.png (histograms; needs matplotlib).
Every picture is read once; anchors are matched on at most N pictures, drawn by config.seed.
"""

import pathlib
import sys

from absl import flags, logging

from retinanet_jax.cli import common
from retinanet_jax.data_report.report import run


def main(_: list[str]) -> None:
    """A report that was written is success, whatever it found."""
    logging.set_verbosity(logging.ERROR)  # what sources warn of is among the findings
    values = flags.FLAGS
    if not values.config or not values.output:
        sys.exit("error: give --config=FILE and --output=DIR.")
    output = pathlib.Path(values.output).expanduser().absolute()
    with common.errors_in_one_line():
        run(values.config, output, values.max_images)
