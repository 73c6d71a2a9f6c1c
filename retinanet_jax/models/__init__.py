"""The network as Flax modules, which contain parameters only: no losses, anchors or config."""

from retinanet_jax.models.convolution import CONVOLUTIONS
from retinanet_jax.models.fpn import FPN
from retinanet_jax.models.heads import Head
from retinanet_jax.models.mixed_precision import Float32Gradients
from retinanet_jax.models.norm import FOLDED, FrozenBatchNorm, fold_norms, make_norm
from retinanet_jax.models.padding import level_masks, valid_mask
from retinanet_jax.models.resnet import ARCHITECTURES, ResNet, stage_of
from retinanet_jax.models.retinanet import Outputs, RetinaNet, is_frozen

__all__ = [
    "ARCHITECTURES",
    "CONVOLUTIONS",
    "FOLDED",
    "FPN",
    "Float32Gradients",
    "FrozenBatchNorm",
    "Head",
    "Outputs",
    "ResNet",
    "RetinaNet",
    "fold_norms",
    "is_frozen",
    "level_masks",
    "make_norm",
    "stage_of",
    "valid_mask",
]
