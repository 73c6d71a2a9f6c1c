"""The mathematics of RetinaNet as pure functions of one image; batch them with `jax.vmap`."""

from retinanet_jax.core.anchors import cell_anchors, pyramid_anchors
from retinanet_jax.core.boxes import (
    MAX_LOG_SIZE,
    area,
    clip,
    decode,
    encode,
    giou,
    intersection,
    paired_iou,
    pairwise_iou,
    xywh_to_yxyx,
    xyxy_to_yxyx,
    yxyx_to_xywh,
    yxyx_to_xyxy,
)
from retinanet_jax.core.color import jitter_color
from retinanet_jax.core.hard_examples import hard_examples
from retinanet_jax.core.losses import (
    balanced_cross_entropy,
    classification_per_anchor,
    classification_sum,
    count_foreground,
    cross_entropy,
    ema_normalizer,
    focal_loss,
    focal_star,
    giou_loss,
    giou_sum,
    smooth_l1,
    smooth_l1_sum,
)
from retinanet_jax.core.matching import assign_targets, match, max_crowd_ioa
from retinanet_jax.core.nms import non_maximum_suppression, soft_non_maximum_suppression
from retinanet_jax.core.postprocess import Candidates, detect, select_candidates
from retinanet_jax.core.structures import BACKGROUND, IGNORE, Array, Detections, Targets

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "MAX_LOG_SIZE",
    "Array",
    "Candidates",
    "Detections",
    "Targets",
    "area",
    "assign_targets",
    "balanced_cross_entropy",
    "cell_anchors",
    "classification_per_anchor",
    "classification_sum",
    "clip",
    "count_foreground",
    "cross_entropy",
    "decode",
    "detect",
    "ema_normalizer",
    "encode",
    "focal_loss",
    "focal_star",
    "giou",
    "giou_loss",
    "giou_sum",
    "hard_examples",
    "intersection",
    "jitter_color",
    "match",
    "max_crowd_ioa",
    "non_maximum_suppression",
    "paired_iou",
    "pairwise_iou",
    "pyramid_anchors",
    "select_candidates",
    "smooth_l1",
    "smooth_l1_sum",
    "soft_non_maximum_suppression",
    "xywh_to_yxyx",
    "xyxy_to_yxyx",
    "yxyx_to_xywh",
    "yxyx_to_xyxy",
]
