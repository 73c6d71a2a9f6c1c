"""The command `retinanet-jax evaluate`, which computes the average precision of a checkpoint."""

from typing import Any

from retinanet_jax.cli.common import Command
from retinanet_jax.cli.train import define_run_flags, run_mode


def run(values: Any, _: list[str]) -> int:
    """Evaluate the best checkpoint in the workdir."""
    return run_mode(values, "evaluate")


COMMAND = Command(
    usage=(
        "retinanet-jax evaluate --workdir=DIR [--data=FOLDER_OR_FILE] "
        "[--weights=NAME_OR_DIR_OR_FILE] [--config=FILE[:ARGUMENT]] [--config.FIELD=VALUE ...]"
    ),
    description=(
        "Computes the COCO average precision of the best checkpoint in the workdir (the newest if "
        "none was evaluated) on the config's evaluation dataset. Writes the metrics, the "
        "detections and some images with their detections to WORKDIR/eval; those of other data "
        "than the run's, or with other settings, to a folder in it."
    ),
    define_flags=define_run_flags,
    run=run,
    memory_flag="--config.data.eval_batch_size",
)
