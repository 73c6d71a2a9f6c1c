"""Normalization layers by name: frozen batch norm, batch norm, group norm.

All compute in at least float32 and return the compute dtype, so that statistics stay exact in
bfloat16. They are called as `norm(x, mask=mask)`; with a mask, statistics are those of the valid
pixels.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

FOLDED = "folded"  # the collection of what `fold_norms` reduces frozen norms to
STATISTICS = ("scale", "bias", "mean", "var")  # of a frozen norm
Mask = Bool[Array, "B h w 1"]  # True at valid pixels


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant scale, bias, mean and variance, for training with small batches.

    All four are variables of the "batch_stats" collection and not parameters, so that nothing
    counts, decays or optimizes them. Initially they are the identity; they are meant to be replaced
    by pretrained weights.

    Attributes:
        epsilon: Added to the variance.
        dtype: The dtype of the result; None means the dtype of the computation.
    """

    epsilon: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], *, mask: Mask | None = None
    ) -> Float[Array, "B h w C"]:
        """Return (x - mean) / sqrt(var + epsilon) * scale + bias, per channel.

        Args:
            x: A feature map.
            mask: Not used, since the statistics are constant.
        """
        if self.has_variable(FOLDED, "factor"):
            factor, offset = (self.get_variable(FOLDED, name) for name in ("factor", "offset"))
        else:
            initial = (jnp.ones, jnp.zeros, jnp.zeros, jnp.ones)
            statistics = (
                self.variable("batch_stats", name, make, (x.shape[-1],)).value
                for name, make in zip(STATISTICS, initial, strict=True)
            )
            factor, offset = fold_norm(*statistics, epsilon=self.epsilon)
        y = x * factor + offset  # in float32 or wider, like the statistics
        return y if self.dtype is None else y.astype(self.dtype)


def fold_norm(
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    mean: Float[Array, " C"],
    var: Float[Array, " C"],
    *,
    epsilon: float,
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Return the factor and the offset of each channel that a frozen batch norm amounts to.

    Args:
        scale: The norm's scale.
        bias: The norm's bias.
        mean: The constant mean.
        var: The constant variance.
        epsilon: Added to the variance.
    """
    factor = scale * lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor


def fold_norms(
    variables: Mapping[str, Any], *, epsilon: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the factors and offsets of all frozen norms, and the variables without these norms.

    Args:
        variables: A network's variables.
        epsilon: Added to the variances.

    Returns:
        A tree for the collection `FOLDED`, and a dictionary of the other collections.
    """

    def fold(statistics: Mapping[str, Any]) -> dict[str, Any]:
        factor, offset = fold_norm(**statistics, epsilon=epsilon)
        return {"factor": factor, "offset": offset}

    flat = flatten_dict(variables.get("batch_stats", {}))
    frozen = {path[:-1] for path in flat if path[-1] == "scale"}  # that of other norms is trained
    folded = {path: fold({name: flat[(*path, name)] for name in STATISTICS}) for path in frozen}
    others = {path: value for path, value in flat.items() if path[:-1] not in frozen}
    return unflatten_dict(folded), {**variables, "batch_stats": unflatten_dict(others)}


class GroupNorm(nn.Module):
    """Group norm (https://arxiv.org/abs/1803.08494).

    Unlike Flax's, it restricts the statistics to the valid pixels at no further cost: Flax sums the
    mask once for each channel.

    Attributes:
        num_groups: Number of groups, which divides the number of channels.
        epsilon: Added to the variance.
        dtype: The dtype of the result; None means the dtype of the computation.
        scale_init: Initializer of the scale.
    """

    num_groups: int
    epsilon: float
    dtype: DTypeLike | None = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], *, mask: Mask | None = None
    ) -> Float[Array, "B h w C"]:
        """Return (x - mean) / sqrt(var + epsilon) * scale + bias.

        The mean and the variance are those of each image and group of channels.

        Args:
            x: A feature map.
            mask: The valid pixels, which the statistics are taken from; None means all pixels.
        """
        batch, height, width, channels = x.shape
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if mask is None:
            valid, num_pixels = x, jnp.full(batch, height * width, x.dtype)
        else:
            # A filler has no valid pixel; its statistics are those of zeros.
            valid, num_pixels = x * mask, jnp.maximum(jnp.sum(mask, (1, 2, 3), dtype=x.dtype), 1)

        def group_means(y):
            sums = jnp.sum(y, (1, 2)).reshape(batch, self.num_groups, -1)
            means = jnp.mean(sums, axis=2) / num_pixels[:, None]
            return jnp.repeat(means, channels // self.num_groups, axis=1)  # B C

        mean = group_means(valid)
        var = jnp.maximum(group_means(jnp.square(valid)) - jnp.square(mean), 0)
        factor = scale * lax.rsqrt(var + self.epsilon)
        y = x * factor[:, None, None] + (bias - mean * factor)[:, None, None]
        return y if self.dtype is None else y.astype(self.dtype)


def make_norm(
    norm: str,
    *,
    channels: int,
    train: bool,
    epsilon: float,
    dtype: DTypeLike | None,
    momentum: float = 0.9,
    zero_scale: bool = False,
    name: str | None = None,
) -> nn.Module:
    """Return a normalization layer.

    Args:
        norm: "frozen_batch" (see `FrozenBatchNorm`), "batch" (https://arxiv.org/abs/1502.03167) or
            "group" (https://arxiv.org/abs/1803.08494) with 32 groups, or the largest smaller power
            of two that divides `channels`.
        channels: Number of channels that the layer normalizes.
        train: Whether batch norm uses the batch's statistics and updates the running ones.
        epsilon: Added to the variance.
        dtype: The dtype of the result; None means the dtype of the computation.
        momentum: Weight of the running statistics in an update; the weight of the batch's mean and
            biased variance is 1 - momentum.
        zero_scale: Whether a trained scale is initialized to 0 instead of 1. A frozen scale, which
            would stay at 0, is always initialized to 1.
        name: The layer's name in the variables.

    Raises:
        ValueError: If `norm` is unknown.
    """
    options: dict[str, Any] = dict(epsilon=epsilon, dtype=dtype, name=name)
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    match norm:
        case "frozen_batch":
            return FrozenBatchNorm(**options)
        case "batch":
            options.update(use_running_average=not train, momentum=momentum)
            return nn.BatchNorm(scale_init=scale_init, **options)
        case "group":
            return GroupNorm(math.gcd(32, channels), scale_init=scale_init, **options)
        case _:
            raise ValueError(f"norm={norm!r} is unknown; use one of frozen_batch, batch, group.")
