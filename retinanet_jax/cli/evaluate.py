"""The command `retinanet-jax evaluate`."""

from typing import Any

from retinanet_jax.cli.common import Command
from retinanet_jax.cli.train import define_run_flags, start


def run(values: Any, _: list[str]) -> None:
    """Evaluate the checkpoint in the workdir."""
    start(values, "evaluate")


COMMAND = Command(
    usage="retinanet-jax evaluate --workdir=DIR --config=FILE[:ARGUMENT] [--config.FIELD=VALUE...]",
    description=(
        "Prints the COCO average precision of the best checkpoint in the workdir (the newest if "
        "none was evaluated) on the config's evaluation dataset, and writes it with the detections "
        "and a sheet of images to WORKDIR/eval."
    ),
    define_flags=define_run_flags,
    run=run,
    memory_flag="--config.data.eval_batch_size",
)
