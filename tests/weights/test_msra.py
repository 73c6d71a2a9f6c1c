"""Arrays with Caffe2's names as our backbone, in the three formats of Detectron's files."""

import re

import numpy as np
import pytest

from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import BACKBONE_SOURCES, torchvision
from retinanet_jax.weights.msra import (
    CAFFE2,
    DETECTRON,
    DETECTRON2,
    FAIR_INPUT,
    FAIR_MODEL,
    MSRA_INPUT,
    MSRA_MODEL,
    backbone,
    detect_format,
    is_unused,
)

FORMATS = {
    "detectron2": (DETECTRON2, ("gamma", "beta", "running_mean", "running_var")),
    "caffe2": (CAFFE2, ("s", "b", "rm", "riv")),
}
EPSILON = 1e-5


def blobs(state_dict, suffixes):
    """Return torchvision's arrays by Caffe2's names, written down from Detectron's files."""
    norm = dict(zip(("weight", "bias", "running_mean", "running_var"), suffixes, strict=True))
    renamed = {}
    for name, value in state_dict.items():
        if torchvision.is_unused(name):
            continue
        module, _, leaf = name.rpartition(".")
        module = module.replace("downsample.0", "branch1").replace("downsample.1", "branch1_bn")
        module = re.sub(r"conv(\d)$", lambda match: "branch2" + "_abc"[int(match[1])], module)
        module = re.sub(r"bn(\d)$", lambda match: f"branch2{'_abc'[int(match[1])]}_bn", module)
        if not module.startswith("layer"):
            module = {"branch2a": "conv1", "branch2a_bn": "res_conv1_bn"}[module]
        module = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"res{int(m[1]) + 1}_{m[2]}_", module)
        is_norm = module.endswith("_bn")
        renamed[f"{module}_{norm[leaf] if is_norm else 'w'}"] = value
    return renamed


def folded(arrays):
    """Return arrays as Detectron has them: mean and variance are folded, in float64."""
    arrays = dict(arrays)
    for name in [name for name in arrays if name.endswith("_rm")]:
        norm = name.removesuffix("_rm")
        mean, variance = arrays.pop(name), arrays.pop(f"{norm}_riv").astype(np.float64)
        scale = arrays[f"{norm}_s"] / np.sqrt(variance + EPSILON)
        arrays[f"{norm}_b"] = (arrays[f"{norm}_b"] - mean * scale).astype(np.float32)
        arrays[f"{norm}_s"] = scale.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def state(state_dict):
    """The state dict of an architecture "small": bottlenecks, two stages of two blocks."""
    with pytest.MonkeyPatch.context() as patch:
        small = {"stage_sizes": (2, 2), "bottleneck": True}
        patch.setitem(ARCHITECTURES, "small", small)
        yield state_dict("small")


@pytest.fixture(scope="module")
def caffe2(state):
    return blobs(state, FORMATS["caffe2"][1])


def leaves(tree, path=()):
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name, sub in tree.items() for k, v in leaves(sub, (*path, name)).items()}


def test_the_names_are_those_of_the_files(zeros):
    # From the published R-50.pkl (R-101.pkl has the same format) and X-101-32x8d.pkl.
    msra = blobs(zeros("resnet50"), FORMATS["detectron2"][1])
    fair = blobs(zeros("resnext101_32x8d"), FORMATS["caffe2"][1])
    assert {"conv1_w", "res_conv1_bn_gamma", "res5_1_branch2c_bn_running_var"} < set(msra)
    assert {"res_conv1_bn_s", "res2_0_branch1_w", "res4_22_branch2b_bn_riv"} < set(fair)
    assert len(msra) == 53 * 5
    assert len(fair) == 104 * 5


@pytest.mark.parametrize(("file_format", "suffixes"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_the_same_network_with_other_names_has_the_same_variables(
    state, file_format, suffixes, norm
):
    arrays = blobs(state, suffixes)
    assert detect_format(arrays) is file_format
    assert set(file_format.names("small").values()) == set(arrays)
    from_msra = leaves(backbone(arrays, architecture="small", norm=norm))
    from_torchvision = leaves(
        BACKBONE_SOURCES["torchvision"](state, architecture="small", norm=norm)
    )
    assert from_msra.keys() == from_torchvision.keys()
    for path, value in from_msra.items():
        np.testing.assert_array_equal(value, from_torchvision[path], strict=True)


def test_folded_norms_compute_what_unfolded_ones_compute(caffe2):
    def affine(arrays):
        """Return factor and offset of every norm, as FrozenBatchNorm computes them in float32."""
        tree = backbone(arrays, architecture="small", norm="frozen_batch")["batch_stats"]
        result = {}
        for path, scale in leaves(tree).items():
            if path[-1] != "scale":
                continue
            norm = {leaf: leaves(tree)[*path[:-1], leaf] for leaf in ("bias", "mean", "var")}
            factor = scale / np.sqrt(norm["var"] + np.float32(MSRA_MODEL["norm_epsilon"]))
            result[path[:-1]] = factor, norm["bias"] - norm["mean"] * factor
        return result

    detectron, detectron2 = affine(folded(caffe2)), affine(caffe2)
    assert len(detectron) == 15
    for path, (factor, offset) in detectron.items():
        np.testing.assert_allclose(factor, detectron2[path][0], rtol=1e-6)
        np.testing.assert_allclose(offset, detectron2[path][1], rtol=1e-5, atol=1e-5)


def test_folded_scales_and_biases_are_not_changed_by_a_bit(caffe2):
    arrays = folded(caffe2)
    assert set(DETECTRON.names("small").values()) == set(arrays)
    tree = backbone(arrays, architecture="small", norm="frozen_batch")
    stem = tree["batch_stats"]["stem_norm"]
    np.testing.assert_array_equal(stem["scale"], arrays["res_conv1_bn_s"])
    np.testing.assert_array_equal(stem["bias"], arrays["res_conv1_bn_b"])
    assert not stem["mean"].any()
    # The norm divides by sqrt(var + epsilon).
    assert (stem["var"] + np.float32(MSRA_MODEL["norm_epsilon"]) == 1).all()


def test_folded_norms_cannot_be_trained(caffe2):
    with pytest.raises(
        ValueError, match=r"norm='batch' requires running statistics.*'frozen_batch'"
    ):
        backbone(folded(caffe2), architecture="small", norm="batch")


def test_the_shapes_are_those_of_detectron2(test_data, zeros):
    caffe2 = blobs(zeros("resnet50"), FORMATS["caffe2"][1])
    with np.load(test_data / "parity" / "detectron2_r50_stride_in_1x1_128x160.npz") as golden:
        reference = dict(
            zip(golden["sd_names"].tolist(), golden["sd_shapes"].tolist(), strict=True)
        )
    suffix = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    shapes = {}
    for name, shape in reference.items():
        stage, *block, conv, last = name.removeprefix("backbone.bottom_up.").split(".")
        if not name.startswith("backbone.bottom_up."):
            continue
        if conv == "norm":
            *block, conv = block
            last = f"bn_{suffix[last]}"
        else:
            last = "w"
        at = f"{stage}_{block[0]}_branch{branch[conv]}" if block else "res_conv1"
        shapes[f"{at}_{last}".replace("res_conv1_w", "conv1_w")] = shape
    assert shapes == {name: "x".join(map(str, x.shape)) for name, x in caffe2.items()}


def test_arrays_that_a_backbone_does_not_need_are_allowed(caffe2):
    extra = ("fc1000_w", "fc1000_b", "pred_w", "pred_b", "conv1_b", "res2_0_branch1_w_momentum")
    assert all(map(is_unused, extra))
    more = caffe2 | dict.fromkeys(extra, np.zeros(3))
    backbone(more, architecture="small", norm="frozen_batch")
    with pytest.raises(
        ValueError, match=r"not MSRA weights of small: unexpected: res2_0_branch1_b"
    ):
        backbone(more | {"res2_0_branch1_b": 1}, architecture="small", norm="frozen_batch")


def test_a_resnext_is_not_taken_for_a_resnet(zeros):
    arrays = blobs(zeros("resnext101_32x8d"), FORMATS["caffe2"][1])
    tree = backbone(arrays, architecture="resnext101_32x8d", norm="frozen_batch")
    assert tree["params"]["stage2_block0"]["conv2"]["kernel"].shape == (3, 3, 8, 256)
    with pytest.raises(
        ValueError, match=r"weights of resnext101_32x8d, but config\.model\.backbone is r"
    ):
        backbone(arrays, architecture="resnet101", norm="frozen_batch")


def test_the_error_for_an_unknown_format_uses_detectron2_s_names():
    with pytest.raises(
        ValueError, match=r"missing: conv1_w, res2_0_branch1_bn_beta, .*unexpected: a"
    ):
        backbone({"a": np.zeros(1)}, architecture="resnet50", norm="batch")


def test_the_inputs_are_bgr_as_in_detectron2_s_configs():
    assert MSRA_INPUT["order"] == FAIR_INPUT["order"] == "bgr"
    assert MSRA_INPUT["mean"] == FAIR_INPUT["mean"] == (103.53, 116.28, 123.675)
    assert MSRA_INPUT["std"] == (1, 1, 1)
    assert FAIR_INPUT["std"] == (57.375, 57.12, 58.395)
    assert (MSRA_MODEL["stride_in_1x1"], FAIR_MODEL["stride_in_1x1"]) == (True, False)
