"""The arrays of a state that are not finite: they are neither saved nor resumed from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool


def not_finite(tree: Any) -> list[str]:
    """Return the names of the arrays with an element that is not finite, in the tree's order.

    Args:
        tree: Arrays on the devices, possibly split over them and over hosts, or only numpy arrays.
    """
    arrays = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    leaves = list(arrays.values())
    if all(map(_is_on_host, leaves)):  # where compiling would take longer than computing
        flags = [np.isfinite(leaf).all() for leaf in leaves]
    else:
        flags = np.asarray(are_finite(leaves))
    return [name for name, flag in zip(arrays, flags, strict=True) if not flag]


def _is_on_host(array: jax.Array | np.ndarray) -> bool:
    """Return whether an array is in the memory of this host."""
    if not isinstance(array, jax.Array):
        return True
    is_on_cpu = {device.platform for device in array.devices()} == {"cpu"}
    return is_on_cpu and array.is_fully_addressable


@jax.jit
def are_finite(arrays: list[Array]) -> Bool[Array, " n"]:
    """Return, for each array, whether all its elements are finite."""
    return jnp.stack([jnp.isfinite(x).all() for x in arrays])
