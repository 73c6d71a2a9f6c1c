"""From the config's data section to the sources and plans of a run."""

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan, Plan, TrainPlan
from retinanet_jax.data.sources import Source, shapes, split_by_hash
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.detector import choose


def open_source(config: ConfigDict, part: str, workdir: pathlib.Path) -> Source:
    """The data that config.data.train or config.data.eval names; `part` is "train" or "eval"."""
    section = config.data[part]

    def drawn() -> Source:
        if section.annotations:
            raise ValueError(
                f"data.{part}.annotations={section.annotations} would not be read: "
                f"data.{part}.source is 'shapes', which draws its own; set it to 'coco'."
            )
        folder = pathlib.Path(section.images or workdir / "data" / f"shapes-{section.seed}")
        print(f"shapes: {section.count} pictures in {folder}, drawn now if they are not there")
        written = shapes.write_shapes(
            folder, seed=section.seed, images=section.count, image_size=section.image_size
        )
        return CocoSource(written / shapes.ANNOTATIONS, written / shapes.PICTURES)

    def coco() -> Source:
        if not section.annotations or not section.images:
            raise ValueError(
                f"no data: give --config.data.{part}.annotations=FILE.json and "
                f"--config.data.{part}.images=FOLDER (COCO format)."
            )
        return CocoSource(section.annotations, section.images)

    return choose(f"data.{part}.source", section.source, {"coco": coco, "shapes": drawn})()


def holds_out(config: ConfigDict) -> bool:
    """Whether a share of the training data is kept for evaluation, for want of other data."""
    return bool(config.data.validation_share) and not config.data.eval.annotations


def open_split(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """The training data without the share that is held out, and that share."""
    return split_by_hash(open_source(config, "train", workdir), config.data.validation_share)


def open_training(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """What is trained on."""
    if holds_out(config):
        return open_split(config, workdir)[0]
    return open_source(config, "train", workdir)


def open_evaluation(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """What is evaluated on."""
    if holds_out(config):
        return open_split(config, workdir)[1]
    return open_source(config, "eval", workdir)


def open_sources(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """(training, evaluation) data; raises ValueError where their categories differ."""
    if holds_out(config):
        return open_split(config, workdir)
    train, evaluation = open_training(config, workdir), open_evaluation(config, workdir)
    if train.categories != evaluation.categories:
        raise ValueError(
            f"{train.name} has the categories {[tuple(c) for c in train.categories]}, "
            f"{evaluation.name} has {[tuple(c) for c in evaluation.categories]}; "
            "both files must list the same ids and names."
        )
    return train, evaluation


def train_plan(config: ConfigDict, source: Source) -> TrainPlan:
    """Which pictures each training step sees, and how."""
    data = config.data
    return TrainPlan(
        source.sizes,
        seed=config.seed,
        batch_size=data.batch_size,
        buckets=data.buckets,
        short_sides=data.short_sides,
        long_side=data.long_side,
        flip=data.flip,
        scale_jitter=data.scale_jitter,
    )


def eval_plan(config: ConfigDict, sizes: Int[np.ndarray, "N 2"], *, batch_size: int) -> EvalPlan:
    """In which size and batch pictures of `sizes` (height, width) are evaluated."""
    data = config.data
    return EvalPlan(
        sizes,
        batch_size=batch_size,
        buckets=data.buckets,
        short_side=data.eval_short_side,
        long_side=data.long_side,
    )


def host_batches(config: ConfigDict, source: Source, plan: Plan, steps: range) -> Iterator[Batch]:
    """This host's rows of the plan's batches, from steps.start to before steps.stop."""
    return batches(
        source,
        plan,
        start_step=steps.start,
        num_steps=len(steps),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prefetch=config.data.prefetch,
        num_threads=config.data.threads or None,
    )
