"""The ImageNet weights that Detectron and detectron2 start from, as our backbone's variables.

MSRA's (He et al.'s own R-50.pkl and R-101.pkl) and FAIR's X-101-32x8d.pkl, by Caffe2's blob names.
What the network must be for the weights to mean what they meant: MSRA_MODEL, FAIR_MODEL; what it
must be fed: MSRA_INPUT, FAIR_INPUT, with 0..255 images.
"""

from collections.abc import Mapping

import numpy as np

from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import LEAVES, Layer, Path, Shape

# As detectron2 feeds them: means in the network's own channel order, no division for MSRA's.
MSRA_INPUT = {"order": "bgr", "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)}
FAIR_INPUT = MSRA_INPUT | {"std": (57.375, 57.12, 58.395)}
# Caffe's and Caffe2's batch norm constant; the stride in a stage's first 1x1, or in the 3x3.
MSRA_MODEL = {"norm_epsilon": 1e-5, "stride_in_1x1": True}
FAIR_MODEL = MSRA_MODEL | {"stride_in_1x1": False}

# Our number of a convolution in its block -> their branch.
BRANCHES = {0: "1", 1: "2a", 2: "2b", 3: "2c"}
# Our name of a norm's array -> theirs, in the three ways in which the files have it.
DETECTRON2 = {"scale": "gamma", "bias": "beta", "mean": "running_mean", "var": "running_var"}
CAFFE2 = {"scale": "s", "bias": "b", "mean": "rm", "var": "riv"}  # the variance, not its inverse
DETECTRON = {"scale": "s", "bias": "b"}  # mean and variance are worked into the two
# The classifiers; and a bias of MSRA's stem, 1e-9 of its mean, which detectron2 leaves out too.
UNUSED = ("fc1000_w", "fc1000_b", "pred_w", "pred_b", "conv1_b")


def backbone(arrays: Mapping[str, np.ndarray], *, architecture: str, norm: str) -> dict[str, dict]:
    """Return {"params", "batch_stats"} for the detector's `backbone`, from arrays by blob name.

    `norm` is the backbone's, "frozen_batch" or "batch"; the latter only where the arrays hold the
    running statistics (Detectron's do not). Raises ValueError for another norm or an unknown
    architecture, and where the arrays are not the architecture's: it says which one's they are, or
    else names what is missing, unknown, misshapen or not finite.
    """
    resnet.check_norm(norm)
    form = _form(arrays)
    resnet.check(
        arrays, architecture, lambda other: _shapes(other, form), is_unused, whose="MSRA's"
    )
    leaves = {
        path: resnet.from_oihw(arrays[name]) for path, name in names(architecture, form).items()
    }
    if form == DETECTRON:
        if norm == "batch":
            raise ValueError(
                "norm='batch' needs running statistics, which are worked into scale and bias here; "
                "use norm='frozen_batch', or detectron2's file."
            )
        leaves |= _identity_statistics(architecture)
    return resnet.variables(leaves, norm)


def names(architecture: str, form: Mapping[str, str]) -> dict[Path, str]:
    """Return their name of each array of our backbone, by its path there.

    `form` is DETECTRON2, CAFFE2 or DETECTRON; the last has names for scale and bias alone.
    """
    return {
        layer.path(leaf): _name(layer, leaf, form)
        for layer in resnet.layers(architecture)
        for leaf in _leaves(form)
    }


def is_unused(name: str) -> bool:
    """Whether a network has no use for an array of these files."""
    return name in UNUSED or name.endswith("_momentum")


def _form(arrays: Mapping[str, np.ndarray]) -> Mapping[str, str]:
    """Which form the arrays have, judged by the stem; DETECTRON2 where it is none."""
    for form in (DETECTRON2, CAFFE2, DETECTRON):
        if all(f"res_conv1_bn_{name}" in arrays for name in form.values()):
            return form
    return DETECTRON2


def _leaves(form: Mapping[str, str]) -> list[str]:
    return [leaf for leaf in LEAVES if leaf == "kernel" or leaf in form]


def _name(layer: Layer, leaf: str, form: Mapping[str, str]) -> str:
    """Their name of a layer's leaf."""
    stem = layer.stage == 1
    branch = f"res{layer.stage}_{layer.block}_branch{BRANCHES[layer.index]}"
    if leaf == "kernel":
        return "conv1_w" if stem else f"{branch}_w"
    return f"{'res_conv1' if stem else branch}_bn_{form[leaf]}"


def _shapes(architecture: str, form: Mapping[str, str]) -> dict[str, Shape]:
    """Their shape of each array by their name."""
    return {
        _name(layer, leaf, form): resnet.oihw(layer.shape(leaf))
        for layer in resnet.layers(architecture)
        for leaf in _leaves(form)
    }


def _identity_statistics(architecture: str) -> dict[Path, np.ndarray]:
    """The mean and variance with which a norm of MSRA_MODEL leaves scale and bias as they are."""
    statistics = {}
    for layer in resnet.layers(architecture):
        channels = layer.shape("mean")
        statistics[layer.path("mean")] = np.zeros(channels, np.float32)
        variance = 1 - MSRA_MODEL["norm_epsilon"]
        statistics[layer.path("var")] = np.full(channels, variance, np.float32)
    return statistics
