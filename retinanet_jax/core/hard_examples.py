"""Which anchors are worth learning from: online hard example mining (OHEM)."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core.nms import non_maximum_suppression
from retinanet_jax.core.types import BACKGROUND, IGNORE, Array


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
    """The anchors of an image that make its minibatch (Shrivastava et al. 2016; paper, Table 1d).

    The anchors of highest loss, after NMS with the loss as score: of neighbours, which tell the
    same, the hardest stays. No gradient passes, and IGNORE anchors take no part.

    Args:
      losses: of each anchor, over all levels.
      boxes: what NMS compares, in pixels. The paper does not say which; the anchors stand for the
        fixed regions that OHEM was made for, and do not depend on what the box head has learnt.
      labels: class in [0, K), BACKGROUND or IGNORE.
      num_candidates: the hardest that NMS looks at; of 100,000 anchors it can't be all.
      iou_threshold: an anchor that overlaps a harder one by more than this is dropped, whatever
        their classes.
      num_examples: how many are kept at most, in this one image.
      negatives_per_positive: 0 is the plain rule above. Else, as SSD has it, at most this many
        negatives a positive are kept (an image without positives counts as one), and the positives
        are at most the share of `num_examples` that leaves room for them. Candidates are in that
        ratio too: however hard the negatives, they do not crowd the positives out.

    Raises:
      ValueError: numbers that leave no room for each other.
    """
    if not num_candidates >= num_examples > negatives_per_positive >= 0:
        raise ValueError(
            f"num_candidates={num_candidates}, num_examples={num_examples} and "
            f"negatives_per_positive={negatives_per_positive} must be ordered num_candidates >= "
            "num_examples > negatives_per_positive >= 0; try 2000, 128 and 3."
        )
    losses, labels = jax.lax.stop_gradient(losses), jnp.asarray(labels)
    one_in = 1 + negatives_per_positive
    groups = [(labels != IGNORE, num_candidates)]
    if negatives_per_positive > 0:
        share = num_candidates // one_in
        groups = [(labels >= 0, share), (labels == BACKGROUND, num_candidates - share)]
    parts = [_hardest(losses, eligible, size) for eligible, size in groups]
    rows, real = map(jnp.concatenate, zip(*parts, strict=True))
    hardest_first = jnp.argsort(jnp.where(real, losses[rows], -jnp.inf), descending=True)
    rows, real = rows[hardest_first], real[hardest_first]

    labels = labels[rows]
    keep = non_maximum_suppression(
        jnp.asarray(boxes)[rows],
        labels,
        real,
        iou_threshold=iou_threshold,
        class_agnostic=True,
        limit=len(rows),  # of which kind they are matters below
    )
    if negatives_per_positive > 0:
        positives = _first(keep & (labels >= 0), num_examples // one_in)
        room = negatives_per_positive * jnp.maximum(jnp.sum(positives), 1)
        keep = positives | _first(keep & (labels == BACKGROUND), room)
    else:
        keep = _first(keep, num_examples)
    kept_rows = jnp.where(keep, rows, len(losses))
    return jnp.zeros(len(losses), bool).at[kept_rows].set(True, mode="drop")


def _hardest(
    losses: Float[Array, " A"], eligible: Bool[Array, " A"], size: int
) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
    """Rows of the `size` highest losses among the eligible, and which of them are eligible."""
    _, rows = jax.lax.top_k(jnp.where(eligible, losses, -jnp.inf), min(size, len(losses)))
    return rows, eligible[rows]


def _first(mask: Bool[Array, " N"], size: int | Int[Array, ""]) -> Bool[Array, " N"]:
    """The first `size` True of a mask."""
    return mask & (jnp.cumsum(mask) <= size)
