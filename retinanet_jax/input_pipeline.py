"""Makes plans of the datasets of a config, and batches of the plans.

Importing this module imports neither flax nor the network.
"""

import contextlib
import pathlib
import shlex
import time
from collections.abc import Generator, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from retinanet_jax.augmentation_presets import augmented_data
from retinanet_jax.config import choose
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.layers import pastable_objects
from retinanet_jax.data.pipeline import batch_shapes, batches
from retinanet_jax.data.plan import EvalPlan, Plan, TrainPlan
from retinanet_jax.data.reading import files_in_progress
from retinanet_jax.data.repeats import repeat_factors
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.packed import write_packed
from retinanet_jax.datasets import (
    LIST_FIELDS,
    PARTS,
    open_evaluation,
    open_sources,
    open_training,
    splits_training_data,
)
from retinanet_jax.stopping import Stopping
from retinanet_jax.utils.progress import ACTIVITY, Phase, format_duration, make_progress
from retinanet_jax.utils.threads import in_background

WAITING = Phase("waiting for data", patience=1.0, details=files_in_progress)


def train_plan(config: ConfigDict, source: Source) -> TrainPlan:
    """Return the plan of training with the batch size, buckets and augmentation of the config."""
    data = augmented_data(config)
    augmentation = Augmentation(
        short_sides=data.short_sides,
        short_side_sampling=data.short_side_sampling,
        long_side=data.long_side,
        scale_jitter=data.scale_jitter,
        crop_size=data.crop_size or None,
        flip=data.flip,
        rot90=data.rot90,
        color_jitter=dict(data.color_jitter),
        affine=dict(data.affine),
        mosaic=data.mosaic,
        mixup=data.mixup,
        copy_paste=data.copy_paste,
        gray=data.gray,
        blur=data.blur,
        jpeg=data.jpeg,
        cutout=data.cutout,
    )
    return TrainPlan(
        source.sizes,
        augmentation,
        seed=config.seed,
        batch_size=data.batch_size,
        buckets=data.buckets,
        resize=data.resize,
        repeat_factors=repeat_factors(
            source.objects.classes[source.object_mask],
            source.objects.image_index[source.object_mask],
            num_images=len(source),
            threshold=data.repeat_threshold,
        )
        if data.repeat_threshold
        else None,
        objects=pastable_objects(source) if data.copy_paste else None,
        mixed_steps=round((1 - data.unmixed_fraction) * config.total_steps),
    )


def eval_plan(config: ConfigDict, sizes: Int[np.ndarray, "N 2"], *, batch_size: int) -> EvalPlan:
    """Return the plan of an evaluation of images with these heights and widths in pixels.

    Raises:
        ValueError: If data.eval_shapes is unknown, or an image fits in no bucket.
    """
    data = config.data
    buckets = {"buckets": data.buckets, "own": ()}
    return EvalPlan(
        sizes,
        batch_size=batch_size,
        buckets=choose("data.eval_shapes", data.eval_shapes, buckets),
        resize=data.resize,
        short_side=data.eval_short_side,
        long_side=data.long_side,
    )


def host_batches(
    config: ConfigDict,
    source: Source,
    plan: Plan,
    steps: range,
    stopping: Stopping | None = None,
) -> Generator[Batch, None, None]:
    """Yield this host's part of the batches of these steps, which must be consecutive.

    Args:
        config: The run's config.
        source: The images and annotations.
        plan: The plan of the batches.
        steps: The steps.
        stopping: Ends the wait for a batch, also that for a file that cannot be read, after a
            signal; an error of the data stops the run.
    """
    stopping = stopping or Stopping()
    loaded = batches(
        source,
        plan,
        start_step=steps.start,
        num_steps=len(steps),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prefetch=config.data.prefetch,
        num_threads=config.data.threads or None,
        loader=config.data.loader,
        min_visible=augmented_data(config).min_visible,
    )
    with contextlib.closing(in_background(loaded, stopping.check)) as awaited:
        for _ in steps:
            with ACTIVITY.during(WAITING):
                try:
                    batch = next(awaited)
                except (OSError, ValueError) as error:
                    stopping.fail(error)
            yield batch


def void_batches(source: Source, plan: Plan, steps: range) -> Iterator[Batch]:
    """Yield this host's part of batches of the shapes of these steps, without their data.

    The images are black and the boxes not finite, so that a training step changes nothing.

    Args:
        source: The images and annotations.
        plan: The plan of the batches.
        steps: The steps.
    """
    if not steps:  # the annotations of all images need not be read
        return
    of_bucket = {batch.images.shape[1:3]: batch for batch in batch_shapes(source, plan, steps)}
    for step in steps:
        batch = of_bucket[plan.batch(step).bucket]
        part = jax.tree.map(lambda x: x[: len(x) // jax.process_count()], batch)
        yield part._replace(boxes=np.full_like(part.boxes, np.nan))


def pack_datasets(config: ConfigDict, parts: Sequence[str], output: pathlib.Path) -> list[str]:
    """Write the datasets of a config, decoded and resized, and return the flags to use them.

    Args:
        config: The config of the runs that will read the packed data.
        parts: "train", "eval" or both.
        output: The folder to write; it will contain a folder for each part.

    Raises:
        ValueError: If the training data is split but only one part packed, or as in `open_source`.
    """
    check_fields(config)
    data = config.data
    if splits_training_data(config) and set(parts) != set(PARTS):
        raise ValueError(
            f"data.validation_fraction={data.validation_fraction} splits the training data; give "
            "--part=both to pack both parts, or a dataset in data.eval."
        )
    short_sides = {"train": max(data.short_sides), "eval": data.eval_short_side}
    flags = ["--config.data.loader=numpy"]
    for part, source in _open_parts(config, parts, output):
        folder = output / part
        start = time.monotonic()
        packed = write_packed(
            source,
            folder,
            short_side=short_sides[part],
            long_side=data.long_side,
            resize=data.resize,
            num_threads=data.threads or None,
            progress=make_progress(part, len(source)),
        )
        print(
            f"{folder}: {len(packed)} images of {source.name} at short side {short_sides[part]}, "
            f"in {format_duration(time.monotonic() - start)}",
            flush=True,
        )
        flags += _packed_flags(config, part, folder)
    return flags


def _open_parts(
    config: ConfigDict, parts: Sequence[str], output: pathlib.Path
) -> list[tuple[str, Source]]:
    """Return the name and the dataset of each part; synthetic data is generated in `output`."""
    if set(parts) == set(PARTS):
        return list(zip(PARTS, open_sources(config, output), strict=True))
    open_part = {"train": open_training, "eval": open_evaluation}
    return [(part, open_part[part](config, output)) for part in parts]


def _packed_flags(config: ConfigDict, part: str, folder: pathlib.Path) -> list[str]:
    """Return the flags that replace the config's dataset of `part` by the packed one."""
    fields = {"source": "packed", "images": str(folder)}
    emptied = {name: "" for name in LIST_FIELDS if config.data[part][name] and name not in fields}
    return [
        shlex.quote(f"--config.data.{part}.{name}={value}")
        for name, value in (fields | emptied).items()
    ]
