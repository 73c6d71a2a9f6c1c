"""The feature pyramid (FPN, https://arxiv.org/abs/1612.03144) with RetinaNet's P6 and P7."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.mixed_precision import promotion
from retinanet_jax.models.padding import Masks, zero_padding
from retinanet_jax.models.relu import relu


def upsample(x: Float[Array, "B h w C"]) -> Float[Array, "B 2*h 2*w C"]:
    """Return the map at twice its height and width, each value repeated (nearest neighbor)."""
    batch, height, width, channels = x.shape
    # Broadcast and reshape instead of `jax.image.resize`, because a gather can neither be exported
    # nor sharded over the height.
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class FPN(nn.Module):
    """The feature pyramid P3 to P7 of the backbone's maps C3 to C5.

    1x1 lateral convolutions, sums from the coarsest map down, and 3x3 output convolutions, with
    biases and without norms (https://arxiv.org/abs/1708.02002, section 4).

    Attributes:
        channels: Number of channels of every level.
        p6_from: Input of P6's strided 3x3 convolution: "c5" (the paper) or "p5" (torchvision v1).
            P7 is a strided 3x3 convolution of relu(P6).
        max_level: The coarsest level: 7, or 6 to leave out P7, or 5 to leave out P6 and P7.
        dtype: The compute dtype; parameters are float32.
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
    """

    channels: int = 256
    p6_from: str = "c5"
    max_level: int = 7
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...], masks: Masks | None = None
    ) -> tuple[Float[Array, "B _ _ D"], ...]:
        """Return (P3, ..., P`max_level`), each half the size of the previous, rounded up.

        Args:
            maps: (C3, C4, C5), each half the size of the previous, rounded up.
            masks: The valid pixels of the maps; None means that the images have no padding.

        Raises:
            ValueError: If `p6_from` or `max_level` is unknown.
        """
        if self.p6_from not in ("c5", "p5"):
            raise ValueError(f"p6_from={self.p6_from!r} is unknown; use 'c5' or 'p5'.")
        if self.max_level not in (5, 6, 7):
            raise ValueError(f"max_level={self.max_level} must be 5, 6 or 7.")
        laterals = [self._conv(f"lateral{i}", 1)(c) for i, c in enumerate(maps, start=3)]
        sums = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            _, height, width, _ = lateral.shape
            sums.insert(0, lateral + upsample(sums[0])[:, :height, :width])
        pyramid = [
            self._conv(f"output{i}", 3)(zero_padding(x, masks)) for i, x in enumerate(sums, start=3)
        ]
        if self.max_level >= 6:
            source = maps[-1] if self.p6_from == "c5" else pyramid[-1]
            pyramid.append(self._conv("p6", 3, stride=2)(zero_padding(source, masks)))
        if self.max_level == 7:
            pyramid.append(self._conv("p7", 3, stride=2)(relu(pyramid[-1], masks)))
        return tuple(pyramid)

    def _conv(self, name: str, kernel: int, stride: int = 1) -> nn.Conv:
        """Return a convolution with bias, padded by kernel // 2."""
        return nn.Conv(
            self.channels,
            (kernel, kernel),
            strides=(stride, stride),
            padding=((kernel // 2, kernel // 2),) * 2,
            # Uniform, variance 1 / fan_in: Caffe2's Xavier, PyTorch's kaiming_uniform(a=1).
            kernel_init=nn.initializers.lecun_uniform(),
            dtype=self.dtype,
            promote_dtype=promotion(self.convolve),
            conv_general_dilated=self.convolve,
            name=name,
        )
