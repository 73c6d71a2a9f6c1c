"""The subnets that predict classes and boxes from every pyramid level."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.lax import conv_general_dilated
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.mixed_precision import promotion, with_float32_results
from retinanet_jax.models.norm import make_norm
from retinanet_jax.models.padding import Masks, mask_of, zero_padding
from retinanet_jax.models.relu import relu


class Head(nn.Module):
    """A tower of 3x3 convolutions and a final one that predicts, applied to all pyramid levels.

    See https://arxiv.org/abs/1708.02002, section 4, "Classification Subnet" and "Box Regression
    Subnet"; the initialization is that of section 4.1.

    Attributes:
        outputs: Number of outputs per anchor: the number of classes, or 4 for the deltas of a box.
        num_anchors: Number of anchors per cell.
        depth: Number of convolutions in the tower.
        channels: Number of channels of the tower.
        norm: Norm after each convolution of the tower: "none" or "group". With a norm the
            convolutions have no bias, since the norm has one.
        norm_epsilon: Added to the variance in the norm.
        prior_probability: Initial value of the sigmoid of every output (the paper's pi); None
            initializes the outputs to 0.
        dtype: The compute dtype; parameters are float32, and outputs are in at least float32.
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
    """

    outputs: int
    num_anchors: int
    depth: int = 4
    channels: int = 256
    norm: str = "none"
    norm_epsilon: float = 1e-5
    prior_probability: float | None = None
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ C"], ...], masks: Masks | None = None
    ) -> tuple[Float[Array, "B _ O"], ...]:
        """Return each level's outputs in the order of its anchors: row, column, anchor of the cell.

        Args:
            maps: The pyramid, one map per level.
            masks: The valid pixels of the maps; None means that the images have no padding.

        Raises:
            ValueError: If `norm` is unknown or `prior_probability` is not between 0 and 1.
        """
        if self.norm not in ("none", "group"):
            raise ValueError(f"head norm={self.norm!r} is unknown; use 'none' or 'group'.")
        maps = tuple(zero_padding(x, masks) for x in maps)
        for index in range(self.depth):
            bias = 0.0 if self.norm == "none" else None
            conv = self._conv(f"conv{index}", self.channels, bias, self.convolve)
            norm = self._tower_norm(index)
            maps = tuple(relu(norm(x, mask=mask_of(x, masks)), masks) for x in conv(maps))
        features, bias = self.num_anchors * self.outputs, self._prior_logit()
        predict = self._conv("predict", features, bias, self._predict_convolve())
        # Channels are anchor-major, so outputs are ordered row, column, anchor of the cell.
        return tuple(x.reshape(x.shape[0], -1, self.outputs) for x in predict(maps))

    def _predict_convolve(self) -> Convolve | None:
        """Return the function of the final convolution; its results are in at least float32.

        Rounded to the 8 bits of bfloat16, many of an image's best scores would be ties.
        """
        if self.dtype is None or jnp.finfo(self.dtype).bits >= 32:
            return self.convolve
        return with_float32_results(self.convolve, self.dtype)

    def _tower_norm(self, index: int) -> Callable[..., Array]:
        """Return the norm that follows a convolution of the tower, or the identity."""
        if self.norm == "none":
            return lambda x, mask: x
        return make_norm(
            self.norm,
            channels=self.channels,
            train=False,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            name=f"norm{index}",
        )

    def _prior_logit(self) -> float:
        """Return the logit of the prior probability, or 0 if there is none."""
        p = self.prior_probability
        if p is None:
            return 0.0
        if not 0 < p < 1:
            raise ValueError(
                f"prior_probability={p} must lie between 0 and 1; the paper's is 0.01."
            )
        return -math.log((1 - p) / p)

    def _conv(
        self, name: str, features: int, bias: float | None, convolve: Convolve | None
    ) -> "SharedConv":
        """Return a 3x3 convolution with this initial bias; None means without bias."""
        return SharedConv(features, bias=bias, dtype=self.dtype, convolve=convolve, name=name)


class SharedConv(nn.Module):
    """A 3x3 convolution with one kernel for all pyramid levels.

    The kernel is converted to the compute dtype once. Were it converted for each level, as several
    calls of `nn.Conv` do, the devices would exchange a gradient of it for each level.

    Attributes:
        features: Number of output channels.
        bias: Initial bias; None means without bias.
        dtype: The compute dtype; parameters are float32.
        convolve: The convolution function; None means `jax.lax.conv_general_dilated`.
    """

    features: int
    bias: float | None = 0.0
    dtype: DTypeLike | None = None
    convolve: Convolve | None = None

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "B _ _ C"], ...]) -> tuple[Array, ...]:
        """Return the convolution of each level's map, in the dtype of the convolution's results.

        Args:
            maps: The pyramid, one map per level.
        """
        shape = (3, 3, maps[0].shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        first, kernel, *others = promotion(self.convolve)(
            maps[0], kernel, *maps[1:], dtype=self.dtype
        )
        convolve, dimensions = self.convolve or conv_general_dilated, ("NHWC", "HWIO", "NHWC")
        outputs = [
            convolve(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=dimensions)
            for x in (first, *others)
        ]
        if self.bias is None:
            return tuple(outputs)
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        bias = bias.astype(outputs[0].dtype)
        return tuple(x + bias for x in outputs)
