"""State dicts as torchvision's ImageNet classifiers have them, with seeded values."""

import zlib

import numpy as np
import pytest

from retinanet_jax.models import ARCHITECTURES


def state_dict_shapes(architecture):
    """Name -> shape, written down from torchvision's modules and not from the importer's table."""
    described = ARCHITECTURES[architecture]
    expansion = 4 if described["bottleneck"] else 1
    groups = described.get("groups", 1)
    shapes = {}

    def conv_norm(conv, norm, shape):
        shapes[f"{conv}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_norm("conv1", "bn1", (64, 3, 7, 7))
    before = 64
    for layer, size in enumerate(described["stage_sizes"], start=1):
        planes = 32 * 2**layer
        width = planes * described.get("width_per_group", 64) // 64 * groups
        for block in range(size):
            at, after = f"layer{layer}.{block}.", planes * expansion
            if described["bottleneck"]:
                conv_norm(f"{at}conv1", f"{at}bn1", (width, before, 1, 1))
                conv_norm(f"{at}conv2", f"{at}bn2", (width, width // groups, 3, 3))
                conv_norm(f"{at}conv3", f"{at}bn3", (after, width, 1, 1))
            else:
                conv_norm(f"{at}conv1", f"{at}bn1", (planes, before, 3, 3))
                conv_norm(f"{at}conv2", f"{at}bn2", (planes, planes, 3, 3))
            if before != after:
                conv_norm(f"{at}downsample.0", f"{at}downsample.1", (after, before, 1, 1))
            before = after
    return shapes | {"fc.weight": (1000, before), "fc.bias": (1000,)}


def seeded(name, shape, seed):
    """A value for one array that follows from its name, its shape and the seed.

    Variances are small on purpose: another epsilon must show. The kernels are as much smaller, and
    a block's last norm is weak, so that no map grows from block to block.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.array(7)
    if len(shape) > 1:
        deviation = 0.1 * (2 / np.prod(shape[1:])) ** 0.5
        return deviation.astype(np.float32) * rng.standard_normal(shape, np.float32)
    if leaf == "running_var":
        return rng.uniform(0.005, 0.015, shape).astype(np.float32)
    if leaf == "weight":
        low, high = (0.2, 0.4) if ".bn3." in name else (0.6, 1.4)
        return rng.uniform(low, high, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture(scope="session")
def shapes_of():
    """`shapes_of(architecture)`: shapes of a whole state dict by name."""
    return state_dict_shapes


@pytest.fixture(scope="session")
def zeros():
    """`zeros(architecture)`: a state dict that takes no memory."""

    def zeros(architecture):
        shapes = state_dict_shapes(architecture)
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

    return zeros


@pytest.fixture(scope="session")
def state_dict():
    """`state_dict(architecture, seed=0)`: a whole state dict, 0.05 to 0.4 GB."""

    def state_dict(architecture, seed=0):
        shapes = state_dict_shapes(architecture)
        return {name: seeded(name, shape, seed) for name, shape in shapes.items()}

    return state_dict
