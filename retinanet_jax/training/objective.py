"""The training objective: the targets and the loss of a batch.

The targets and the sums are those of `core`, for one image; here they are mapped over a batch,
added over pyramid levels, and divided by the normalizer that `config.loss` names.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.config import anchors_per_cell, unknown_choice
from retinanet_jax.core.structures import Array
from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import assign_batch_targets, image_anchors
from retinanet_jax.models import Outputs
from retinanet_jax.training.normalizers import ImageLosses, LossTerms, reduce_losses

CLASSIFICATION_LOSSES = (
    "focal",
    "focal_star",
    "balanced_cross_entropy",
    "cross_entropy",
    "ohem",
)
BOX_LOSSES = ("smooth_l1", "giou")


@jax.named_scope("loss")
def batch_loss(
    outputs: Outputs, batch: Batch, normalizer: Float[Array, "*groups"], config: ConfigDict
) -> LossTerms:
    """Return the loss of a batch: classification + box_weight * box.

    The definition is that of https://arxiv.org/abs/1708.02002, section 4.1, with the losses that
    `config.loss` names. With loss.classification="ohem" the classification term is a mean over the
    hard examples; the box term covers all foreground anchors in any case.

    Args:
        outputs: Logits of shape (B, A_level, K) and deltas of shape (B, A_level, 4) per level.
        batch: Images and ground truth. Images of weight 0, which only fill up the batch, are
            ignored.
        normalizer: Moving averages of the number of foreground anchors before this batch, for
            loss.normalizer="ema"; see `normalizer_shape`.
        config: A run's config; its `anchors`, `matching` and `loss` are used.
    """
    sums = image_losses(outputs, batch, config)
    return reduce_losses(*sums, batch.weights, normalizer, config.loss)


def image_losses(outputs: Outputs, batch: Batch, config: ConfigDict) -> ImageLosses:
    """Return the losses of each image of a batch, which are not normalized.

    Args:
        outputs: As in `batch_loss`.
        batch: Images and ground truth.
        config: A run's config; its `anchors`, `matching` and `loss` are used.
    """
    anchors = image_anchors(batch.images.shape[1:3], config)
    all_anchors = jnp.asarray(np.concatenate(anchors), batch.boxes.dtype)
    targets = assign_batch_targets(all_anchors, batch, config.matching)
    labels, num_selected = targets.labels, None
    if config.loss.classification == "ohem":
        labels = hard_example_labels(outputs.logits, labels, anchors, config.loss.ohem)
        num_selected = jnp.sum(labels != core.IGNORE, axis=1)
    classification_loss = functools.partial(
        make_classification_loss(config.loss), per_cell=anchors_per_cell(config)
    )
    box_loss = make_box_loss(config.loss)
    class_sums = box_sums = jnp.float32(0)
    ends = np.cumsum([len(level) for level in anchors])
    for logits, deltas, level_anchors, end in zip(*outputs, anchors, ends, strict=True):
        level = slice(end - len(level_anchors), end)
        class_sums += jax.vmap(classification_loss)(logits, labels[:, level])
        box_sums += jax.vmap(box_loss, in_axes=(0, None, 0))(
            deltas,
            jnp.asarray(level_anchors, batch.boxes.dtype),
            core.Targets(*(x[:, level] for x in targets)),
        )
    num_foreground = jax.vmap(core.count_foreground)(targets.labels).astype(class_sums.dtype)
    return ImageLosses(class_sums, box_sums, num_foreground, num_selected)


def hard_example_labels(
    logits: tuple[Float[Array, "B _ K"], ...],
    labels: Int[Array, "B A"],
    anchors: tuple[Float[np.ndarray, "_ 4"], ...],
    ohem: Mapping[str, Any],
) -> Int[Array, "B A"]:
    """Return the labels with IGNORE for all anchors but the hard examples of each image.

    Online hard example mining (https://arxiv.org/abs/1604.03540). An anchor's loss is its cross
    entropy, summed over the classes.

    Args:
        logits: Logits of each level.
        labels: Class, BACKGROUND or IGNORE of each anchor, all levels in order.
        anchors: Anchors of each level, in yxyx pixels of the network's input.
        ohem: Keyword arguments of `core.hard_examples`, such as `config.loss.ohem`.
    """
    anchor_loss = functools.partial(core.classification_per_anchor, elementwise=core.cross_entropy)
    ends = np.cumsum([len(level) for level in anchors])
    losses = [
        jax.vmap(anchor_loss)(level_logits, level_labels)
        for level_logits, level_labels in zip(
            logits, jnp.split(labels, ends[:-1], axis=1), strict=True
        )
    ]
    select = functools.partial(core.hard_examples, **ohem)
    hard = jax.vmap(select, in_axes=(0, None, 0))(
        jnp.concatenate(losses, axis=1), jnp.asarray(np.concatenate(anchors)), labels
    )
    return jnp.where(hard, labels, core.IGNORE)


def make_classification_loss(loss: ConfigDict) -> Callable[..., Array]:
    """Return `(logits, labels, *, per_cell) -> sum`, the loss of one image and level.

    It is `core.classification_sum` with the elementwise loss that the config names.

    Args:
        loss: A run's `config.loss`; `classification` names the loss.

    Raises:
        ValueError: If the name is none of CLASSIFICATION_LOSSES.
    """
    match loss.classification:
        case "focal":
            elementwise = functools.partial(core.focal_loss, alpha=loss.alpha, gamma=loss.gamma)
        case "focal_star":
            elementwise = functools.partial(
                core.focal_star, alpha=loss.alpha, gamma=loss.gamma, beta=loss.star_beta
            )
        case "balanced_cross_entropy":
            elementwise = functools.partial(core.balanced_cross_entropy, alpha=loss.alpha)
        case "cross_entropy" | "ohem":
            elementwise = core.cross_entropy
        case name:
            raise unknown_choice("loss.classification", name, CLASSIFICATION_LOSSES)
    return functools.partial(core.classification_sum, elementwise=elementwise)


def make_box_loss(loss: ConfigDict) -> Callable[[Array, Array, core.Targets], Array]:
    """Return `(deltas, anchors, targets) -> sum`, the box loss of one image and level.

    Args:
        loss: A run's `config.loss`; `box` names the loss.

    Raises:
        ValueError: If the name is none of BOX_LOSSES.
    """
    match loss.box:
        case "smooth_l1":
            return functools.partial(core.smooth_l1_sum, beta=loss.beta)
        case "giou":
            return core.giou_sum
        case name:
            raise unknown_choice("loss.box", name, BOX_LOSSES)
