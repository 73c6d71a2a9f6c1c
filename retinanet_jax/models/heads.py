"""The subnets that predict classes and boxes from every pyramid level."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve, with_float32_results
from retinanet_jax.models.norm import make_norm
from retinanet_jax.models.padding import Masks, mask_of, zero_padding


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
        tower = [(self._tower_conv(index), self._tower_norm(index)) for index in range(self.depth)]
        predict = self._predict_conv()
        outputs = []
        for x in maps:
            for conv, norm in tower:
                x = norm(conv(zero_padding(x, masks)), mask=mask_of(x, masks))
                x = nn.relu(x)
            x = predict(zero_padding(x, masks))
            # Channels are anchor-major, so outputs are ordered row, column, anchor of the cell.
            outputs.append(x.reshape(x.shape[0], -1, self.outputs))
        return tuple(outputs)

    def _predict_conv(self) -> nn.Conv:
        """Return the final convolution; its results and its bias are in at least float32.

        Rounded to the 8 bits of bfloat16, many of an image's best scores would be ties.
        """
        changes = {}
        if self.dtype is not None and jnp.finfo(self.dtype).bits < 32:
            convolve = with_float32_results(self.convolve, self.dtype)
            changes = {"dtype": jnp.float32, "conv_general_dilated": convolve}
        features, bias = self.num_anchors * self.outputs, self._prior_logit()
        return self._conv("predict", features, bias=bias, **changes)

    def _tower_conv(self, index: int) -> nn.Conv:
        """Return a convolution of the tower."""
        return self._conv(f"conv{index}", self.channels, bias=0.0 if self.norm == "none" else None)

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

    def _conv(self, name: str, features: int, *, bias: float | None, **changes: Any) -> nn.Conv:
        """Return a 3x3 convolution with this initial bias; None means without bias."""
        options = {"dtype": self.dtype, "conv_general_dilated": self.convolve} | changes
        return nn.Conv(
            features,
            (3, 3),
            padding=((1, 1), (1, 1)),
            use_bias=bias is not None,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(bias or 0.0),
            name=name,
            **options,
        )
