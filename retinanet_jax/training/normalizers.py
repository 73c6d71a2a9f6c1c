"""The normalizers of the loss: what the sums over the anchors of each image are divided by.

`config.loss` names one, and the loss of a batch is the sum over its images of these sums times
factors, which depend on counts of anchors.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.config import unknown_choice
from retinanet_jax.core.structures import Array

NORMALIZERS = ("batch", "image", "ema")


class LossTerms(NamedTuple):
    """The loss of a batch, its two terms, and the counts that normalize them."""

    total: Float[Array, ""]
    classification: Float[Array, ""]
    box: Float[Array, ""]
    num_foreground: Float[Array, ""]  # anchors of the batch
    normalizer: Float[Array, "*groups"]  # the moving averages; changed only by "ema"


class ImageLosses(NamedTuple):
    """The sums over the anchors of each image, and the counts by which they are divided."""

    classification: Float[Array, " B"]
    box: Float[Array, " B"]
    num_foreground: Float[Array, " B"]
    num_selected: Int[Array, " B"] | None  # hard examples; None without OHEM


class LossFactors(NamedTuple):
    """What the sums of each image are multiplied by in the loss of a batch."""

    classification: Float[Array, " B"]
    box: Float[Array, " B"]


def normalizer_shape(config: ConfigDict) -> tuple[int, ...]:
    """Return the shape of the moving averages of the number of foreground anchors.

    It is () for one average of the whole batch. With loss.ema_images there is an average for each
    group of that many consecutive images, as in detectron2, where each process has its own images,
    average and loss, and the gradients are averaged over the processes.

    Args:
        config: A run's config; its `loss` and `data.batch_size` are used.

    Raises:
        ValueError: If the batch cannot be split into such groups.
    """
    images, batch_size = config.loss.ema_images, config.data.batch_size
    if images == 0:
        return ()
    if images < 0 or batch_size % images:
        raise ValueError(
            f"loss.ema_images={images} must divide data.batch_size={batch_size}; "
            "0 is the whole batch."
        )
    return (batch_size // images,)


def reduce_losses(
    class_sums: Float[Array, " B"],
    box_sums: Float[Array, " B"],
    num_foreground: Float[Array, " B"],
    num_selected: Int[Array, " B"] | None,
    weights: Float[Array, " B"],
    normalizer: Float[Array, "*groups"],
    loss: ConfigDict,
) -> LossTerms:
    """Return the loss of a batch from the sums over each image's anchors.

    Args:
        class_sums: Classification loss of each image.
        box_sums: Box loss of each image.
        num_foreground: Number of foreground anchors of each image, which normalizes both losses.
        num_selected: Number of hard examples of each image, which normalizes the classification
            loss instead with OHEM; None without OHEM.
        weights: 1 for each image of the dataset, 0 for a filler.
        normalizer: Moving averages of the number of foreground anchors before this batch, of all
            its images or of equal groups of them.
        loss: A run's `config.loss`.

    Raises:
        ValueError: If loss.normalizer is none of NORMALIZERS.
    """
    losses = ImageLosses(class_sums, box_sums, num_foreground, num_selected)
    factors, normalizer = loss_factors(num_foreground, num_selected, weights, normalizer, loss)
    terms = weighted_losses(losses, factors, loss)
    return LossTerms(*terms, jnp.sum(weights * num_foreground), normalizer)


def loss_factors(
    num_foreground: Float[Array, " B"],
    num_selected: Int[Array, " B"] | None,
    weights: Float[Array, " B"],
    normalizer: Float[Array, "*groups"],
    loss: ConfigDict,
) -> tuple[LossFactors, Float[Array, "*groups"]]:
    """Return the factors of each image's sums, and the moving averages after this batch.

    Args:
        num_foreground: As in `reduce_losses`.
        num_selected: As in `reduce_losses`.
        weights: As in `reduce_losses`.
        normalizer: As in `reduce_losses`.
        loss: A run's `config.loss`.

    Raises:
        ValueError: If loss.normalizer is none of NORMALIZERS.
    """

    def group_sums(counts: Float[Array, " B"] | Int[Array, " B"]) -> Float[Array, "*groups"]:
        return jnp.sum((weights * counts).reshape(*normalizer.shape, -1), axis=-1)

    if loss.normalizer == "ema":
        updated = core.ema_normalizer(
            normalizer, group_sums(num_foreground), momentum=loss.ema_momentum
        )
        normalizer = jnp.where(group_sums(jnp.ones_like(weights)) > 0, updated, normalizer)
    class_factors = box_factors = image_factors(
        num_foreground, weights, normalizer, method=loss.normalizer
    )
    if num_selected is not None:
        # Their number is nearly the same at every step: it needs no moving average.
        selected = jnp.maximum(group_sums(num_selected), 1)
        class_factors = image_factors(num_selected, weights, selected, method=loss.normalizer)
    return LossFactors(class_factors, box_factors), normalizer


def weighted_losses(
    losses: ImageLosses, factors: LossFactors, loss: ConfigDict
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the loss of images, and its terms of classification and of boxes.

    Args:
        losses: The sums of each image.
        factors: The factors of the sums.
        loss: A run's `config.loss`; its `box_weight` is used.
    """
    classification = jnp.sum(factors.classification * losses.classification)
    box = jnp.sum(factors.box * losses.box)
    return classification + loss.box_weight * box, classification, box


def image_factors(
    counts: Float[Array, " B"] | Int[Array, " B"],
    weights: Float[Array, " B"],
    group_counts: Float[Array, "*groups"],
    *,
    method: str,
) -> Float[Array, " B"]:
    """Return the factor of each image's sum: the image's weight over the normalizing count.

    Args:
        counts: Number of anchors of each image.
        weights: 1 for each image of the dataset, 0 for a filler.
        group_counts: The counts that "ema" divides by, of all images or of equal groups of them.
        method: "batch", the paper's, divides by the count of the batch; "image", torchvision's, by
            that of the image, and then averages over the images; "ema", detectron2's, by the moving
            average of each group, and then averages over the groups that have images.

    Raises:
        ValueError: If `method` is none of NORMALIZERS.
    """
    match method:
        case "batch":
            return weights / jnp.maximum(jnp.sum(weights * counts), 1)
        case "image":
            return weights / jnp.maximum(counts, 1) / jnp.maximum(jnp.sum(weights), 1)
        case "ema":
            groups = weights.reshape(*group_counts.shape, -1)
            num_groups = jnp.sum(jnp.any(groups > 0, axis=-1))
            factors = groups / group_counts[..., None] / jnp.maximum(num_groups, 1)
            return factors.reshape(weights.shape)
        case _:
            raise unknown_choice("loss.normalizer", method, NORMALIZERS)
