"""Flax modules: parameters and nothing else, no losses, anchors or configuration objects."""

from retinanet_jax.models.convolution import conv_general_dilated as conv_general_dilated
from retinanet_jax.models.fpn import FPN as FPN
from retinanet_jax.models.heads import Head as Head
from retinanet_jax.models.norm import FrozenBatchNorm as FrozenBatchNorm
from retinanet_jax.models.norm import make_norm as make_norm
from retinanet_jax.models.resnet import ARCHITECTURES as ARCHITECTURES
from retinanet_jax.models.resnet import ResNet as ResNet
from retinanet_jax.models.resnet import is_frozen as is_frozen
from retinanet_jax.models.retinanet import Outputs as Outputs
from retinanet_jax.models.retinanet import RetinaNet as RetinaNet
