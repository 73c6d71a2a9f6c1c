"""The formats of detectron2's RetinaNet and of the backbones that its converter writes.

The converter renames the arrays of torchvision's classifiers, so a network with such a backbone
needs TORCHVISION_MODEL and TORCHVISION_INPUT. MSRA's weights, which detectron2's own configs start
from, have Caffe2's names (msra.py).
"""

from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.weights import msra
from retinanet_jax.weights.detectors import DetectorFormat
from retinanet_jax.weights.names import detectron2_module, detectron2_name
from retinanet_jax.weights.resnet import BackboneFormat


def is_unused(name: str) -> bool:
    """Whether a network does not need an array of these files.

    Unused are the classifier's last layer, the norms' numbers of batches and, in the files of older
    detectors, the anchors and the pixels' mean and deviation, which are in our config.
    """
    return (
        name in ("stem.fc.weight", "stem.fc.bias", "pixel_mean", "pixel_std")
        or name.startswith("anchor_generator.cell_anchors.")
        or name.endswith(".num_batches_tracked")
    )


CONVERTED = BackboneFormat("detectron2", detectron2_name, is_unused)

# The published detectors start from MSRA's weights.
DETECTRON2 = DetectorFormat(
    name="detectron2",
    backbone=CONVERTED,
    backbone_prefix="backbone.bottom_up.",
    module_of=detectron2_module,
    coco_outputs=tuple(range(len(COCO_CATEGORIES))),
    num_coco_outputs=len(COCO_CATEGORIES),
    has_background=False,
    ratio_outer=False,
    counted_norms=(),  # its frozen norms reject counters, and its batch norms do not require them
    p6_from_equal_channels="c5",
    current_name=str,
    model={**msra.MSRA_MODEL, "norm": "frozen_batch", "p6_from": "c5", "head_norm": "none"},
    input=msra.MSRA_INPUT,
)
