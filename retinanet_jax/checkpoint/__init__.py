"""Checkpoints in WORKDIR/checkpoints/STEP, written by Orbax; each is complete or absent.

A checkpoint has four items: `variables` (parameters and batch statistics, all that prediction
needs), `training` (the rest of the training state, for resuming), `config` and `categories`. For
imported weights, which were not trained here, `training` is only the step, which is 0. When an
evaluation during training has finished, its AP is added as a fifth item, `metrics`. The command
`analyze` can add score thresholds, in the file `thresholds.json`. The file `digests.json` has the
SHA-256 of every other file.

Later versions of this package can read a checkpoint: its item `config` contains the version of the
config's fields, and `stored_config.config_from_json` reads those of earlier versions.
"""

from retinanet_jax.checkpoint.checks import (
    check_categories,
    check_model,
    check_shapes,
    check_split,
)
from retinanet_jax.checkpoint.integrity import DamagedError
from retinanet_jax.checkpoint.manager import CheckpointManager, write_imported
from retinanet_jax.checkpoint.reading import (
    FOLDER,
    NOT_MEASURED,
    Checkpoint,
    best_config,
    find,
    has_ap,
    load,
    newest_config,
    newest_step,
    read_config,
    saved_ap,
    step_folders,
)
from retinanet_jax.checkpoint.recovery import recover
from retinanet_jax.checkpoint.thresholds import Thresholds, store_thresholds

__all__ = [
    "FOLDER",
    "NOT_MEASURED",
    "Checkpoint",
    "CheckpointManager",
    "DamagedError",
    "Thresholds",
    "best_config",
    "check_categories",
    "check_model",
    "check_shapes",
    "check_split",
    "find",
    "has_ap",
    "load",
    "newest_config",
    "newest_step",
    "read_config",
    "recover",
    "saved_ap",
    "step_folders",
    "store_thresholds",
    "write_imported",
]
