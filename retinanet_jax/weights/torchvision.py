"""torchvision's ImageNet classifiers, ResNet and ResNeXt, as our backbone's variables.

What the network must be for the weights to mean what they meant: TORCHVISION_MODEL; what it must
be fed: TORCHVISION_INPUT, with 0..255 images. Both hold for all versions of the weights.
"""

from collections.abc import Mapping

import numpy as np

from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import LEAVES, Layer, Path, Shape

# torchvision's own, 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 of 0..1 images, times 255.
TORCHVISION_INPUT = {
    "order": "rgb",
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
}
# PyTorch's batch norm constant, and the stride in a bottleneck's 3x3.
TORCHVISION_MODEL = {"norm_epsilon": 1e-5, "stride_in_1x1": False}

# Our name of a norm's array -> theirs.
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The classifier; a backbone has no use for it.
CLASSIFIER = ("fc.weight", "fc.bias")


def backbone(arrays: Mapping[str, np.ndarray], *, architecture: str, norm: str) -> dict[str, dict]:
    """Return {"params", "batch_stats"} for the detector's `backbone`, from a state dict's arrays.

    `norm` is the backbone's, "frozen_batch" or "batch". Raises ValueError for another norm or an
    unknown architecture, and where the arrays are not the architecture's: it says which one's they
    are, or else names what is missing, unknown, misshapen or not finite.
    """
    resnet.check_norm(norm)
    resnet.check(arrays, architecture, _shapes, is_unused, whose="torchvision's")
    leaves = {path: resnet.from_oihw(arrays[name]) for path, name in names(architecture).items()}
    return resnet.variables(leaves, norm)


def names(architecture: str, prefix: str = "") -> dict[Path, str]:
    """Return their name of each array of our backbone, by its path there.

    `prefix` is what a detector's state dict puts before a classifier's names ("backbone.body.").
    """
    return {
        layer.path(leaf): prefix + _name(layer, leaf)
        for layer in resnet.layers(architecture)
        for leaf in LEAVES
    }


def is_unused(name: str) -> bool:
    """Whether a network has no use for an array of a classifier's state dict.

    That is the classifier, and how many batches its norms have seen: with a fixed momentum nothing
    reads it.
    """
    return name in CLASSIFIER or name.endswith(".num_batches_tracked")


def _name(layer: Layer, leaf: str) -> str:
    """Their name of a layer's leaf."""
    if layer.stage == 1:
        conv, norm = "conv1", "bn1"
    elif layer.index:
        conv, norm = f"conv{layer.index}", f"bn{layer.index}"
    else:
        conv, norm = "downsample.0", "downsample.1"
    block = "" if layer.stage == 1 else f"layer{layer.stage - 1}.{layer.block}."
    return f"{block}{conv}.weight" if leaf == "kernel" else f"{block}{norm}.{NORM[leaf]}"


def _shapes(architecture: str) -> dict[str, Shape]:
    """Their shape of each array by their name."""
    return {
        _name(layer, leaf): resnet.oihw(layer.shape(leaf))
        for layer in resnet.layers(architecture)
        for leaf in LEAVES
    }
