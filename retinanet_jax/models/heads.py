"""The subnets that predict from every pyramid level (Lin et al. 2017, section 4)."""

import math

from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from retinanet_jax.models.convolution import Convolve
from retinanet_jax.models.norm import make_norm


class Head(nn.Module):
    """A tower of 3x3 convolutions and a predicting one, shared by all levels.

    `outputs` numbers come out for each of `num_anchors` anchors of a cell. `norm` is "none" or
    "group" (then the tower has no bias: the norm brings its own). `prior_probability` is what the
    sigmoid of every output starts at (the paper's pi); None starts the outputs at 0.
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
        self, maps: tuple[Float[Array, "B h w C"], ...]
    ) -> tuple[Float[Array, "B A O"], ...]:
        """Return each level's outputs, in the anchors' order: row, column, anchor of the cell.

        Raises ValueError for another `norm` and for a prior outside (0, 1).
        """
        if self.norm not in ("none", "group"):
            raise ValueError(f"head norm={self.norm!r} is unknown; use 'none' or 'group'.")
        layers = []
        for index in range(self.depth):
            layers += self._tower_layers(index)
        layers.append(self._conv("predict", self.num_anchors * self.outputs, bias=self._prior()))
        return tuple(self._one_level(x, layers) for x in maps)

    def _one_level(self, x, layers) -> Float[Array, "B A O"]:
        for layer in layers:
            x = layer(x)
        # Channels are anchor-major, so that rows, columns and anchors of a cell follow each other.
        return x.reshape(x.shape[0], -1, self.outputs)

    def _tower_layers(self, index: int) -> list:
        if self.norm == "none":
            return [self._conv(f"conv{index}", self.channels), nn.relu]
        norm = make_norm(
            self.norm,
            channels=self.channels,
            train=False,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            name=f"norm{index}",
        )
        return [self._conv(f"conv{index}", self.channels, bias=None), norm, nn.relu]

    def _prior(self) -> float:
        """The logit of the prior probability; 0 where none is given."""
        p = self.prior_probability
        if p is None:
            return 0.0
        if not 0 < p < 1:
            raise ValueError(
                f"prior_probability={p} must lie between 0 and 1; the paper's is 0.01."
            )
        return -math.log((1 - p) / p)

    def _conv(self, name: str, features: int, bias: float | None = 0.0) -> nn.Conv:
        return nn.Conv(
            features,
            (3, 3),
            padding=((1, 1), (1, 1)),
            use_bias=bias is not None,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(bias or 0.0),
            dtype=self.dtype,
            conv_general_dilated=self.convolve,
            name=name,
        )
