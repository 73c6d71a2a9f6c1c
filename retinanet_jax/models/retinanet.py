"""RetinaNet (https://arxiv.org/abs/1708.02002): backbone, feature pyramid and heads."""

from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.fpn import FPN
from retinanet_jax.models.heads import Head
from retinanet_jax.models.padding import Masks, level_masks
from retinanet_jax.models.resnet import ARCHITECTURES, ResNet, stage_of

# The names of the parts that can be frozen, and of their modules.
MODULES = {"fpn": "fpn", "class_head": "classification_head", "box_head": "box_head"}


def is_frozen(
    path: tuple[str, ...], frozen_stages: int, frozen_parts: tuple[str, ...] = ()
) -> bool:
    """Return whether a parameter is frozen.

    Such a parameter has a gradient of zero, but weight decay would still change it.

    Args:
        path: Path in the network's parameters, such as (
            "backbone", "stage2_block0", "conv1", "kernel").
        frozen_stages: As in `ResNet`.
        frozen_parts: As in `RetinaNet`.
    """
    if path[0] == "backbone":
        return stage_of(path[1]) <= frozen_stages
    return path[0] in {MODULES[part] for part in frozen_parts}


class Outputs(NamedTuple):
    """The raw predictions, one array per pyramid level, in the order of the level's anchors."""

    logits: tuple[Float[Array, "B _ K"], ...]  # before the sigmoid
    deltas: tuple[Float[Array, "B _ 4"], ...]  # (dy, dx, dh, dw) relative to the anchors


class RetinaNet(nn.Module, kw_only=True):
    """The network that predicts class logits and box deltas for every anchor of P3 to P`max_level`.

    Attributes:
        num_classes: K, the number of classes.
        num_anchors: Number of anchors per cell.
        stride_in_1x1: The backbone's, as in `ResNet`.
        norm: The backbone's, as in `make_norm`.
        norm_epsilon: The backbone's, added to the variance in each norm.
        frozen_stages: The backbone's, as in `ResNet`.
        p6_from: The pyramid's, as in `FPN`.
        head_norm: The heads', as in `Head`.
        padding: What the padding of the images changes: nothing ("masked"), or, as in torchvision
            and detectron2, the outputs near it and the statistics of the norms ("plain").
        frozen_parts: Parts of which the parameters are constants: "fpn", "class_head", "box_head".
        remat: Parts of which the activations are computed again in the backward pass, instead of
            being stored: "stem", "c2", ..., "c5", "fpn", "heads".
        backbone: A name of ARCHITECTURES.
        backbone_width: Number of channels of the backbone's stem.
        fpn_channels: Number of channels of the pyramid and the heads.
        max_level: The pyramid's coarsest level, as in `FPN`.
        head_depth: Number of convolutions in the tower of each head.
        prior_probability: Initial probability of every class of every anchor.
        dtype: The dtype of the computation; parameters are float32, and outputs are in at least
            float32.
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
    """

    num_classes: int
    num_anchors: int
    stride_in_1x1: bool
    norm: str
    norm_epsilon: float
    frozen_stages: int
    p6_from: str
    head_norm: str
    padding: str
    frozen_parts: tuple[str, ...] = ()
    remat: tuple[str, ...] = ()
    backbone: str = "resnet50"
    backbone_width: int = 64
    fpn_channels: int = 256
    max_level: int = 7
    head_depth: int = 4
    prior_probability: float = 0.01
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        train: bool,
        sizes: Float[Array, "B 2"] | None = None,
    ) -> Outputs:
        """Return the predictions, which mean nothing in the padding.

        Args:
            images: Normalized images, with zeros in their padding.
            train: As in `ResNet`; only batch norms depend on it.
            sizes: Height and width of each image without its padding, or 0 for a filler. None means
                that the images have no padding.

        Raises:
            ValueError: If `backbone`, `norm`, `p6_from`, `max_level`, `head_norm` or `padding` is
                unknown.
        """
        masks = self._masks(images, sizes)
        remat = self.remat if train else ()  # otherwise there is no backward pass
        maps = self._backbone(remat)(images, train, masks)
        pyramid = self._part(FPN, "fpn", is_recomputed="fpn" in remat)(
            self.fpn_channels,
            self.p6_from,
            self.max_level,
            dtype=self.dtype,
            convolve=self.convolve,
            name="fpn",
        )(maps, masks)
        heads = "heads" in remat
        classify = self._head("class_head", self.num_classes, self.prior_probability, heads)
        regress = self._head("box_head", 4, None, heads)
        return Outputs(classify(pyramid, masks), regress(pyramid, masks))

    def _masks(
        self, images: Float[Array, "B H W 3"], sizes: Float[Array, "B 2"] | None
    ) -> Masks | None:
        """Return the masks of the valid pixels, or None if the padding is not masked."""
        if self.padding not in ("masked", "plain"):
            raise ValueError(f"padding={self.padding!r} is unknown; use 'masked' or 'plain'.")
        if self.padding == "plain" or sizes is None:
            return None
        _, height, width, _ = images.shape
        return level_masks(sizes, (height, width), self.max_level)

    def _backbone(self, remat: tuple[str, ...]) -> ResNet:
        """Return the backbone."""
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
            remat=remat,
            dtype=self.dtype,
            convolve=self.convolve,
            name="backbone",
        )

    def _head(
        self, part: str, outputs: int, prior_probability: float | None, is_recomputed: bool
    ) -> Head:
        """Return a head with `outputs` values per anchor."""
        return self._part(Head, part, is_recomputed=is_recomputed)(
            outputs,
            self.num_anchors,
            depth=self.head_depth,
            channels=self.fpn_channels,
            norm=self.head_norm,
            prior_probability=prior_probability,
            dtype=self.dtype,
            convolve=self.convolve,
            name=MODULES[part],
        )

    def _part(self, module: type[nn.Module], part: str, *, is_recomputed: bool) -> Any:
        """Return the class of a part's module, which may be frozen or recomputed.

        Args:
            module: The class of the module itself.
            part: The part's name in `frozen_parts`.
            is_recomputed: Whether its activations are computed again in the backward pass.
        """
        if part in self.frozen_parts:
            module = nn.map_variables(
                module, "params", jax.lax.stop_gradient, init=self.is_initializing()
            )
        return nn.remat(module) if is_recomputed else module
