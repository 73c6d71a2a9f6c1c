"""torchvision's ImageNet classifiers as our backbone, and its RetinaNets as our detector and back.

What a network must be for a classifier's weights to mean what they meant: TORCHVISION_MODEL; what
it must be fed: TORCHVISION_INPUT, with 0..255 images. Both hold for all versions of the weights.
"""

import re
from collections.abc import Mapping

import numpy as np

from retinanet_jax.weights import resnet
from retinanet_jax.weights.detectors import COCO_IDS, Format
from retinanet_jax.weights.resnet import Layer, Path

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
    return resnet.from_state_dict(
        arrays,
        architecture=architecture,
        norm=norm,
        name_of=_name,
        is_unused=is_unused,
        whose="torchvision's",
    )


def names(architecture: str, prefix: str = "") -> dict[Path, str]:
    """Return their name of each array of our backbone, by its path there.

    `prefix` is what a detector's state dict puts before a classifier's names ("backbone.body.").
    """
    return resnet.names(architecture, _name, prefix)


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


def _detector_backbone(architecture: str) -> dict[Path, str]:
    return names(architecture, "backbone.body.")


def _modules() -> dict[Path, str]:
    """(part, layer) of ours -> the detectors' module."""
    modules = {("fpn", level): f"backbone.fpn.extra_blocks.{level}" for level in ("p6", "p7")}
    for index, level in enumerate((3, 4, 5)):
        modules["fpn", f"lateral{level}"] = f"backbone.fpn.inner_blocks.{index}.0"
        modules["fpn", f"output{level}"] = f"backbone.fpn.layer_blocks.{index}.0"
    towers = {"classification_head": "cls_logits", "box_head": "bbox_reg"}
    for head, predictor in towers.items():
        theirs = f"head.{'regression_head' if head == 'box_head' else head}"
        for index in range(4):
            modules[head, f"conv{index}"] = f"{theirs}.conv.{index}.0"
            modules[head, f"norm{index}"] = f"{theirs}.conv.{index}.1"
        modules[head, "predict"] = f"{theirs}.{predictor}"
    return modules


def _current_name(name: str) -> str:
    """The name that an array has today; v1's published weights are older.

    Then a pyramid's convolution lay in no module of its own, and ReLUs lay between a tower's.
    """
    name = re.sub(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(\w+)$", r"\1.0.\2", name)
    tower = re.fullmatch(r"(head\.\w+_head\.conv)\.([0246])\.(\w+)", name)
    return f"{tower[1]}.{int(tower[2]) // 2}.0.{tower[3]}" if tower else name


# torchvision builds v1 with frozen norms whose epsilon is 1e-5, and sets it to 0 for the weights
# that it publishes: they were trained so.
TORCHVISION_V1 = Format(
    name="torchvision_v1",
    backbone=_detector_backbone,
    modules=_modules(),
    coco_outputs=COCO_IDS,
    num_coco_outputs=91,  # an output's number is the id in COCO
    ratio_outer=True,
    has_counters=False,  # frozen norms have none, and loading a plain state dict asks for none
    is_unused=is_unused,
    current_name=_current_name,
    model={
        "stride_in_1x1": False,
        "norm": "frozen_batch",
        "norm_epsilon": 0.0,
        "p6_from": "p5",
        "head_norm": "none",
    },
    input=TORCHVISION_INPUT,
)
TORCHVISION_V2 = TORCHVISION_V1._replace(
    name="torchvision_v2",
    has_counters=True,
    model={
        "stride_in_1x1": False,
        "norm": "batch",
        "norm_epsilon": 1e-5,
        "p6_from": "c5",
        "head_norm": "group",
    },
)
