"""The elementwise losses, and one image's sums of them.

A sum is over one image's anchors (all of them, or one level's: sums add up). Dividing is the
caller's: by the foreground anchors of the batch, of the image, or by their moving average; with
OHEM (see `mining`) by the anchors kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from retinanet_jax.core.boxes import decode, encode, giou
from retinanet_jax.core.types import IGNORE, Array, Targets


def cross_entropy(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """CE(p_t) = -log(p_t), elementwise, of p = sigmoid(logits) (paper, equation 1)."""
    return -jax.nn.log_sigmoid(_logit_of_truth(logits, positive))


def balanced_cross_entropy(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"], *, alpha: float
) -> Float[Array, "*shape"]:
    """CE(p_t) = -alpha_t log(p_t), elementwise (paper, equation 3).

    alpha_t is alpha for positives and 1 - alpha for negatives.
    """
    return jnp.where(positive, alpha, 1 - alpha) * cross_entropy(logits, positive)


def focal_loss(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"], *, alpha: float, gamma: float
) -> Float[Array, "*shape"]:
    """FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t), elementwise (paper, equation 5)."""
    log_miss = jax.nn.log_sigmoid(-_logit_of_truth(logits, positive))  # log(1 - p_t)
    modulation = jnp.exp(gamma * log_miss)
    return modulation * balanced_cross_entropy(logits, positive, alpha=alpha)


def focal_star(
    logits: Float[Array, "*shape"],
    positive: Bool[Array, "*shape"],
    *,
    alpha: float,
    gamma: float,
    beta: float,
) -> Float[Array, "*shape"]:
    """FL* = -alpha_t log(sigmoid(gamma x_t + beta)) / gamma, elementwise (paper, appendix A).

    x_t is the logit of p_t; gamma is the loss curve's steepness, beta its shift. Equation 8 has no
    alpha_t; the paper's experiments with it weigh by alpha = 0.25, as here.

    Raises:
      ValueError: a `gamma` that is not above 0.
    """
    if gamma <= 0:
        raise ValueError(
            f"gamma={gamma} of FL* must be above 0, it divides; try 2.0 with beta 1.0."
        )
    steep = gamma * _logit_of_truth(logits, positive) + beta
    return -jnp.where(positive, alpha, 1 - alpha) * jax.nn.log_sigmoid(steep) / gamma


def smooth_l1(error: Float[Array, "*shape"], *, beta: float) -> Float[Array, "*shape"]:
    """error^2 / (2 beta) within beta of zero, |error| - beta / 2 beyond, elementwise.

    (Girshick 2015, equation 3, which is beta = 1.) Beta 0 is L1.
    """
    distance = jnp.maximum(error, -error)  # |error|; its gradient at 0 is 0, jnp.abs's is 1
    if beta == 0:
        return distance
    return jnp.where(distance < beta, error**2 / (2 * beta), distance - beta / 2)


def giou_loss(
    boxes: Float[Array, "*batch 4"], gt_boxes: Float[Array, "*batch 4"]
) -> Float[Array, "*batch"]:
    """1 - GIoU, in [0, 2], elementwise over boxes (Rezatofighi et al. 2019)."""
    return 1 - giou(boxes, gt_boxes)


def classification_per_anchor(
    logits: Float[Array, "A K"],
    labels: Int[Array, " A"],
    elementwise: Callable[[Array, Array], Array],
) -> Float[Array, " A"]:
    """Each anchor's losses summed over the classes; 0 where it is IGNORE.

    Args:
      logits: one a class.
      labels: class in [0, K), BACKGROUND or IGNORE.
      elementwise: (logits, positive) -> losses, all "A K"; for instance
        `functools.partial(focal_loss, alpha=0.25, gamma=2.0)`.
    """

    # Logits are by far the largest arrays of training. Recomputed for the gradient, the loss keeps
    # nothing else of their size.
    @jax.checkpoint
    def over_classes(logits):
        classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        losses = elementwise(logits, classes == labels[:, None])
        return jnp.sum(jnp.where((labels != IGNORE)[:, None], losses, 0), axis=1)

    return over_classes(logits)


def classification_sum(
    logits: Float[Array, "A K"],
    labels: Int[Array, " A"],
    elementwise: Callable[[Array, Array], Array],
) -> Float[Array, ""]:
    """Sum over classes and over the anchors that are not IGNORE.

    Arguments are those of `classification_per_anchor`.
    """
    return jnp.sum(classification_per_anchor(logits, labels, elementwise))


def smooth_l1_sum(
    deltas: Float[Array, "A 4"], anchors: Float[Array, "A 4"], targets: Targets, *, beta: float
) -> Float[Array, ""]:
    """Smooth L1 of the deltas, summed over the four coordinates and the foreground anchors."""
    losses = smooth_l1(deltas - encode(targets.boxes, anchors), beta=beta)
    return jnp.sum(jnp.where((targets.labels >= 0)[:, None], losses, 0))


def giou_sum(
    deltas: Float[Array, "A 4"], anchors: Float[Array, "A 4"], targets: Targets
) -> Float[Array, ""]:
    """GIoU loss of the decoded boxes, summed over the foreground anchors."""
    losses = giou_loss(decode(deltas, anchors), targets.boxes)
    return jnp.sum(jnp.where(targets.labels >= 0, losses, 0))


def count_foreground(labels: Int[Array, " A"]) -> Int[Array, ""]:
    """How many anchors have a ground truth."""
    return jnp.sum(labels >= 0)


def ema_normalizer(
    previous: Float[Array, ""], num_foreground: Num[Array, ""], *, momentum: float
) -> Float[Array, ""]:
    """The moving average of a batch's foreground count, as detectron2 keeps it.

    It is updated before it divides: `previous` is the last step's value, the result this step's.
    """
    return momentum * previous + (1 - momentum) * jnp.maximum(num_foreground, 1)


def _logit_of_truth(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The logit of p_t, the probability given to what is true; in float32 at least."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(positive, logits, -logits)
