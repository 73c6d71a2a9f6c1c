"""The device mesh, and how each array is split over it.

The mesh has two axes: `data` splits a batch into images, `space` splits the height of the images,
for images that are too large for one device. The compiler exchanges the borders that convolutions
need.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retinanet_jax.data.batch import Batch

MIN_SPLIT_SIZE = 2**12  # numbers; smaller arrays are a ten-thousandth of a ResNet-50
TPU_SUBLANES = 8  # a TPU computes on 8 rows of 128 numbers


def make_mesh(space: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with axes (data, space) of all devices.

    Args:
        space: Number of devices that split an image's height.
        devices: The `jax.Device`s; None for all devices of all hosts.

    Raises:
        ValueError: If `space` does not divide the number of devices of this host. A host loads
            whole images, so the devices that split an image must all belong to it.
    """
    devices = jax.devices() if devices is None else devices
    num_local = sum(device.process_index == jax.process_index() for device in devices)
    if space < 1 or num_local % space:
        raise ValueError(
            f"space={space} must divide the number of devices of a host ({num_local}); try space=1."
        )
    shape = (len(devices) // space, space)
    # With explicit axes, the default, jax rejects gathers that spatial sharding needs.
    return jax.make_mesh(shape, ("data", "space"), (AxisType.Auto,) * 2, devices=devices)


def check_batch_size(field: str, batch_size: int, mesh: Mesh, num_parts: int = 1) -> None:
    """Check that the devices can split a batch, or each part of it, evenly.

    Args:
        field: Name of the config field, for the error message.
        batch_size: Images per step, over all hosts.
        mesh: The devices.
        num_parts: The number of parts of a batch that are computed one after another
            (optimizer.accumulate).

    Raises:
        ValueError: If `batch_size` is not a multiple of the devices along `data`, times the parts.
    """
    num_devices = mesh.shape["data"]
    times = f"optimizer.accumulate={num_parts} times " if num_parts > 1 else ""
    unit = num_devices * num_parts
    if batch_size % unit:
        raise ValueError(
            f"{field}={batch_size} must be a multiple of {times}the {num_devices} devices that "
            f"split the batch; try {-(-batch_size // unit) * unit}."
        )


def images_warning(field: str, batch_size: int, mesh: Mesh, num_parts: int, platform: str) -> str:
    """Return the warning that a TPU is slow with this number of images a chip, or "".

    Compiled for a TPU v5e, an image of 800 x 1344 pixels takes 2.1 times the estimated cycles with
    4 images a chip that it takes with 8.

    Args:
        field: As in `check_batch_size`.
        batch_size: As in `check_batch_size`.
        mesh: The devices.
        num_parts: As in `check_batch_size`.
        platform: jax's name of the platform that the program is for: "tpu", "cuda", ...
    """
    unit = mesh.shape["data"] * num_parts
    per_chip = batch_size // unit
    if platform != "tpu" or per_chip % TPU_SUBLANES == 0:
        return ""
    size = -(-per_chip // TPU_SUBLANES) * TPU_SUBLANES * unit
    return (
        f"{per_chip} images a chip is no multiple of {TPU_SUBLANES}: a TPU then rearranges most "
        f"arrays; try --config.{field}={size}, or fewer chips."
    )


def check_heights(buckets: Iterable[tuple[int, int]], max_level: int, mesh: Mesh) -> None:
    """Check that the devices along `space` can split the images of every bucket.

    The image itself must be split evenly. Each device needs at least one row of the coarsest level:
    otherwise the compiler's gradients are wrong (by 1e-3 in float64 with jax 0.10 on a CPU, while
    the loss is right). The devices may have different numbers of rows of a level.

    Args:
        buckets: Heights and widths of the network's input, in pixels.
        max_level: The coarsest pyramid level.
        mesh: The devices.

    Raises:
        ValueError: If the height of a bucket cannot be split in this way.
    """
    space = mesh.shape["space"]
    for height, _ in buckets:
        if height % space:
            raise ValueError(
                f"space={space} devices cannot split images of height {height} evenly; try "
                f"space=1, or bucket heights that are multiples of {space}."
            )
        rows = -(-height // 2**max_level)
        if (space - 1) * -(-rows // space) >= rows:
            raise ValueError(
                f"space={space} devices cannot split images of height {height}: level "
                f"{max_level} has {rows} rows, which leaves a device without any; try space=1, or "
                f"buckets with a height of at least {space * 2**max_level}."
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding by which every device has a copy of the whole array."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh) -> Batch:
    """Return the sharding of each array of a batch: over `data`, and for the images also `space`.

    Returns:
        A `Batch` with a sharding in each field.
    """
    over_data = NamedSharding(mesh, P("data"))
    shardings = Batch(*[over_data] * len(Batch._fields))
    return shardings._replace(images=NamedSharding(mesh, P("data", "space")))


def put_batch(host_batch: Batch, shardings: Batch) -> Batch:
    """Return the global batch on the devices.

    Args:
        host_batch: This host's part of the batch, as numpy arrays.
        shardings: The shardings that `batch_shardings` returns.
    """

    def put(sharding: NamedSharding, local: np.ndarray) -> jax.Array:
        # Given the global shape, jax rejects a mesh in which a host has only parts of images.
        shape = (len(local) * jax.process_count(), *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(put, shardings, host_batch)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of host arrays, equal on all hosts, as copies on every device."""
    return jax.device_put(tree, replicated(mesh))


def split_over_data(shapes: Any, mesh: Mesh) -> Any:
    """Return the shardings that split a state that is not needed whole over the axis `data`.

    With it, an optimizer is sharded as in ZeRO, stage 1 (https://arxiv.org/abs/1910.02054): each
    device updates its part of the parameters. The compiler derives the exchange.

    Args:
        shapes: A tree of arrays, or their shapes.
        mesh: The devices.

    Returns:
        A tree with the sharding of each array: split along its largest axis that the devices
        divide. Small arrays, and those without such an axis, are replicated.
    """
    num_devices = mesh.shape["data"]

    def split(x: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(x.shape) if length % num_devices == 0]
        if x.size < MIN_SPLIT_SIZE or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, P(*[None] * largest, "data"))

    return jax.tree.map(split, shapes)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return the shapes and types of arrays, to be restored with these shardings.

    Args:
        shapes: A tree of arrays, or their shapes.
        shardings: The same tree with shardings, or a prefix of it: one sharding for a whole branch.
    """

    def with_sharding(sharding: NamedSharding, branch: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), branch
        )

    return jax.tree.map(with_sharding, shardings, shapes)
