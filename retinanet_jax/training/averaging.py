"""The moving average of a network's variables, which is evaluated instead of the latest ones."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@jax.named_scope("optimizer")
def update_average(average: Any, variables: Any, step: Int[Array, ""], decay: float) -> Any:
    """Return the moving average after one more step.

    The decay of a step is the lesser of `decay` and (1 + step) / (10 + step), as in TensorFlow
    (https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage), so that the
    first variables are soon forgotten.

    Args:
        average: The moving average before the step, a tree of arrays.
        variables: The variables after the step, the same tree.
        step: Number of steps done before it.
        decay: The weight of the earlier average after many steps, at least 0 and less than 1.
    """
    weight = jnp.maximum(1 - decay, 9 / (10 + step.astype(jnp.result_type(float))))
    # In this form, arrays that never change remain equal to their average, bit for bit.
    return jax.tree.map(
        lambda mean, x: mean + weight.astype(x.dtype) * (x - mean), average, variables
    )
