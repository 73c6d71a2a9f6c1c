"""ResNet (https://arxiv.org/abs/1512.03385) and ResNeXt (https://arxiv.org/abs/1611.05431).

Both are used as feature extractors. The stem is stage 1, and stages 2 to 5 compute C2 to C5, the
maps of strides 4 to 32. Padding is explicit and symmetric, as the published weights require; XLA's
SAME would shift strided maps.
"""

from typing import Any

from flax import linen as nn
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.mixed_precision import promotion
from retinanet_jax.models.norm import make_norm
from retinanet_jax.models.padding import Masks, mask_of, zero_padding
from retinanet_jax.models.relu import relu, relu_of_sum

ARCHITECTURES = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "bottleneck": False},
    "resnet34": {"stage_sizes": (3, 4, 6, 3), "bottleneck": False},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "bottleneck": True},
    "resnet101": {"stage_sizes": (3, 4, 23, 3), "bottleneck": True},
    "resnet152": {"stage_sizes": (3, 8, 36, 3), "bottleneck": True},
    "resnext50_32x4d": {
        "stage_sizes": (3, 4, 6, 3),
        "bottleneck": True,
        "groups": 32,
        "width_per_group": 4,
    },
    "resnext101_32x4d": {
        "stage_sizes": (3, 4, 23, 3),
        "bottleneck": True,
        "groups": 32,
        "width_per_group": 4,
    },
    "resnext101_32x8d": {
        "stage_sizes": (3, 4, 23, 3),
        "bottleneck": True,
        "groups": 32,
        "width_per_group": 8,
    },
    "resnext101_64x4d": {
        "stage_sizes": (3, 4, 23, 3),
        "bottleneck": True,
        "groups": 64,
        "width_per_group": 4,
    },
}


def stage_of(name: str) -> int:
    """Return the stage that a module of the backbone belongs to: 1 for the stem, 2 for C2, ...

    Args:
        name: The module's name, such as "stem_conv" or "stage2_block0".
    """
    stage = name.split("_")[0]
    return 1 if stage == "stem" else int(stage.removeprefix("stage"))


def _conv(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    dtype: DTypeLike | None,
    convolve: Convolve | None = None,
    name: str,
) -> nn.Conv:
    """Return a convolution without bias, since a norm follows, padded by kernel // 2.

    Its initialization is He's (https://arxiv.org/abs/1502.01852, section 2.2).
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((kernel // 2, kernel // 2),) * 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        promote_dtype=promotion(convolve),
        conv_general_dilated=convolve,
        name=name,
    )


class Block(nn.Module):
    """A residual block (https://arxiv.org/abs/1512.03385, section 4.1).

    If the input differs from the result in size or channels, the shortcut is a strided 1x1
    convolution with a norm.

    Attributes:
        features: Number of channels of the result.
        inner: Number of channels of the 3x3 convolutions.
        stride: Stride of the block.
        bottleneck: Whether the convolutions are 1x1, 3x3 and 1x1 instead of 3x3 and 3x3.
        groups: Number of groups of the bottleneck's 3x3 convolution.
        stride_in_1x1: As in `ResNet`.
        norm: As in `make_norm`.
        norm_epsilon: Added to the variance in each norm.
        dtype: The compute dtype; parameters are float32.
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
    """

    features: int
    inner: int
    stride: int
    bottleneck: bool
    groups: int
    stride_in_1x1: bool
    norm: str
    norm_epsilon: float
    dtype: DTypeLike | None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], train: bool, masks: Masks | None = None
    ) -> Float[Array, "B i j D"]:
        """Return relu(shortcut(x) + residual(x)).

        Args:
            x: A feature map.
            train: As in `make_norm`.
            masks: As in `ResNet`.
        """

        def conv_norm(x, index, features, kernel, *, stride=1, groups=1, zero_scale=False):
            conv_name = f"conv{index}" if index else "shortcut_conv"
            norm_name = f"norm{index}" if index else "shortcut_norm"
            x = _conv(
                features,
                kernel,
                stride=stride,
                groups=groups,
                dtype=self.dtype,
                convolve=self.convolve,
                name=conv_name,
            )(x)
            return make_norm(
                self.norm,
                channels=features,
                train=train,
                epsilon=self.norm_epsilon,
                dtype=self.dtype,
                zero_scale=zero_scale,
                name=norm_name,
            )(x, mask=mask_of(x, masks))

        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = relu(conv_norm(x, 1, self.inner, 1, stride=first), masks)
            y = relu(conv_norm(y, 2, self.inner, 3, stride=second, groups=self.groups))
            y = conv_norm(y, 3, self.features, 1, zero_scale=True)
        else:
            y = conv_norm(zero_padding(x, masks), 1, self.inner, 3, stride=self.stride)
            y = relu(y, masks)
            y = conv_norm(y, 2, self.features, 3, zero_scale=True)
        if x.shape != y.shape:
            x = conv_norm(x, 0, self.features, 1, stride=self.stride)
        return relu_of_sum(y, x)


class ResNet(nn.Module):
    """A ResNet or ResNeXt up to C5, without the pooling and classifier that follow.

    Attributes:
        stage_sizes: Number of blocks of stages 2 to 5.
        bottleneck: Whether blocks are bottlenecks; ResNet-18 and 34 have plain blocks.
        groups: Number of groups of the bottlenecks' 3x3 convolutions (ResNeXt's cardinality).
        width_per_group: Channels per group of stage 2 at a `width` of 64.
        width: Number of channels of the stem, which scales all stages; 64 in the papers.
        stride_in_1x1: Whether a bottleneck's stride is in its first 1x1 convolution, as in the
            authors' weights, instead of its 3x3 convolution, as in torchvision's.
        norm: As in `make_norm`.
        norm_epsilon: Added to the variance in each norm.
        frozen_stages: Number of frozen stages: 0 for none, 1 for the stem, 2 for the stem and the
            stage of C2, and so on up to 5. A frozen stage has zero gradients, and its batch norms
            use their running statistics without updating them.
        remat: Stages of which the activations inside each block are computed again in the backward
            pass, instead of being stored: "stem", "c2", "c3", "c4", "c5".
        dtype: The compute dtype; parameters are float32.
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
    """

    stage_sizes: tuple[int, ...]
    bottleneck: bool
    groups: int = 1
    width_per_group: int = 64
    width: int = 64
    stride_in_1x1: bool = False
    norm: str = "frozen_batch"
    norm_epsilon: float = 1e-5
    frozen_stages: int = 0
    remat: tuple[str, ...] = ()
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @property
    def stride(self) -> int:
        """The stride of the last map, C5: the stem's 4, doubled by every stage after the first."""
        return 4 * 2 ** (len(self.stage_sizes) - 1)

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool, masks: Masks | None = None
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Return (C3, C4, C5), the maps of strides 8, 16 and 32.

        Args:
            images: Normalized images, with zeros in their padding.
            train: Whether the batch norms of stages that are not frozen use the batch's statistics
                and update the running ones.
            masks: The valid pixels of the maps; None means that the images have no padding.

        Raises:
            ValueError: If `groups` does not divide the width of a stage, or `norm` is unknown.
        """
        stem = nn.remat(ResNet._stem, static_argnums=2) if "stem" in self.remat else ResNet._stem
        x = stem(self, images, train and self.frozen_stages < 1, masks)
        maps = []
        for stage, size in enumerate(self.stage_sizes, start=2):
            frozen = stage <= self.frozen_stages
            for index in range(size):
                stride = 2 if stage > 2 and index == 0 else 1
                x = self._block(stage, index, stride)(x, train and not frozen, masks)
            x = lax.stop_gradient(x) if frozen else x
            maps.append(x)
        return tuple(maps[1:])

    def _stem(
        self, images: Float[Array, "B H W 3"], train: bool, masks: Masks | None
    ) -> Float[Array, "B h4 w4 C"]:
        """Return the input of stage 2: a strided 7x7 convolution and a strided max pooling."""
        x = _conv(
            self.width, 7, stride=2, dtype=self.dtype, convolve=self.convolve, name="stem_conv"
        )(images)
        x = make_norm(
            self.norm,
            channels=self.width,
            train=train,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            name="stem_norm",
        )(x, mask=mask_of(x, masks))
        x = relu(x, masks)
        # Padded inside: a padded copy of the largest map would cost as much as the convolution.
        padding: Any = ((1, 1), (1, 1))  # Flax's annotation allows only a name
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        return lax.stop_gradient(x) if self.frozen_stages >= 1 else x

    def _block(self, stage: int, index: int, stride: int) -> Block:
        """Return block `index` of a stage."""
        planes = self.width * 2 ** (stage - 2)
        inner = planes * self.width_per_group * self.groups // 64 if self.bottleneck else planes
        if inner == 0 or inner % self.groups:
            raise ValueError(
                f"width={self.width} makes 3x3 convolutions of {inner} channels, which "
                f"groups={self.groups} does not divide; use a width that is a multiple of 64."
            )
        # Each block by itself: then the backward pass stores the inside of one block at a time.
        block = nn.remat(Block, static_argnums=2) if f"c{stage}" in self.remat else Block
        return block(
            features=planes * 4 if self.bottleneck else planes,
            inner=inner,
            stride=stride,
            bottleneck=self.bottleneck,
            groups=self.groups,
            stride_in_1x1=self.stride_in_1x1,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            convolve=self.convolve,
            name=f"stage{stage}_block{index}",
        )
