"""Online hard example mining (OHEM): selecting the anchors that contribute to the loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core.nms import non_maximum_suppression
from retinanet_jax.core.structures import BACKGROUND, IGNORE, Array


def hard_examples(
    losses: Float[Array, " A"],
    boxes: Float[Array, "A 4"],
    labels: Int[Array, " A"],
    *,
    num_candidates: int,
    iou_threshold: float,
    num_examples: int,
    negatives_per_positive: int,
) -> Bool[Array, " A"]:
    """Return a mask of the anchors that form an image's minibatch of hard examples.

    NMS with the loss as the score keeps only the hardest of overlapping anchors, which all have
    nearly the same gradient. Of the anchors that remain, those of highest loss are selected (OHEM,
    https://arxiv.org/abs/1604.03540; RetinaNet, https://arxiv.org/abs/1708.02002, Table 1d). No
    gradient flows through the selection, and IGNORE anchors are never selected.

    Args:
        losses: Loss of each anchor, over all pyramid levels.
        boxes: The boxes that NMS compares, in pixels. The RetinaNet paper does not specify them;
            this project passes the anchors, which correspond to OHEM's fixed regions and do not
            depend on the predictions of the box head.
        labels: Class in [0, K), BACKGROUND or IGNORE.
        num_candidates: The number of hardest anchors that NMS processes; all of an image's 100,000
            anchors would be too many.
        iou_threshold: An anchor is suppressed if its IoU with a harder anchor of any class is above
            this threshold.
        num_examples: The maximal number of anchors to select.
        negatives_per_positive: With 0, only the rule above applies. Otherwise, at most this many
            negatives are selected per positive, as in SSD (https://arxiv.org/abs/1512.02325,
            section 2.2). An image without positives counts as if it had one. The number of
            positives is limited so that all their negatives fit into `num_examples`. The candidates
            are divided in the same ratio, so that hard negatives cannot displace the positives.

    Returns:
        A mask of the selected anchors.

    Raises:
        ValueError: Unless num_candidates >= num_examples > negatives_per_positive >= 0.
    """
    if not num_candidates >= num_examples > negatives_per_positive >= 0:
        raise ValueError(
            f"num_candidates={num_candidates}, num_examples={num_examples} and "
            f"negatives_per_positive={negatives_per_positive} must be ordered num_candidates >= "
            "num_examples > negatives_per_positive >= 0; try 2000, 128 and 3."
        )
    losses, labels = jax.lax.stop_gradient(losses), jnp.asarray(labels)
    group_size = 1 + negatives_per_positive  # a positive and its negatives
    groups = [(labels != IGNORE, num_candidates)]
    if negatives_per_positive > 0:
        num_positives = num_candidates // group_size
        num_negatives = num_candidates - num_positives
        groups = [(labels >= 0, num_positives), (labels == BACKGROUND, num_negatives)]
    parts = [_hardest(losses, eligible, size) for eligible, size in groups]
    indices, is_real = map(jnp.concatenate, zip(*parts, strict=True))
    hardest_first = jnp.argsort(jnp.where(is_real, losses[indices], -jnp.inf), descending=True)
    indices, is_real = indices[hardest_first], is_real[hardest_first]

    labels = labels[indices]
    keep = non_maximum_suppression(
        jnp.asarray(boxes)[indices],
        labels,
        is_real,
        iou_threshold=iou_threshold,
        class_agnostic=True,
        limit=len(indices),  # positives and negatives are counted below
    )
    if negatives_per_positive > 0:
        positives = _first_true(keep & (labels >= 0), num_examples // group_size)
        max_negatives = negatives_per_positive * jnp.maximum(jnp.sum(positives), 1)
        keep = positives | _first_true(keep & (labels == BACKGROUND), max_negatives)
    else:
        keep = _first_true(keep, num_examples)
    size = len(losses)
    selected = jnp.where(keep, indices, size)  # the mask has one more entry, for what is not kept
    return jnp.zeros(size + 1, bool).at[selected].set(True, mode="promise_in_bounds")[:size]


def _hardest(
    losses: Float[Array, " A"], eligible: Bool[Array, " A"], size: int
) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
    """Return the indices of the `size` highest losses, and which of them are eligible."""
    _, indices = jax.lax.top_k(jnp.where(eligible, losses, -jnp.inf), min(size, len(losses)))
    return indices, eligible[indices]


def _first_true(mask: Bool[Array, " N"], size: int | Int[Array, ""]) -> Bool[Array, " N"]:
    """Return the mask with only its first `size` True entries."""
    return mask & (jnp.cumsum(mask) <= size)
