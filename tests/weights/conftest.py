"""State dicts as torchvision's classifiers and the libraries' detectors have them, seeded."""

import re
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


def detector_shapes(source, architecture, num_outputs):
    """Name -> shape of a whole detector, written down from its library's modules."""
    v2, d2 = source == "torchvision_v2", source == "detectron2"
    shapes = {}
    for name, shape in state_dict_shapes(architecture).items():
        if name.startswith("fc.") or (name.endswith("num_batches_tracked") and not v2):
            continue
        if d2:
            name = re.sub(r"bn(\d)", r"conv\1.norm", name)
            name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
            name = name if name.startswith("res") else f"stem.{name}"
        shapes[f"backbone.{'bottom_up' if d2 else 'body'}.{name}"] = shape

    def conv(name, outputs, inputs, kernel, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    planes = 512 if ARCHITECTURES[architecture]["bottleneck"] else 128
    for index in range(3):
        lateral, output = (
            (f"backbone.fpn_lateral{index + 3}", f"backbone.fpn_output{index + 3}")
            if d2
            else (f"backbone.fpn.inner_blocks.{index}.0", f"backbone.fpn.layer_blocks.{index}.0")
        )
        conv(lateral, 256, planes * 2**index, 1)
        conv(output, 256, 256, 3)
    extra = "backbone.top_block" if d2 else "backbone.fpn.extra_blocks"
    conv(f"{extra}.p6", 256, 4 * planes if v2 or d2 else 256, 3)
    conv(f"{extra}.p7", 256, 256, 3)
    names = (
        {"cls_subnet": "cls_score", "bbox_subnet": "bbox_pred"}
        if d2
        else {"classification_head.conv": "cls_logits", "regression_head.conv": "bbox_reg"}
    )
    for (tower, predictor), outputs in zip(names.items(), (num_outputs, 4), strict=True):
        for index in range(4):
            conv(f"head.{tower}.{2 * index if d2 else f'{index}.0'}", 256, 256, 3, bias=not v2)
            if v2:
                shapes |= {f"head.{tower}.{index}.1.{leaf}": (256,) for leaf in ("weight", "bias")}
        at = "" if d2 else tower.removesuffix("conv")
        conv(f"head.{at}{predictor}", 9 * outputs, 256, 3)
    return shapes


def parity_value(name, shape, seed, cls_bias):
    """The value that the parity data have for one array of a detector's state dict.

    `cls_bias` is where the class logits lie. Like the data, the values follow from `seed`, the name
    and the shape alone; norms have random statistics, and a block's last one is weak.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.rpartition(".")[2]
    predicts_classes = "cls_logits" in name or "cls_score" in name
    predicts_boxes = "bbox_reg." in name or "bbox_pred." in name
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        value = rng.normal(0, 0.1, shape)
    elif leaf == "bias":
        value = rng.normal(cls_bias, 0.5, shape) if predicts_classes else rng.normal(0, 0.05, shape)
    elif len(shape) == 1:
        weak = ".bn3." in name or ".conv3.norm." in name
        value = rng.uniform(*((0.2, 0.4) if weak else (0.6, 1.4)), shape)
    else:
        gain = 1.0
        if predicts_classes:
            factor = 0.7
        elif predicts_boxes:
            factor = 0.25
        elif "fpn" in name or ".p6." in name or ".p7." in name:
            factor = 0.5
        else:
            factor, gain = 1.0, 2.0
        value = rng.normal(0, factor * (gain / np.prod(shape[1:])) ** 0.5, shape)
    return value.astype(np.float32)


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


@pytest.fixture(scope="session")
def detector_shapes_of():
    """`detector_shapes_of(source, architecture, num_outputs)`: a state dict's shapes by name."""
    return detector_shapes


@pytest.fixture(scope="session")
def parity_arrays():
    """`parity_arrays(shapes, seed, cls_bias)`: the parity data's weights, from shapes by name."""

    def parity_arrays(shapes, seed=0, cls_bias=-5.0):
        return {name: parity_value(name, shape, seed, cls_bias) for name, shape in shapes.items()}

    return parity_arrays
