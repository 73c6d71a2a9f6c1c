"""A trained detector as a state dict that another library loads.

python -m retinanet_jax.export_weights --target=torchvision_v1|torchvision_v2|detectron2
    --checkpoint=DIR --output=FILE.pth|.npz|.safetensors

A state dict holds no more than arrays: the target builds its own network and anchors, so what it
would build otherwise is refused.
"""

import pathlib
import sys

from absl import flags, logging

from retinanet_jax.cli import common
from retinanet_jax.weights.convert import run


def main(_: list[str]) -> None:
    """Exports, and says how the target loads it."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    values = flags.FLAGS
    if not values.target or not values.checkpoint or not values.output:
        sys.exit("error: give --target=NAME, --checkpoint=DIR and --output=FILE.")
    output = pathlib.Path(values.output).expanduser().absolute()
    with common.errors_in_one_line():
        told = run(values.target, values.checkpoint, output)
    print(f"{output}: for {values.target}, built as", *told, sep="\n  ")
