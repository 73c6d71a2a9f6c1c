"""The device mesh and where each array lies on it. The only place that names devices.

Two axes: `data` shares the batch's rows, `space` shares the rows of one picture, for pictures too
large for one device. The compiler exchanges the borders that convolutions need.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retinanet_jax.data.batch import Batch


def make_mesh(space: int, devices: list[jax.Device] | None = None) -> Mesh:
    """All devices as (data, space). Raises ValueError where `space` does not divide a host's.

    A picture comes from one host, so the devices that share it must be that host's.
    """
    devices = jax.devices() if devices is None else devices
    own = sum(device.process_index == jax.process_index() for device in devices)
    if space < 1 or own % space:
        raise ValueError(
            f"space={space} must divide the number of devices of a host ({own}); try space=1."
        )
    shape = (len(devices) // space, space)
    # Explicit axes, the default, refuse gathers that spatial sharding needs.
    return jax.make_mesh(shape, ("data", "space"), (AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh) -> Batch:
    """Where a batch's arrays lie: rows over `data`, the pictures' height also over `space`."""
    by_row = NamedSharding(mesh, P("data"))
    shardings = Batch(*[by_row] * len(Batch._fields))
    return shardings._replace(images=NamedSharding(mesh, P("data", "space")))


def check_batch_size(field: str, batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError where the batch can't be shared evenly."""
    shares = mesh.shape["data"]
    if batch_size % shares:
        raise ValueError(
            f"{field}={batch_size} must be a multiple of the {shares} devices that share it; "
            f"try {-(-batch_size // shares) * shares}."
        )


def check_heights(buckets: Iterable[tuple[int, int]], max_level: int, mesh: Mesh) -> None:
    """Raises ValueError where the devices of `space` can't share pictures of some (H, W).

    The picture itself must be cut evenly. Of the coarsest level each device needs a row: without
    one the compiler's gradients are wrong (1e-3 off in float64 with jax 0.10 on CPU, though the
    loss is right). Shares of a level that are merely uneven are fine.
    """
    space = mesh.shape["space"]
    for height, _ in buckets:
        if height % space:
            raise ValueError(
                f"space={space} devices cannot share pictures of height {height} evenly; try "
                f"space=1, or buckets whose heights are multiples of {space}."
            )
        rows = -(-height // 2**max_level)
        if (space - 1) * -(-rows // space) >= rows:
            raise ValueError(
                f"space={space} devices cannot share pictures of height {height}: level "
                f"{max_level} has {rows} rows and leaves one without; try space=1, or buckets "
                f"of at least {space * 2**max_level} rows."
            )


def to_devices(host_batch: Batch, shardings: Batch) -> Batch:
    """This host's rows -> the global batch on its devices."""

    def place(where: NamedSharding, rows: np.ndarray) -> jax.Array:
        # Told the global shape, jax refuses a mesh whose hosts do not own whole pictures.
        shape = (len(rows) * jax.process_count(), *rows.shape[1:])
        return jax.make_array_from_process_local_data(where, rows, shape)

    return jax.tree.map(place, shardings, host_batch)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Host arrays (the same on every host) -> a whole copy on every device."""
    return jax.device_put(tree, replicated(mesh))


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types of `tree`, to be restored as a whole copy on every device."""
    everywhere = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)
