"""detectron2's RetinaNet as our detector and back, and backbones by its names as ours.

Such backbones are those that its converter makes of torchvision's classifiers; MSRA's, which its
own configs start from, have Caffe2's names (msra.py). What a network with converted ones must be
and be fed is torchvision's: TORCHVISION_MODEL, TORCHVISION_INPUT.
"""

from collections.abc import Mapping

import numpy as np

from retinanet_jax.weights import msra, resnet
from retinanet_jax.weights.detectors import NUM_COCO_CLASSES, Format
from retinanet_jax.weights.resnet import Layer, Path
from retinanet_jax.weights.torchvision import NORM

# The classifier.
CLASSIFIER = ("stem.fc.weight", "stem.fc.bias")


def backbone(arrays: Mapping[str, np.ndarray], *, architecture: str, norm: str) -> dict[str, dict]:
    """Return {"params", "batch_stats"} for the detector's `backbone`, from a converted classifier.

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
        whose="detectron2's",
    )


def names(architecture: str, prefix: str = "") -> dict[Path, str]:
    """Return their name of each array of our backbone, by its path there.

    `prefix` is what a detector's state dict puts before ("backbone.bottom_up.").
    """
    return resnet.names(architecture, _name, prefix)


def is_unused(name: str) -> bool:
    """Whether a network has no use for an array of these files.

    Beside classifiers and counters of batches those are what older detectors' files hold of the
    anchors and of the pixels' mean and deviation: in ours the config says them.
    """
    return (
        name in (*CLASSIFIER, "pixel_mean", "pixel_std")
        or name.startswith("anchor_generator.cell_anchors.")
        or name.endswith(".num_batches_tracked")
    )


def _name(layer: Layer, leaf: str) -> str:
    """Their name of a layer's leaf."""
    block = "stem." if layer.stage == 1 else f"res{layer.stage}.{layer.block}."
    convolution = block + (f"conv{layer.index}" if layer.index else "shortcut")
    return f"{convolution}.weight" if leaf == "kernel" else f"{convolution}.norm.{NORM[leaf]}"


def _detector_backbone(architecture: str) -> dict[Path, str]:
    return names(architecture, "backbone.bottom_up.")


def _modules() -> dict[Path, str]:
    """(part, layer) of ours -> their module."""
    modules = {("fpn", level): f"backbone.top_block.{level}" for level in ("p6", "p7")}
    for level in (3, 4, 5):
        modules["fpn", f"lateral{level}"] = f"backbone.fpn_lateral{level}"
        modules["fpn", f"output{level}"] = f"backbone.fpn_output{level}"
    towers = {"classification_head": ("cls_subnet", "cls_score")}
    towers["box_head"] = ("bbox_subnet", "bbox_pred")
    for head, (tower, predictor) in towers.items():
        # Every other of a tower's modules is a ReLU.
        modules |= {(head, f"conv{index}"): f"head.{tower}.{2 * index}" for index in range(4)}
        modules[head, "predict"] = f"head.{predictor}"
    return modules


# The published ones start from MSRA's weights.
DETECTRON2 = Format(
    name="detectron2",
    backbone=_detector_backbone,
    modules=_modules(),
    coco_outputs=tuple(range(NUM_COCO_CLASSES)),
    num_coco_outputs=NUM_COCO_CLASSES,
    ratio_outer=False,
    has_counters=False,  # its frozen norms refuse them, and its batch norms do not ask
    is_unused=is_unused,
    current_name=str,
    model={**msra.MSRA_MODEL, "norm": "frozen_batch", "p6_from": "c5", "head_norm": "none"},
    input=msra.MSRA_INPUT,
)
