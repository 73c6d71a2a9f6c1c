"""The ImageNet ResNet-50 of Keras (He et al.'s Caffe weights, ported) as our backbone's variables.

What the network must be for the weights to mean what they meant: KERAS_MODEL; what it must be fed:
KERAS_INPUT, with 0..255 images.
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
# Caffe's batch norm constant as Keras ported it, and the stride in a stage's first 1x1.
KERAS_MODEL = {"norm_epsilon": 1e-3, "stride_in_1x1": True}

# The classifier; a backbone has no use for it.
UNUSED = ("fc1000/kernel", "fc1000/bias")

ARCHITECTURE = "resnet50"
# Our number of a convolution in its block -> Keras' branch.
BRANCHES = {0: "1", 1: "2a", 2: "2b", 3: "2c"}
# Our name of a norm's array -> Keras'.
NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def backbone(arrays: Mapping[str, np.ndarray], *, architecture: str, norm: str) -> dict[str, dict]:
    """Return {"params", "batch_stats"} for the detector's `backbone`, from arrays by Keras name.

    `architecture` must be "resnet50"; `norm` is the backbone's, "frozen_batch" or "batch". Keras'
    convolutions carry a bias, ours none: it is folded exactly into the norm that follows, whose
    mean becomes mean - bias. Raises ValueError for another architecture or norm and, naming the
    arrays, where any is missing, unknown, misshapen or not finite.
    """
    resnet.check_norm(norm)
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"Keras' weights are of {ARCHITECTURE}, and the backbone is {architecture}; "
            "change config.model.backbone, or give another file."
        )
    found = resnet.problems(arrays, _shapes(), lambda name: name in UNUSED)
    if found:
        raise ValueError(
            f"not Keras' ResNet-50: {found}; give the arrays that scripts/get_resnet50.py writes."
        )
    leaves: dict[Path, np.ndarray] = {}
    for layer in resnet.layers(ARCHITECTURE):
        for leaf in LEAVES:
            leaves[layer.path(leaf)] = np.asarray(arrays[_name(layer, leaf)], np.float32)
        bias = np.asarray(arrays[_bias(layer)], np.float32)
        leaves[layer.path("mean")] = leaves[layer.path("mean")] - bias
    return resnet.variables(leaves, norm)


def _name(layer: Layer, leaf: str) -> str:
    """Keras' name of a layer's leaf."""
    convolution, norm = _modules(layer)
    return f"{convolution}/kernel" if leaf == "kernel" else f"{norm}/{NORM[leaf]}"


def _bias(layer: Layer) -> str:
    """Keras' name of the bias that its convolutions have."""
    return f"{_modules(layer)[0]}/bias"


def _modules(layer: Layer) -> tuple[str, str]:
    """(Keras convolution, Keras norm) of a layer."""
    if layer.stage == 1:
        return "conv1", "bn_conv1"
    block = f"{layer.stage}{'abcdef'[layer.block]}_branch{BRANCHES[layer.index]}"
    return f"res{block}", f"bn{block}"


def _shapes() -> dict[str, Shape]:
    """Shape of every array by Keras name; kernels are HWIO."""
    shapes = {}
    for layer in resnet.layers(ARCHITECTURE):
        shapes |= {_name(layer, leaf): layer.shape(leaf) for leaf in LEAVES}
        shapes[_bias(layer)] = layer.shape("bias")
    return shapes
