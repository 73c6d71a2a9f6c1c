"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): backbone, pyramid, heads."""

from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.fpn import FPN
from retinanet_jax.models.heads import Head
from retinanet_jax.models.resnet import ARCHITECTURES, ResNet

SIZE_MULTIPLE = 32  # of C5: the coarsest map that is added to a finer one


class Outputs(NamedTuple):
    """Raw predictions, one array a level; anchors in row, column, anchor-of-the-cell order."""

    logits: tuple[Float[Array, "B a K"], ...]  # before the sigmoid
    deltas: tuple[Float[Array, "B a 4"], ...]  # (dy, dx, dh, dw) relative to the anchors


class RetinaNet(nn.Module, kw_only=True):
    """Class logits and box deltas for every anchor of P3 to P`max_level`.

    `backbone` names one of ARCHITECTURES; `norm`, `norm_epsilon`, `stride_in_1x1` and
    `frozen_stages` are the backbone's (see ResNet), `backbone_width` the width of its stem.
    `dtype` is the compute dtype (parameters stay float32); outputs have it too. `convolve` does the
    convolutions; None: `jax.lax.conv_general_dilated`.
    """

    num_classes: int
    num_anchors: int
    stride_in_1x1: bool
    norm: str
    norm_epsilon: float
    frozen_stages: int
    p6_from: str
    head_norm: str
    backbone: str = "resnet50"
    backbone_width: int = 64
    fpn_channels: int = 256
    max_level: int = 7
    head_depth: int = 4
    prior_probability: float = 0.01
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool) -> Outputs:
        """Predict from normalised images; `train` concerns the trained batch norms alone.

        Raises ValueError where H or W is no multiple of 32, and for unknown names of parts.
        """
        _check_image_size(images.shape[1:3])
        maps = self._backbone()(images, train)
        pyramid = FPN(
            self.fpn_channels,
            self.p6_from,
            self.max_level,
            dtype=self.dtype,
            convolve=self.convolve,
            name="fpn",
        )(maps)
        classify = self._head("classification_head", self.num_classes, self.prior_probability)
        regress = self._head("box_head", 4, None)
        return Outputs(classify(pyramid), regress(pyramid))

    def _backbone(self) -> ResNet:
        if self.backbone not in ARCHITECTURES:
            names = ", ".join(ARCHITECTURES)
            raise ValueError(f"backbone={self.backbone!r} is unknown; use one of {names}.")
        return ResNet(
            **ARCHITECTURES[self.backbone],
            width=self.backbone_width,
            stride_in_1x1=self.stride_in_1x1,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            frozen_stages=self.frozen_stages,
            dtype=self.dtype,
            convolve=self.convolve,
            name="backbone",
        )

    def _head(self, name: str, outputs: int, prior_probability: float | None) -> Head:
        return Head(
            outputs,
            self.num_anchors,
            depth=self.head_depth,
            channels=self.fpn_channels,
            norm=self.head_norm,
            prior_probability=prior_probability,
            dtype=self.dtype,
            convolve=self.convolve,
            name=name,
        )


def _check_image_size(image_size: tuple[int, ...]) -> None:
    # Otherwise a map twice the size of the coarser one would not be the finer one's size.
    fixed = tuple(max(1, -(-side // SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in image_size)
    if image_size != fixed:
        raise ValueError(
            f"image_size={image_size} must be divisible by the stride of C5 ({SIZE_MULTIPLE}); "
            f"try {fixed}."
        )
