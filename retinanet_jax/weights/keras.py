"""The ImageNet ResNet-50 of Keras (He et al.'s Caffe weights, ported) as our backbone's variables.

What the network must be for the weights to mean what they meant: KERAS_MODEL; what it must be fed:
KERAS_INPUT, with 0..255 images.
"""

from collections.abc import Mapping

import numpy as np

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

STAGE_SIZES = (3, 4, 6, 3)
# Keras name of a block's branch -> our number of the convolution.
BRANCHES = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "shortcut_conv"}


def resnet50_backbone(arrays: Mapping[str, np.ndarray], norm: str) -> dict[str, dict]:
    """Return {"params", "batch_stats"} for the detector's `backbone`, from arrays by Keras name.

    `norm` is the backbone's: "frozen_batch" (scale, bias, mean, var are all statistics) or "batch"
    (scale and bias are parameters). Keras' convolutions carry a bias, ours none: it is folded
    exactly into the norm that follows, whose mean becomes mean - bias. Raises ValueError for
    another norm and, naming the arrays, where any is missing, unknown, misshapen or not finite.
    """
    if norm not in ("frozen_batch", "batch"):
        raise ValueError(
            f"norm={norm!r} cannot hold batch norm statistics; use 'frozen_batch' or 'batch'."
        )
    _check(arrays)
    params, batch_stats = {}, {}
    for convolution, keras_norm, path in _layers():
        kernel = np.asarray(arrays[f"{convolution}/kernel"], np.float32)
        _insert(params, path, {"kernel": kernel})
        affine, statistics = _norm(arrays, convolution, keras_norm)
        norm_path = (*path[:-1], path[-1].replace("conv", "norm"))
        if norm == "batch":
            _insert(params, norm_path, affine)
            _insert(batch_stats, norm_path, statistics)
        else:
            _insert(batch_stats, norm_path, affine | statistics)
    return {"params": params, "batch_stats": batch_stats}


def _layers() -> list[tuple[str, str, tuple[str, ...]]]:
    """(Keras convolution, Keras norm, our path of the convolution) of the whole network."""
    layers: list[tuple[str, str, tuple[str, ...]]] = [("conv1", "bn_conv1", ("stem_conv",))]
    for stage, size in enumerate(STAGE_SIZES, start=2):
        for index in range(size):
            for branch, name in BRANCHES.items():
                if branch == "1" and index > 0:
                    continue  # only a stage's first block changes the shape
                keras = f"{stage}{'abcdef'[index]}_branch{branch}"
                layers.append((f"res{keras}", f"bn{keras}", (f"stage{stage}_block{index}", name)))
    return layers


def _norm(arrays: Mapping[str, np.ndarray], convolution: str, norm: str) -> tuple[dict, dict]:
    """(scale and bias, mean and var) of a norm, with the convolution's bias folded in."""
    gamma, beta, mean, variance, bias = (
        np.asarray(arrays[name], np.float32)
        for name in (
            f"{norm}/gamma",
            f"{norm}/beta",
            f"{norm}/moving_mean",
            f"{norm}/moving_variance",
            f"{convolution}/bias",
        )
    )
    return {"scale": gamma, "bias": beta}, {"mean": mean - bias, "var": variance}


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every array by Keras name; kernels are HWIO."""
    shapes = {}
    for convolution, norm, path in _layers():
        kernel = _kernel_shape(path)
        shapes[f"{convolution}/kernel"] = kernel
        shapes[f"{convolution}/bias"] = kernel[-1:]
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{norm}/{name}"] = kernel[-1:]
    return shapes


def _kernel_shape(path: tuple[str, ...]) -> tuple[int, int, int, int]:
    if path == ("stem_conv",):
        return (7, 7, 3, 64)
    stage, index = (int(part[-1]) for part in path[0].split("_"))
    inner = 64 * 2 ** (stage - 2)
    incoming = 4 * inner if index else (64 if stage == 2 else 2 * inner)
    return {
        "conv1": (1, 1, incoming, inner),
        "conv2": (3, 3, inner, inner),
        "conv3": (1, 1, inner, 4 * inner),
        "shortcut_conv": (1, 1, incoming, 4 * inner),
    }[path[1]]


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    expected = _expected_shapes()
    present = expected.keys() & arrays.keys()
    problems = {
        "missing": expected.keys() - arrays.keys(),
        "unknown": arrays.keys() - expected.keys() - set(UNUSED),
        "misshapen": {k for k in present if np.shape(arrays[k]) != expected[k]},
        "not finite": {k for k in present if not np.isfinite(arrays[k]).all()},
    }
    found = "; ".join(f"{what}: {', '.join(sorted(k))}" for what, k in problems.items() if k)
    if found:
        raise ValueError(
            f"not Keras' ResNet-50: {found}; give the arrays that scripts/get_resnet50.py writes."
        )


def _insert(tree: dict, path: tuple[str, ...], leaves: dict[str, np.ndarray]) -> None:
    for name in path:
        tree = tree.setdefault(name, {})
    tree.update(leaves)
