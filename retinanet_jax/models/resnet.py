"""ResNet (He et al. 2015) and ResNeXt (Xie et al. 2016) as feature extractors.

Stages carry the number of the map they make: the stem is stage 1, then C2 to C5 at strides 4 to 32.
Padding is explicit and symmetric, as in the published weights; XLA's SAME would shift strided maps.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.norm import make_norm

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


def is_frozen(path: tuple[str, ...], frozen_stages: int) -> bool:
    """Whether the variable at `path` of the detector's params belongs to a frozen stage.

    `path` starts at the detector's root, e.g. ("backbone", "stage2_block0", "conv1", "kernel").
    Gradients there are zero, but an optimizer with weight decay must be told to leave it alone.
    """
    if path[0] != "backbone":
        return False
    stage = path[1].split("_")[0]  # "stem" or "stageN"
    return (1 if stage == "stem" else int(stage.removeprefix("stage"))) <= frozen_stages


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
    """Return a convolution without bias (a norm follows), He-initialised, padded by kernel // 2."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((kernel // 2, kernel // 2),) * 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


class Block(nn.Module):
    """A residual block: 1x1, 3x3, 1x1 where `bottleneck`, else two 3x3.

    `inner` is the width of the 3x3 convolutions, `features` that of the result. Where the input
    differs from the result in size or width, the shortcut is a strided 1x1 convolution with norm.
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
    def __call__(self, x: Float[Array, "B h w C"], train: bool) -> Float[Array, "B i j D"]:
        """Return relu(shortcut(x) + residual(x)), `stride` times smaller."""

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
            )(x)

        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = nn.relu(conv_norm(x, 1, self.inner, 1, stride=first))
            y = nn.relu(conv_norm(y, 2, self.inner, 3, stride=second, groups=self.groups))
            y = conv_norm(y, 3, self.features, 1, zero_scale=True)
        else:
            y = nn.relu(conv_norm(x, 1, self.inner, 3, stride=self.stride))
            y = conv_norm(y, 2, self.features, 3, zero_scale=True)
        if x.shape != y.shape:
            x = conv_norm(x, 0, self.features, 1, stride=self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The trunk of a ResNet or ResNeXt, up to C5; no pooling, no classifier.

    `width` is the stem's (64 in the papers) and scales all stages. `stride_in_1x1` puts a stage's
    stride in the first 1x1 (the authors' weights) and not in the 3x3; it concerns bottlenecks
    alone. `frozen_stages` counts from the stem: 0 none, 1 the stem, 2 the stem and C2, to 5.
    A frozen stage gets no gradient, and its batch norms keep and use the running statistics.
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
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool
    ) -> tuple[
        Float[Array, "B h8 w8 C3"], Float[Array, "B h16 w16 C4"], Float[Array, "B h32 w32 C5"]
    ]:
        """Return (C3, C4, C5) of normalised images: strides 8, 16, 32.

        Raises ValueError for widths that the groups do not divide and for unknown norms.
        """
        x = self._stem(images, train and self.frozen_stages < 1)
        maps = []
        for stage, size in enumerate(self.stage_sizes, start=2):
            frozen = stage <= self.frozen_stages
            for index in range(size):
                stride = 2 if stage > 2 and index == 0 else 1
                x = self._block(stage, index, stride)(x, train and not frozen)
            x = lax.stop_gradient(x) if frozen else x
            maps.append(x)
        return tuple(maps[1:])

    def _stem(self, images: Float[Array, "B H W 3"], train: bool) -> Float[Array, "B h4 w4 C"]:
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
        )(x)
        x = nn.relu(x)
        # After the ReLU zeros around the map are as good as minus infinity.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        return lax.stop_gradient(x) if self.frozen_stages >= 1 else x

    def _block(self, stage: int, index: int, stride: int) -> Block:
        planes = self.width * 2 ** (stage - 2)
        inner = planes * self.width_per_group * self.groups // 64 if self.bottleneck else planes
        if inner == 0 or inner % self.groups:
            raise ValueError(
                f"width={self.width} makes 3x3 convolutions of {inner} channels, which "
                f"groups={self.groups} does not divide; use a multiple of 64."
            )
        return Block(
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
