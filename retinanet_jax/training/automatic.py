"""The fields of a config that a run sets itself, from its training data and its devices.

They are the anchors (choose_anchors), the batch size (data.batch_size=0), the number of steps
(epochs), and the steps between checkpoints and evaluations (0). The checkpoints store what was set.
A run that resumes has the anchors and the batch size of its checkpoint.
"""

import functools

import jax
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.config import flatten
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.automatic_anchors import choose_anchors
from retinanet_jax.training.batch_choice import choose_batch_size
from retinanet_jax.training.transfer import ANCHOR_FIELDS

INTERVALS = ("checkpoint_every", "evaluate_every")
NUM_EVALUATIONS = 10  # of a run, about


def is_automatic(config: ConfigDict) -> bool:
    """Return whether a run sets fields of its config itself."""
    intervals = [config[name] for name in INTERVALS]
    return bool(config.choose_anchors or config.epochs or 0 in (config.data.batch_size, *intervals))


def set_automatic_fields(
    config: ConfigDict, saved: ConfigDict | None, source: Source, mesh: jax.sharding.Mesh
) -> ConfigDict:
    """Return the config with all fields set that a run sets itself; print how they were chosen.

    Args:
        config: The run's config.
        saved: The config of the checkpoint that the run resumes from; None for a new run.
        source: The training data.
        mesh: The devices.

    Raises:
        ValueError: As in `choose_batch_size`.
    """
    if not is_automatic(config):
        return config
    config = config.copy_and_resolve_references().unlock()
    if saved:
        adopt_choices(config, saved)
    elif config.choose_anchors:
        set_anchors(config, source)
    complete = functools.partial(with_batch_size, config, source)
    if config.data.batch_size:
        return complete(config.data.batch_size)
    return choose_batch_size(config, source, mesh, complete)


def adopt_choices(config: ConfigDict, saved: ConfigDict) -> None:
    """Set the anchors and the batch size that were chosen for the run of a checkpoint.

    Args:
        config: The config; it is changed.
        saved: The config of the checkpoint.
    """
    if config.choose_anchors:
        fields = dict(flatten(saved))
        config.update_from_flattened_dict({name: fields[name] for name in ANCHOR_FIELDS})
    config.data.batch_size = config.data.batch_size or saved.data.batch_size


def set_anchors(config: ConfigDict, source: Source) -> None:
    """Set anchors for the training data, and print them.

    Args:
        config: The config; it is changed.
        source: The training data.
    """
    # The outputs of a detector that the run starts from belong to a number of anchors.
    anchors = choose_anchors(config, source, same_number=config.init.source == "checkpoint")
    print(f"anchors: {anchors.description(config.matching.foreground_iou)}", flush=True)
    if anchors.chosen:
        config.update_from_flattened_dict(anchors.chosen.fields)


def with_batch_size(config: ConfigDict, source: Source, batch_size: int) -> ConfigDict:
    """Return the config with a batch size, and with the numbers of steps that follow from it.

    Args:
        config: The run's config.
        source: The training data.
        batch_size: The number of images of a batch.
    """
    config = config.copy_and_resolve_references()
    config.data.batch_size = batch_size
    steps_per_epoch = input_pipeline.train_plan(config, source).steps_per_epoch
    if config.epochs:
        config.total_steps = config.epochs * steps_per_epoch
    epochs = max(1, round(config.total_steps / steps_per_epoch / NUM_EVALUATIONS))
    for name in INTERVALS:
        config[name] = config[name] or epochs * steps_per_epoch
    return config.lock()
