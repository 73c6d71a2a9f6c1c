"""The training objective: targets and losses of a batch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.config import choose
from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import image_anchors
from retinanet_jax.models import Outputs


class LossTerms(NamedTuple):
    """What one batch costs, and what a person wants to see of it."""

    total: Float[Array, ""]
    classification: Float[Array, ""]
    box: Float[Array, ""]
    num_foreground: Float[Array, ""]  # anchors of the batch
    normalizer: Float[Array, ""]  # the moving count of foreground anchors; unchanged unless "ema"


def batch_loss(
    outputs: Outputs, batch: Batch, normalizer: Float[Array, ""], config: ConfigDict
) -> LossTerms:
    """Loss of a batch: classification + box_weight * box (paper, section 4.1).

    loss.classification="ohem" changes the classification alone, to a mean over the anchors kept:
    the box loss is over all foreground anchors whatever the classification.

    Args:
        outputs: of the network, per level.
        batch: ground truth; filler rows (weight 0) cost nothing.
        normalizer: the moving count of foreground anchors so far, for loss.normalizer="ema".
        config: its sections anchors, matching and loss.
    """
    anchors = image_anchors(batch.images.shape[1:3], config)
    assign = functools.partial(core.assign_targets, **config.matching)
    targets = jax.vmap(assign, in_axes=(None, 0, 0, 0, 0, 0, 0))(
        jnp.asarray(np.concatenate(anchors), batch.boxes.dtype),
        batch.boxes,
        batch.classes,
        batch.mask,
        batch.crowd_boxes,
        batch.crowd_mask,
        batch.sizes,
    )
    labels, num_kept = targets.labels, None
    if config.loss.classification == "ohem":
        labels = hard_labels(outputs.logits, labels, anchors, config.loss.ohem)
        num_kept = jnp.sum(labels != core.IGNORE, axis=1)
    class_sums, box_sums = 0.0, 0.0
    ends = np.cumsum([len(level) for level in anchors])
    for logits, deltas, level, end in zip(*outputs, anchors, ends, strict=True):
        here = slice(end - len(level), end)
        class_sums += jax.vmap(classification_term(config.loss))(logits, labels[:, here])
        box_sums += jax.vmap(box_term(config.loss), in_axes=(0, None, 0))(
            deltas,
            jnp.asarray(level, batch.boxes.dtype),
            core.Targets(*(x[:, here] for x in targets)),
        )
    foreground = jax.vmap(core.count_foreground)(targets.labels).astype(class_sums.dtype)
    return reduce_losses(
        class_sums, box_sums, foreground, num_kept, batch.weights, normalizer, config.loss
    )


def hard_labels(
    logits: tuple[Float[Array, "B _ K"], ...],
    labels: Int[Array, "B A"],
    anchors: tuple[np.ndarray, ...],
    ohem: ConfigDict,
) -> Int[Array, "B A"]:
    """The labels, with IGNORE for the anchors that are not their image's hard examples.

    An anchor's loss is its cross entropy, summed over the classes.
    """
    loss = functools.partial(core.classification_per_anchor, elementwise=core.cross_entropy)
    ends = np.cumsum([len(level) for level in anchors])
    losses = [
        jax.vmap(loss)(level, part)
        for level, part in zip(logits, jnp.split(labels, ends[:-1], axis=1), strict=True)
    ]
    select = functools.partial(core.hard_examples, **ohem)
    keep = jax.vmap(select, in_axes=(0, None, 0))(
        jnp.concatenate(losses, axis=1), jnp.asarray(np.concatenate(anchors)), labels
    )
    return jnp.where(keep, labels, core.IGNORE)


def classification_term(loss: ConfigDict):
    """`(logits, labels) -> sum` of one image and level, as config.loss names it."""
    elementwise = {
        "focal": functools.partial(core.focal_loss, alpha=loss.alpha, gamma=loss.gamma),
        "focal_star": functools.partial(
            core.focal_star, alpha=loss.alpha, gamma=loss.gamma, beta=loss.star_beta
        ),
        "balanced_cross_entropy": functools.partial(core.balanced_cross_entropy, alpha=loss.alpha),
        "cross_entropy": core.cross_entropy,
        "ohem": core.cross_entropy,
    }
    return functools.partial(
        core.classification_sum,
        elementwise=choose("loss.classification", loss.classification, elementwise),
    )


def box_term(loss: ConfigDict):
    """`(deltas, anchors, targets) -> sum` of one image and level, as config.loss names it."""
    terms = {
        "smooth_l1": functools.partial(core.smooth_l1_sum, beta=loss.beta),
        "giou": core.giou_sum,
    }
    return choose("loss.box", loss.box, terms)


def reduce_losses(
    class_sums: Float[Array, " B"],
    box_sums: Float[Array, " B"],
    foreground: Float[Array, " B"],
    num_kept: Int[Array, " B"] | None,
    weights: Float[Array, " B"],
    normalizer: Float[Array, ""],
    loss: ConfigDict,
) -> LossTerms:
    """Sums of images -> the batch's loss, divided by foreground anchors of the batch, image or EMA.

    "batch" is the paper's; "image" is torchvision's (mean over images); "ema" is detectron2's.
    Where OHEM chose, the classification is divided by the `num_kept` anchors instead, of the image
    with "image" and of the batch otherwise.
    """
    num_foreground = jnp.sum(weights * foreground)
    if loss.normalizer == "ema":
        normalizer = core.ema_normalizer(normalizer, num_foreground, momentum=loss.ema_momentum)

    def shares(counts, moving):
        choices = {
            "batch": weights / jnp.maximum(jnp.sum(weights * counts), 1),
            "image": weights / jnp.maximum(counts, 1) / jnp.maximum(jnp.sum(weights), 1),
            "ema": weights / moving,
        }
        return choose("loss.normalizer", loss.normalizer, choices)

    box_shares = class_shares = shares(foreground, normalizer)
    if num_kept is not None:  # nearly the same at every step: it needs no moving average
        class_shares = shares(num_kept, jnp.maximum(jnp.sum(weights * num_kept), 1))
    classification, box = jnp.sum(class_shares * class_sums), jnp.sum(box_shares * box_sums)
    total = classification + loss.box_weight * box
    return LossTerms(total, classification, box, num_foreground, normalizer)
