"""The HDF5 files in which Keras publishes the weights of its classifiers.

A file has a group for each layer. Keras itself assigns a layer's arrays by their order, since their
names have changed between its versions; so does this reader, which gives them Keras' present names.
"""

import pathlib
from typing import Any

import numpy as np

# The number of a layer's arrays -> their names: a convolution's or dense layer's, and a norm's.
LEAVES = {
    0: (),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a Keras file by the names LAYER/ARRAY.

    Args:
        path: An .h5 file of a network of convolutions, dense layers and batch norms.

    Raises:
        ImportError: If h5py is not installed.
        OSError, KeyError, ValueError: If the file is not one of Keras' weights.
    """
    import h5py

    with h5py.File(path, "r") as file:
        layers: Any = file.get("model_weights", file)
        arrays = {}
        for layer in map(_text, layers.attrs["layer_names"]):
            names = [_text(name) for name in layers[layer].attrs["weight_names"]]
            for leaf, name in zip(LEAVES[len(names)], names, strict=True):
                arrays[f"{layer}/{leaf}"] = np.asarray(layers[layer][name])
    return arrays


def _text(name: Any) -> str:
    """Return a name that may be stored as bytes."""
    return name.decode() if isinstance(name, bytes) else str(name)
