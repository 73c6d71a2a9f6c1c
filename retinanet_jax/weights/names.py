"""The names that torchvision and detectron2 have for the arrays of our ResNet and our RetinaNet.

A ResNet's arrays have the same names in a classifier's state dict and, after a prefix, in a
detector's. Whatever a library names otherwise (older files, arrays without a counterpart) is in the
library's own module.
"""

from retinanet_jax.weights.resnet import Layer, Path

# Our name of a norm's array -> the name in PyTorch.
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torchvision_name(layer: Layer, leaf: str) -> str:
    """Return torchvision's name of an array of a ResNet, as in "layer2.0.conv1.weight"."""
    block = "" if layer.stage == 1 else f"layer{layer.stage - 1}.{layer.block}."
    conv, norm = f"conv{layer.index}", f"bn{layer.index}"
    if not layer.index:
        conv, norm = "downsample.0", "downsample.1"
    return f"{block}{conv}.weight" if leaf == "kernel" else f"{block}{norm}.{NORM[leaf]}"


def detectron2_name(layer: Layer, leaf: str) -> str:
    """Return detectron2's name of an array of a ResNet, as in "res3.0.conv1.weight"."""
    block = "stem." if layer.stage == 1 else f"res{layer.stage}.{layer.block}."
    conv = f"{block}conv{layer.index}" if layer.index else f"{block}shortcut"
    return f"{conv}.weight" if leaf == "kernel" else f"{conv}.norm.{NORM[leaf]}"


# (part, layer) of our detector -> (torchvision's module, detectron2's), except for the layers of
# the heads' towers, of which there may be any number.
_MODULES: dict[Path, tuple[str, str]] = {
    ("fpn", "lateral3"): ("backbone.fpn.inner_blocks.0.0", "backbone.fpn_lateral3"),
    ("fpn", "lateral4"): ("backbone.fpn.inner_blocks.1.0", "backbone.fpn_lateral4"),
    ("fpn", "lateral5"): ("backbone.fpn.inner_blocks.2.0", "backbone.fpn_lateral5"),
    ("fpn", "output3"): ("backbone.fpn.layer_blocks.0.0", "backbone.fpn_output3"),
    ("fpn", "output4"): ("backbone.fpn.layer_blocks.1.0", "backbone.fpn_output4"),
    ("fpn", "output5"): ("backbone.fpn.layer_blocks.2.0", "backbone.fpn_output5"),
    ("fpn", "p6"): ("backbone.fpn.extra_blocks.p6", "backbone.top_block.p6"),
    ("fpn", "p7"): ("backbone.fpn.extra_blocks.p7", "backbone.top_block.p7"),
    ("classification_head", "predict"): ("head.classification_head.cls_logits", "head.cls_score"),
    ("box_head", "predict"): ("head.regression_head.bbox_reg", "head.bbox_pred"),
}
_TOWERS = {
    "classification_head": ("head.classification_head.conv", "head.cls_subnet"),
    "box_head": ("head.regression_head.conv", "head.bbox_subnet"),
}


def torchvision_module(path: Path) -> str:
    """Return torchvision's module of a (part, layer) of our detector outside of the backbone."""
    if path in _MODULES:
        return _MODULES[path][0]
    part, layer = path
    return f"{_TOWERS[part][0]}.{layer[4:]}.{('conv', 'norm').index(layer[:4])}"


def detectron2_module(path: Path) -> str:
    """Return detectron2's module of a (part, layer) of our detector outside of the backbone.

    Between two convolutions of a tower it counts a ReLU. Its towers with norms are not among ours,
    since their convolutions have biases as well.
    """
    if path in _MODULES:
        return _MODULES[path][1]
    part, layer = path
    return f"{_TOWERS[part][1]}.{2 * int(layer.removeprefix('conv'))}"
