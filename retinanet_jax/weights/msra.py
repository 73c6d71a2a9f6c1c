"""The ImageNet weights that Detectron and detectron2 start from, as variables of our backbone.

They are R-50.pkl and R-101.pkl of MSRA (He et al.) and X-101-32x8d.pkl of FAIR; the arrays have
Caffe2's names. A network with them needs the settings MSRA_MODEL or FAIR_MODEL, and the input
MSRA_INPUT or FAIR_INPUT.
"""

from collections.abc import Callable, Mapping

import numpy as np

from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import LEAVES, BackboneFormat, Layer, Path

# As detectron2 feeds them: means in the network's own channel order, no division for MSRA's.
MSRA_INPUT = {"order": "bgr", "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)}
FAIR_INPUT = MSRA_INPUT | {"std": (57.375, 57.12, 58.395)}
# The batch norm epsilon of Caffe and Caffe2, and the stride in a stage's first 1x1 or in its 3x3.
MSRA_MODEL = {"norm_epsilon": 1e-5, "stride_in_1x1": True}
FAIR_MODEL = MSRA_MODEL | {"stride_in_1x1": False}

# Our index of a convolution in its block -> the branch.
BRANCHES = {0: "1", 1: "2a", 2: "2b", 3: "2c"}
# The classifiers' last layers, and a bias of MSRA's stem, 1e-9 of its mean, which detectron2
# ignores too.
UNUSED = ("fc1000_w", "fc1000_b", "pred_w", "pred_b", "conv1_b")


def is_unused(name: str) -> bool:
    """Whether a network does not need an array of these files."""
    return name in UNUSED or name.endswith("_momentum")


def _make_name_of(norm: Mapping[str, str]) -> Callable[[Layer, str], str]:
    """Return a function from (layer, leaf) to the array's name, given the suffixes of a norm."""

    def name_of(layer: Layer, leaf: str) -> str:
        branch = f"res{layer.stage}_{layer.block}_branch{BRANCHES[layer.index]}"
        conv, before_norm = ("conv1", "res_conv1") if layer.stage == 1 else (branch, branch)
        return f"{conv}_w" if leaf == "kernel" else f"{before_norm}_bn_{norm[leaf]}"

    return name_of


def _format(norm: Mapping[str, str]) -> BackboneFormat:
    """Return the format of the files that have these suffixes of a norm's arrays."""
    leaves = tuple(leaf for leaf in LEAVES if leaf == "kernel" or leaf in norm)
    return BackboneFormat("MSRA", _make_name_of(norm), is_unused, leaves)


DETECTRON2 = _format(
    {"scale": "gamma", "bias": "beta", "mean": "running_mean", "var": "running_var"}
)
# "riv" is the running variance and not, as Caffe2 calls it, its inverse.
CAFFE2 = _format({"scale": "s", "bias": "b", "mean": "rm", "var": "riv"})
# Mean and variance are folded into scale and bias.
DETECTRON = _format({"scale": "s", "bias": "b"})


def backbone(arrays: Mapping[str, np.ndarray], *, architecture: str, norm: str) -> dict[str, dict]:
    """Return the variables of the detector's `backbone` from one of these files.

    Args:
        arrays: The file's arrays by name.
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        norm: The backbone's norm, "frozen_batch" or "batch"; the latter requires running
            statistics, which Detectron's files do not have.

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        ValueError: As `resnet.from_state_dict` does, and if the running statistics are missing.
    """
    file_format = detect_format(arrays)
    if file_format is not DETECTRON:
        return resnet.from_state_dict(arrays, file_format, architecture=architecture, norm=norm)
    resnet.check_norm(norm)
    leaves = resnet.arrays_by_path(arrays, file_format, architecture)
    if norm == "batch":
        raise ValueError(
            "norm='batch' requires running statistics, but in this file they are folded into scale "
            "and bias; use norm='frozen_batch', or detectron2's file."
        )
    return resnet.variables(leaves | _identity_statistics(architecture), norm)


def detect_format(arrays: Mapping[str, np.ndarray]) -> BackboneFormat:
    """Return the format of these arrays by the stem's norm; DETECTRON2 if it has none."""
    stem = resnet.layers("resnet50")[0]
    for file_format in (DETECTRON2, CAFFE2, DETECTRON):
        names = (file_format.name_of(stem, leaf) for leaf in file_format.leaves[1:])
        if all(name in arrays for name in names):
            return file_format
    return DETECTRON2


def _identity_statistics(architecture: str) -> dict[Path, np.ndarray]:
    """Return the mean and variance with which a norm only applies its scale and bias."""
    statistics = {}
    for layer in resnet.layers(architecture):
        channels = layer.shape("mean")
        statistics[layer.path("mean")] = np.zeros(channels, np.float32)
        variance = 1 - MSRA_MODEL["norm_epsilon"]
        statistics[layer.path("var")] = np.full(channels, variance, np.float32)
    return statistics
