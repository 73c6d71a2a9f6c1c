"""Keras' ImageNet ResNet-50 (the Caffe weights of He et al., ported) as variables of our backbone.

A network with these weights needs the settings KERAS_MODEL and the input KERAS_INPUT.
"""

from collections.abc import Mapping

import numpy as np

from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import LEAVES, Layer, Path, Shape

# Means in the network's own channel order, subtracted from 0..255 values; std 1: no division.
KERAS_INPUT = {
    "order": "bgr",
    "mean": (103.939, 116.779, 123.68),
    "std": (1.0, 1.0, 1.0),
}
# Caffe's batch norm epsilon as Keras ported it, and the stride in a stage's first 1x1.
KERAS_MODEL = {"norm_epsilon": 1e-3, "stride_in_1x1": True}

# The classifier's last layer, which a backbone does not need.
UNUSED = ("fc1000/kernel", "fc1000/bias")

ARCHITECTURE = "resnet50"
# Our index of a convolution in its block -> Keras' branch.
BRANCHES = {0: "1", 1: "2a", 2: "2b", 3: "2c"}
# Our name of a norm's array -> Keras'.
NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def backbone(arrays: Mapping[str, np.ndarray], *, architecture: str, norm: str) -> dict[str, dict]:
    """Return the variables of the detector's `backbone` from arrays by Keras' names.

    Keras' convolutions have a bias and ours have none: it is folded exactly into the norm that
    follows, of which the mean becomes mean - bias.

    Args:
        arrays: The file's arrays by name.
        architecture: The backbone's architecture; it must be "resnet50".
        norm: The backbone's norm, "frozen_batch" or "batch".

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        ValueError: If the architecture or the norm is another, or arrays are missing, unexpected,
            misshapen or not finite; the message lists them.
    """
    resnet.check_norm(norm)
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"these are Keras weights of {ARCHITECTURE}, but config.model.backbone is "
            f"{architecture}; change it to {ARCHITECTURE}, or give another file."
        )
    wrong = resnet.wrong_arrays(arrays, _shapes(), lambda name: name in UNUSED)
    if wrong:
        raise ValueError(
            f"these are not Keras weights of {ARCHITECTURE}: {wrong}; give the file as Keras "
            "published it, --weights=resnet50."
        )
    leaves: dict[Path, np.ndarray] = {}
    for layer in resnet.layers(ARCHITECTURE):
        for leaf in LEAVES:
            leaves[layer.path(leaf)] = np.asarray(arrays[_name(layer, leaf)], np.float32)
        bias = np.asarray(arrays[_bias_name(layer)], np.float32)
        leaves[layer.path("mean")] = leaves[layer.path("mean")] - bias
    return resnet.variables(leaves, norm)


def _shapes() -> dict[str, Shape]:
    """Return the shape of each array by Keras' name; kernels are HWIO."""
    shapes = {}
    for layer in resnet.layers(ARCHITECTURE):
        shapes |= {_name(layer, leaf): layer.shape(leaf) for leaf in LEAVES}
        shapes[_bias_name(layer)] = layer.shape("bias")
    return shapes


def _name(layer: Layer, leaf: str) -> str:
    """Return Keras' name of a layer's leaf."""
    convolution, norm = _modules(layer)
    return f"{convolution}/kernel" if leaf == "kernel" else f"{norm}/{NORM[leaf]}"


def _bias_name(layer: Layer) -> str:
    """Return Keras' name of the bias of a layer's convolution."""
    return f"{_modules(layer)[0]}/bias"


def _modules(layer: Layer) -> tuple[str, str]:
    """Return the names of a layer's convolution and norm in Keras."""
    if layer.stage == 1:
        return "conv1", "bn_conv1"
    block = f"{layer.stage}{'abcdef'[layer.block]}_branch{BRANCHES[layer.index]}"
    return f"res{block}", f"bn{block}"
