"""Normalisation layers by name: frozen batch norm, batch norm, group norm.

All compute in at least float32 and return the compute dtype: statistics do not suffer in bfloat16.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, DTypeLike, Float

NORMS = ("frozen_batch", "batch", "group")


class FrozenBatchNorm(nn.Module):
    """Batch norm whose scale, bias, mean and var are constants, as in detectors on small batches.

    All four live in the "batch_stats" collection: they are neither parameters to count, nor to
    decay, nor to optimise. They start as the identity and are meant for imported weights.
    """

    epsilon: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Return (x - mean) / sqrt(var + epsilon) * scale + bias, by channel."""
        shape = (x.shape[-1],)
        scale = self.variable("batch_stats", "scale", jnp.ones, shape).value
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape).value
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        var = self.variable("batch_stats", "var", jnp.ones, shape).value
        factor = scale * lax.rsqrt(var + self.epsilon)
        y = x * factor + (bias - mean * factor)  # float32 or wider, as the statistics are
        return y if self.dtype is None else y.astype(self.dtype)


def make_norm(
    kind: str,
    *,
    channels: int,
    train: bool,
    epsilon: float,
    dtype: DTypeLike | None,
    momentum: float = 0.9,
    zero_scale: bool = False,
    name: str | None = None,
) -> nn.Module:
    """Return the layer that `kind` names ("frozen_batch", "batch", "group"), of `channels`.

    `train` makes batch norm use the batch's statistics and update the running ones, with weight
    1 - momentum (the biased variance). `zero_scale` starts a trained scale at 0; a frozen one
    could never leave it and starts at 1. Group norm has 32 groups, or the largest power of two
    below that divides `channels`. Raises ValueError for an unknown kind.
    """
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    if kind == "frozen_batch":
        return FrozenBatchNorm(epsilon, dtype, name=name)
    if kind == "batch":
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            scale_init=scale_init,
            name=name,
        )
    if kind == "group":
        groups = math.gcd(32, channels)
        return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)
    raise ValueError(f"norm={kind!r} is unknown; use one of {', '.join(NORMS)}.")
