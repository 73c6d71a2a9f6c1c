"""Networks that are no RetinaNet of torchvision or detectron2, recognized by the names of arrays.

Users give the file of another network by mistake, or expect that any RetinaNet can be read. A name
that only one network has shows which network it is.
"""

import re
from collections.abc import Iterable

from retinanet_jax.weights.unpickle import MAX_LENGTH

FCOS = r"bbox_ctrness|centerness|\bctrness"
# A part of a name -> the network that has it. The first one that occurs decides.
NETWORKS = (
    (r"roi_heads\.(mask_|.*mask)", "Mask R-CNN"),
    (r"roi_heads\.keypoint", "Keypoint R-CNN"),
    (r"roi_heads\.|rpn\.head\.|rpn_head\.|\bRCNN_", "Faster R-CNN"),
    (FCOS, "FCOS"),
    (r"bbox_head\.retina_(cls|reg)", "the RetinaNet of MMDetection"),
    (r"bbox_head\.", "a detector of MMDetection"),
    (r"(regression|classification)Model\.", "the RetinaNet of yhenon/pytorch-retinanet"),
    (r"backbones\.\w+\.features\.", "the RetinaNet of NVIDIA/retinanet-examples"),
    (r"loc_head\.", "the RetinaNet of kuangliu/pytorch-retinanet"),
    (r"pyramid_(regression|classification)|regression_submodel", "a RetinaNet of Keras"),
    (r"classification_head\.module_list", "SSD"),
    (r"class_embed\.|bbox_embed\.|transformer\.(en|de)coder", "DETR"),
    (r"model\.\d+\.(cv\d|m|conv|bn|dfl)\.", "YOLO"),
    (r"class_net\.|box_net\.", "EfficientDet"),
    (r"aux_classifier\.|classifier\.0\.convs", "a segmentation network"),
    (r"(^|\.)(vit|blocks\.\d+\.attn|encoder\.layers?)[._]", "a transformer"),
    (r"(^|\.)features\.\d+\.", "a network without a ResNet"),
)
# Parts of the names of the RetinaNets that are read, and of any ResNet.
RETINANET = r"(^|\.)head\.(classification_head\.cls_logits|cls_score)\."
RESNET = r"(^|\.)(layer1|res2)\.0\.conv1\.weight$"


def refuse(names: Iterable[str]) -> None:
    """Raise ValueError if arrays of these names are of another network, and it is known which."""
    names = list(names)

    def first(pattern: str) -> str:
        return next(filter(re.compile(pattern).search, names), "")[:MAX_LENGTH]

    if first(RETINANET) and not first(FCOS):  # FCOS has its names, and more
        return
    for pattern, network in NETWORKS:
        name = first(pattern)
        if name:
            raise ValueError(
                f"these are weights of {network}, as {name} shows; give those of a RetinaNet that "
                "torchvision or detectron2 trained."
            )
    if first(RESNET) and not first("fpn"):
        raise ValueError(
            "these are weights of a ResNet without the heads of a detector; give those of a "
            "RetinaNet, or train with these: --config.init.source=torchvision "
            "--config.init.path=FILE."
        )
