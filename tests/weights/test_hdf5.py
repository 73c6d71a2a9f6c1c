"""Keras' HDF5 files: arrays by their order in each layer, whatever their names are."""

import h5py
import numpy as np
import pytest

from retinanet_jax import weights

ARRAYS = {
    "conv1/kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1),
    "conv1/bias": np.float32([7]),
    "bn_conv1/gamma": np.float32([1]),
    "bn_conv1/beta": np.float32([2]),
    "bn_conv1/moving_mean": np.float32([3]),
    "bn_conv1/moving_variance": np.float32([4]),
}
# The names of the arrays in a layer's group, by Keras' major version.
NAMES = {
    "1": {
        "conv1": ["conv1_W:0", "conv1_b:0"],
        "bn_conv1": [f"bn_conv1_{x}:0" for x in ("gamma", "beta", "running_mean", "running_std")],
    },
    "2": {
        "conv1": ["conv1/kernel:0", "conv1/bias:0"],
        "bn_conv1": [
            f"bn_conv1/{x}:0" for x in ("gamma", "beta", "moving_mean", "moving_variance")
        ],
    },
}


def write(path, version, group=""):
    with h5py.File(path, "w") as file:
        top = file.create_group(group) if group else file
        layers = ["input_1", *NAMES[version]]
        top.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            names = NAMES[version].get(layer, [])
            folder = top.create_group(layer)
            folder.attrs["weight_names"] = [name.encode() for name in names]
            values = [value for name, value in ARRAYS.items() if name.startswith(f"{layer}/")]
            for name, value in zip(names, values, strict=True):
                folder[name] = value


@pytest.mark.parametrize("group", ["", "model_weights"])
@pytest.mark.parametrize("version", NAMES)
def test_the_arrays_have_the_names_of_their_places(tmp_path, version, group):
    write(tmp_path / "w.h5", version, group)
    arrays = weights.load_arrays(tmp_path / "w.h5")
    assert sorted(arrays) == sorted(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)


def write_text(path):
    path.write_text("no HDF5")


def write_other(path):
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(3)


def write_three(path):
    write(path, "2")
    with h5py.File(path, "a") as file:
        file["conv1"].attrs["weight_names"] = [b"conv1/kernel:0"] * 3


@pytest.mark.parametrize("write_bad", [write_text, write_other, write_three])
def test_another_file_is_an_error_in_one_line(tmp_path, write_bad):
    write_bad(tmp_path / "w.h5")
    with pytest.raises(ValueError, match=r"w\.h5 is not a readable file of plain arrays"):
        weights.load_arrays(tmp_path / "w.h5")
