"""The batch size of config.data.batch_size=auto: the largest that the memory allows."""

import math
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.compilation import compile_measured
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.sources.base import Source
from retinanet_jax.modeling import build_model
from retinanet_jax.training.initialization import random_train_state
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, jit_train_step
from retinanet_jax.utils.memory import available_memory

GIB = 2**30
# An epoch of few images has at least this many steps, unless a batch has only one image a device.
MIN_STEPS = 16
# The fraction of the free memory that the training step may use. An accelerator's also holds the
# next batches and what fragmentation wastes, a computer's the loader and other programs.
USABLE = {"cpu": 0.6}
USABLE_BY_DEFAULT = 0.9


class BatchChoice(NamedTuple):
    """A batch size, and why it was chosen."""

    batch_size: int
    needed: int  # bytes of the training step on each device
    usable: int  # bytes that it may use


def choose_batch_size(config: ConfigDict, source: Source, mesh: jax.sharding.Mesh) -> BatchChoice:
    """Return the largest batch size of which the training step fits into the memory of the devices.

    The steps are compiled for images of the largest shape that the plan may have. The step that is
    chosen is compiled only here if a folder for compiled programs is set.

    Args:
        config: A run's config.
        source: The training data.
        mesh: The devices, with axes `data` and `space`.

    Raises:
        ValueError: If not even the smallest batch fits, the devices do not report their memory, or
            there are other hosts, which may have other devices.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "config.data.batch_size=auto is for a run of one host; give a number, which "
            "`retinanet-jax plan` finds."
        )
    sizes, usable = batch_sizes(config, len(source), mesh), usable_memory(mesh)
    state = jax.eval_shape(
        lambda: random_train_state(config, len(source.categories), make_optimizer(config))
    )
    fixed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    while sizes:
        size, *smaller = sizes
        needed = step_memory(config, source, mesh, state, size)
        print(
            f"a training step of {size} images needs {needed / GIB:.2f} of {usable / GIB:.2f} GiB",
            flush=True,
        )
        if needed <= usable:
            return BatchChoice(size, needed, usable)
        # Memory is about linear in the batch size.
        estimate = size * (usable - fixed) / (needed - fixed)
        sizes = [size for size in smaller if size <= estimate] or smaller[-1:]
    raise ValueError(
        f"a batch of {size} does not fit into the memory: it needs {needed / GIB:.2f} GiB, of "
        f"which {usable / GIB:.2f} can be used; lower the image sizes (config.data.short_sides, "
        "long_side and buckets), or use --config.dtype=bfloat16 or --config.model.remat."
    )


def batch_sizes(config: ConfigDict, num_images: int, mesh: jax.sharding.Mesh) -> list[int]:
    """Return the batch sizes to choose from, largest first: powers of two times the smallest.

    The largest is that for which the config's learning rate is meant, but at most a MIN_STEPS-th of
    the images.

    Args:
        config: A run's config.
        num_images: The number of training images.
        mesh: The devices, with axes `data` and `space`.
    """
    smallest = math.lcm(
        mesh.shape["data"] * config.optimizer.accumulate, config.loss.ema_images or 1
    )
    largest = min(config.optimizer.reference_batch_size, num_images // MIN_STEPS)
    doublings = int(math.log2(max(1, largest // smallest)))
    return [smallest * 2**power for power in range(doublings, -1, -1)]


def usable_memory(mesh: jax.sharding.Mesh) -> int:
    """Return the number of bytes that a training step may use on each device.

    Raises:
        ValueError: If it is unknown.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":  # all of them use the same memory
        free = available_memory()
        free = free and free // len(mesh.local_devices)
    else:
        stats = device.memory_stats() or {}
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    if not free:
        raise ValueError(
            f"{device.device_kind} does not report its memory, which config.data.batch_size=auto "
            "requires; give a number."
        )
    return int(USABLE.get(device.platform, USABLE_BY_DEFAULT) * free)


def step_memory(
    config: ConfigDict, source: Source, mesh: jax.sharding.Mesh, state: TrainState, batch_size: int
) -> int:
    """Return the number of bytes on each device that a training step needs for its largest images.

    Args:
        config: A run's config.
        source: The training data.
        mesh: The devices, with axes `data` and `space`.
        state: The shapes of the state of training.
        batch_size: The number of images over all devices.
    """
    config = config.copy_and_resolve_references().unlock()
    config.data.batch_size = batch_size
    model = build_model(config, len(source.categories))
    step = jit_train_step(model, make_optimizer(config), config, mesh)
    batch = largest_batch(config, source)
    lowered = step.lower(*jax.tree.map(shape_of, (state, batch)))
    measured = compile_measured(lowered)
    # A compiler that rejects a program need not report what it needs.
    return measured.needed if measured.program else max(measured.needed, 2 * usable_memory(mesh))


def largest_batch(config: ConfigDict, source: Source) -> Batch:
    """Return a batch of the largest shape that the plan of a config may have, as `black_batch`."""
    plan = input_pipeline.train_plan(config, source)
    (batch,) = batch_shapes(source, plan, [0])
    image = jax.ShapeDtypeStruct((len(batch.images), *plan.largest_bucket, 3), batch.images.dtype)
    return batch._replace(images=image)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape and the type of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
