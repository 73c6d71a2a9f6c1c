"""The batch size of config.data.batch_size=auto: the largest that the memory allows."""

import math
from collections.abc import Callable

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
from retinanet_jax.training.step import jit_train_step
from retinanet_jax.utils.memory import available_memory
from retinanet_jax.utils.progress import CLOCK, format_count

GIB = 2**30
# An epoch of few images has at least this many steps, unless a batch has only one image a device.
MIN_STEPS = 16
# The fraction of the free memory that the training step may use. An accelerator's also holds the
# next batches and what fragmentation wastes, a computer's the loader and other programs.
USABLE = {"cpu": 0.6}
USABLE_BY_DEFAULT = 0.9


def choose_batch_size(
    config: ConfigDict,
    source: Source,
    mesh: jax.sharding.Mesh,
    complete: Callable[[int], ConfigDict],
) -> ConfigDict:
    """Return the config with the largest batch of which a training step fits into the memory.

    The steps are compiled for images of the largest shape that the plan may have. That of the batch
    that is chosen is the run's own: its program is found in the folder of compiled programs.

    Args:
        config: A run's config.
        source: The training data.
        mesh: The devices, with axes `data` and `space`.
        complete: Returns the config with a batch size, and all fields that depend on it.

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
    while sizes:
        size, *smaller = sizes
        completed = complete(size)
        with CLOCK.stopped():  # it compiles
            needed, fixed = step_memory(completed, source, mesh)
        print(
            f"a training step of {format_count(size, 'image')} needs {needed / GIB:.2f} GiB of "
            f"{usable / GIB:.2f}",
            flush=True,
        )
        if needed <= usable:
            return completed
        # Memory is about linear in the batch size.
        estimate = size * (usable - fixed) / (needed - fixed)
        sizes = [size for size in smaller if size <= estimate] or smaller[-1:]
    raise ValueError(
        f"a batch of {format_count(size, 'image')} does not fit into the memory: it needs "
        f"{needed / GIB:.2f} GiB, of which {usable / GIB:.2f} can be used; lower the image sizes "
        "(config.data.short_sides, long_side and buckets), or use --config.dtype=bfloat16 or "
        "--config.model.remat."
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


def step_memory(config: ConfigDict, source: Source, mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Return the bytes on each device that a training step of the largest images needs.

    Args:
        config: A run's config.
        source: The training data.
        mesh: The devices, with axes `data` and `space`.

    Returns:
        The bytes of all arrays, and those of the state, which do not depend on the batch.
    """
    optimizer, num_classes = make_optimizer(config), len(source.categories)
    state = jax.eval_shape(lambda: random_train_state(config, num_classes, optimizer))
    step = jit_train_step(build_model(config, num_classes), optimizer, config, mesh)
    arguments = jax.tree.map(shape_of, (state, largest_batch(config, source)))
    measured = compile_measured(step.lower(*arguments))
    # A compiler that rejects a program need not report what it needs.
    needed = measured.needed if measured.program else max(measured.needed, 2 * usable_memory(mesh))
    return needed, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def largest_batch(config: ConfigDict, source: Source) -> Batch:
    """Return a batch of the largest shape that the plan of a config may have, as `black_batch`."""
    plan = input_pipeline.train_plan(config, source)
    (batch,) = batch_shapes(source, plan, [0])
    image = jax.ShapeDtypeStruct((len(batch.images), *plan.largest_bucket, 3), batch.images.dtype)
    return batch._replace(images=image)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape and the type of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
