"""The formats of torchvision's ImageNet classifiers and of its two RetinaNets.

A network with a classifier's weights needs the settings TORCHVISION_MODEL and the input
TORCHVISION_INPUT, which hold for all versions of the weights.
"""

import re

from retinanet_jax.data.sources.coco import COCO_IDS
from retinanet_jax.weights.detectors import DetectorFormat
from retinanet_jax.weights.names import torchvision_module, torchvision_name
from retinanet_jax.weights.resnet import BackboneFormat

# torchvision's own numbers are 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 for pixels from 0 to 1;
# ours are from 0 to 255.
TORCHVISION_INPUT = {
    "order": "rgb",
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
}
# PyTorch's batch norm epsilon, and the stride in a bottleneck's 3x3 convolution.
TORCHVISION_MODEL = {"norm_epsilon": 1e-5, "stride_in_1x1": False}


def is_unused(name: str) -> bool:
    """Whether a backbone does not need an array of a classifier's state dict.

    Unused are the classifier's last layer, the numbers of batches that its norms have counted,
    which PyTorch itself ignores with a fixed momentum, and anchors that a wrapper has saved, which
    are in our config.
    """
    return (
        name in ("fc.weight", "fc.bias")
        or name.startswith("anchor_generator.cell_anchors.")
        or name.endswith(".num_batches_tracked")
    )


TORCHVISION = BackboneFormat("torchvision", torchvision_name, is_unused)


def _current_name(name: str) -> str:
    """Return the present name of an array; v1's published weights have older names.

    At that time a pyramid's convolution was in no module of its own, and a head's list of modules
    contained the ReLUs.
    """
    name = re.sub(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(\w+)$", r"\1.0.\2", name)
    conv = re.fullmatch(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)", name)
    return f"{conv[1]}.{int(conv[2]) // 2}.0.{conv[3]}" if conv else name


# torchvision builds v1 with frozen norms and an epsilon of 1e-5, which it sets to 0 for the weights
# that it publishes: they were trained so.
TORCHVISION_V1 = DetectorFormat(
    name="torchvision_v1",
    backbone=TORCHVISION,
    backbone_prefix="backbone.body.",
    module_of=torchvision_module,
    coco_outputs=COCO_IDS,
    num_coco_outputs=91,  # the index of an output is COCO's id
    has_background=True,
    ratio_outer=True,
    counted_norms=("batch",),  # frozen norms have no counters
    p6_from_equal_channels="p5",  # LastLevelP6P7 decides by the numbers of channels
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
    counted_norms=("batch", "frozen_batch"),  # its builder always trains the norms
    model={
        "stride_in_1x1": False,
        "norm": "batch",
        "norm_epsilon": 1e-5,
        "p6_from": "c5",
        "head_norm": "group",
    },
)
