"""The gradient of the loss of a batch, computed at once or in parts.

In parts, only the activations of one part are in memory. The counts of anchors that normalize the
loss do not depend on the parameters (with OHEM, only through a selection without a gradient), so
those of the whole batch are computed first, and the gradients of the parts add up to that of the
batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import network_input, valid_sizes
from retinanet_jax.models import Outputs, RetinaNet
from retinanet_jax.training.normalizers import LossTerms, loss_factors, weighted_losses
from retinanet_jax.training.objective import batch_loss, image_losses

# A function of (parameters, batch statistics, batch) that returns the network's outputs and the
# statistics after the batch.
Forward = Callable[[Any, Any, Batch], tuple[Outputs, Any]]


class BatchGradient(NamedTuple):
    """The gradient of the loss of a batch, and what was computed for it."""

    gradients: optax.Params
    outputs: Outputs
    terms: Any  # LossTerms
    batch_stats: dict[str, Any]  # after the batch


Gradient = Callable[[optax.Params, Any, Float[Array, "*groups"], Batch], BatchGradient]


def make_gradient(model: RetinaNet, config: ConfigDict) -> Gradient:
    """Return the pure function `(params, batch_stats, normalizer, batch) -> BatchGradient`.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        config: A run's config; with its optimizer.accumulate, the number of parts.
    """

    def forward(params: Any, batch_stats: Any, batch: Batch) -> tuple[Outputs, Any]:
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            network_input(batch, config, train=True),
            train=True,
            sizes=valid_sizes(batch),
            mutable=["batch_stats"],
        )
        return outputs, updated.get("batch_stats", {})

    method = gradient_at_once if config.optimizer.accumulate == 1 else gradient_in_parts
    return method(forward, config)


def gradient_at_once(forward: Forward, config: ConfigDict) -> Gradient:
    """Return the function that computes a gradient with the activations of the whole batch.

    Args:
        forward: The network.
        config: A run's config.
    """

    def gradient(
        params: optax.Params, batch_stats: Any, normalizer: Array, batch: Batch
    ) -> BatchGradient:
        def objective(params):
            outputs, updated = forward(params, batch_stats, batch)
            terms = batch_loss(outputs, batch, normalizer, config)
            return terms.total, (outputs, terms, updated)

        gradients, (outputs, terms, updated) = jax.grad(objective, has_aux=True)(params)
        return BatchGradient(gradients, outputs, terms, updated)

    return gradient


def gradient_in_parts(forward: Forward, config: ConfigDict) -> Gradient:
    """Return the function that computes a gradient as the sum of those of the parts of a batch.

    Batch norms use the statistics of each part, and update the running ones with each that has an
    image.

    Args:
        forward: The network.
        config: A run's config.
    """
    num_parts = config.optimizer.accumulate

    def gradient(
        params: optax.Params, batch_stats: Any, normalizer: Array, batch: Batch
    ) -> BatchGradient:
        def counts(part: Batch) -> tuple[Any, Any]:
            outputs, _ = forward(params, batch_stats, never_empty(part))
            losses = image_losses(outputs, part, config)
            return losses.num_foreground, losses.num_selected

        def add_part(sums: tuple[Any, Any], part: tuple[Batch, Any]) -> tuple[Any, Any]:
            gradients, batch_stats = sums
            examples, part_factors = part

            def objective(params):
                outputs, updated = forward(params, batch_stats, never_empty(examples))
                losses = image_losses(outputs, examples, config)
                terms = weighted_losses(losses, part_factors, config.loss)
                return terms[0], (outputs, terms, updated)

            new, (outputs, terms, updated) = jax.grad(objective, has_aux=True)(params)
            keep = functools.partial(jnp.where, jnp.any(examples.weights > 0))
            updated = jax.tree.map(keep, updated, batch_stats)
            return (jax.tree.map(jnp.add, gradients, new), updated), (outputs, terms)

        parts = split(batch, num_parts)
        # Without OHEM the compiler removes the network here, as nothing of it is used.
        num_foreground, num_selected = join(jax.lax.map(counts, parts))
        factors, updated_normalizer = loss_factors(
            num_foreground, num_selected, batch.weights, normalizer, config.loss
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        (gradients, updated), (outputs, terms) = jax.lax.scan(
            add_part, (zeros, batch_stats), (parts, split(factors, num_parts))
        )
        total, classification, box = map(jnp.sum, terms)
        num_foreground = jnp.sum(batch.weights * num_foreground)
        sums = LossTerms(total, classification, box, num_foreground, updated_normalizer)
        return BatchGradient(gradients, join(outputs), sums, updated)

    return gradient


def never_empty(part: Batch) -> Batch:
    """Return a part of a batch in which fillers are images, if it has nothing else.

    A batch norm has no statistics of no image, and NaN times a weight of 0 is NaN.
    """
    return part._replace(weights=jnp.where(jnp.any(part.weights > 0), part.weights, 1))


def split(batch: Any, num_parts: int) -> Any:
    """Return a tree of arrays with their first axis, the batch, split into (part, example).

    Example j * num_parts + a is example j of part a: where devices split the batch, each has as
    many examples of every part, and none is exchanged.

    Args:
        batch: A tree of arrays.
        num_parts: The number of parts, which divides the number of examples.
    """
    return jax.tree.map(lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch)


def join(parts: Any) -> Any:
    """Return a tree of arrays as it was before `split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)
