"""The elementwise losses, and their sums over the anchors of one image.

The sums accept the anchors of a whole image or of one pyramid level; the sums of all levels add up
to that of the image. The caller normalizes them: by the number of foreground anchors of the batch
or of the image, by a moving average of that number, or with OHEM (see `core.hard_examples`) by the
number of selected anchors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from retinanet_jax.core.boxes import decode, encode, giou
from retinanet_jax.core.structures import IGNORE, Array, Targets


def cross_entropy(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return CE(p_t) = -log(p_t), elementwise.

    p_t is sigmoid(logits) for positives and 1 - sigmoid(logits) for negatives
    (https://arxiv.org/abs/1708.02002, equation 1).

    Args:
        logits: Logits of the positive class.
        positive: Whether each element is a positive example.

    Returns:
        The losses, in at least float32.
    """
    return -_log_probabilities(logits, positive)[0]


def balanced_cross_entropy(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"], *, alpha: float
) -> Float[Array, "*shape"]:
    """Return CE(p_t) = -alpha_t log(p_t), elementwise.

    See https://arxiv.org/abs/1708.02002, equation 3.

    Args:
        logits: Logits of the positive class.
        positive: Whether each element is a positive example.
        alpha: alpha_t of positives; that of negatives is 1 - alpha.

    Returns:
        The losses, in at least float32.
    """
    return jnp.where(positive, alpha, 1 - alpha) * cross_entropy(logits, positive)


def focal_loss(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"], *, alpha: float, gamma: float
) -> Float[Array, "*shape"]:
    """Return the focal loss FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t), elementwise.

    The factor (1 - p_t)^gamma lowers the loss of examples that are classified well, so that the
    many easy negatives do not dominate training (https://arxiv.org/abs/1708.02002, equation 5).

    Args:
        logits: Logits of the positive class.
        positive: Whether each element is a positive example.
        alpha: alpha_t of positives; that of negatives is 1 - alpha. The paper's is 0.25.
        gamma: The focusing parameter, at least 0; the paper's is 2. 0 gives
            `balanced_cross_entropy`.

    Returns:
        The losses, in at least float32.

    Examples:
        >>> import jax.numpy as jnp
        >>> from retinanet_jax import core
        >>> logits = jnp.array([4.0, 0.0, -4.0])  # probabilities of .98, .50 and .02
        >>> losses = core.focal_loss(logits, jnp.full(3, True), alpha=0.25, gamma=2.0)
        >>> [f"{loss:.4f}" for loss in losses]  # a well classified example contributes little
        ['0.0000', '0.0433', '0.9687']
    """
    log_p, log_miss = _log_probabilities(logits, positive)
    return -jnp.where(positive, alpha, 1 - alpha) * jnp.exp(gamma * log_miss) * log_p


def focal_star(
    logits: Float[Array, "*shape"],
    positive: Bool[Array, "*shape"],
    *,
    alpha: float,
    gamma: float,
    beta: float,
) -> Float[Array, "*shape"]:
    """Return FL* = -alpha_t log(sigmoid(gamma x_t + beta)) / gamma, elementwise.

    x_t is the logit of p_t (https://arxiv.org/abs/1708.02002, appendix A). The paper's equation 8
    has no alpha_t, but its experiments use alpha = 0.25, as the loss does here.

    Args:
        logits: Logits of the positive class.
        positive: Whether each element is a positive example.
        alpha: alpha_t of positives; that of negatives is 1 - alpha.
        gamma: Steepness of the loss curve, above 0.
        beta: Shift of the loss curve.

    Returns:
        The losses, in at least float32.

    Raises:
        ValueError: If `gamma` is not above 0.
    """
    if gamma <= 0:
        raise ValueError(
            f"gamma={gamma} of FL* must be above 0 because it divides; try 2.0 with beta 1.0."
        )
    steep_logits = gamma * _true_class_logits(logits, positive) + beta
    return -jnp.where(positive, alpha, 1 - alpha) * jax.nn.log_sigmoid(steep_logits) / gamma


def smooth_l1(error: Float[Array, "*shape"], *, beta: float) -> Float[Array, "*shape"]:
    """Return error^2 / (2 beta) where |error| < beta and |error| - beta / 2 elsewhere.

    With beta = 1 this is Fast R-CNN's loss (https://arxiv.org/abs/1504.08083, equation 3).

    Args:
        error: Prediction minus target.
        beta: The error at which the loss changes from quadratic to linear; 0 gives L1.
    """
    distance = jnp.maximum(error, -error)  # |error|, with gradient 0 at 0, where jnp.abs has 1
    if beta == 0:
        return distance
    return jnp.where(distance < beta, error**2 / (2 * beta), distance - beta / 2)


def giou_loss(
    boxes: Float[Array, "*batch 4"], gt_boxes: Float[Array, "*batch 4"]
) -> Float[Array, "*batch"]:
    """Return 1 - GIoU of each box with its ground truth, in [0, 2].

    See https://arxiv.org/abs/1902.09630, section 4.

    Args:
        boxes: The predicted boxes.
        gt_boxes: The ground truth of each box.
    """
    return 1 - giou(boxes, gt_boxes)


def classification_per_anchor(
    logits: Float[Array, "A K"],
    labels: Int[Array, " A"],
    elementwise: Callable[[Array, Array], Array],
) -> Float[Array, " A"]:
    """Return each anchor's losses summed over the classes; 0 for IGNORE anchors.

    Args:
        logits: One logit per anchor and class.
        labels: Class in [0, K), BACKGROUND or IGNORE.
        elementwise: Function of (logits, positive), both of shape "A K", that returns losses of
            that shape; for instance `functools.partial(focal_loss, alpha=0.25, gamma=2.0)`.
    """
    labels = jnp.asarray(labels)[:, None]
    return _sum_class_losses(jnp.asarray(logits), labels, elementwise, axis=1)


def classification_sum(
    logits: Float[Array, "A K"],
    labels: Int[Array, " A"],
    elementwise: Callable[[Array, Array], Array],
    *,
    per_cell: int = 1,
) -> Float[Array, ""]:
    """Return the losses summed over the classes and over the anchors that are not IGNORE.

    Args:
        logits: As in `classification_per_anchor`.
        labels: As in `classification_per_anchor`.
        elementwise: As in `classification_per_anchor`.
        per_cell: The number of anchors that are computed together, a divisor of A. The result does
            not depend on it. With the number of anchors of a cell, rows of logits are as long as
            those of the class head's convolution; otherwise a TPU has to rearrange all logits,
            which takes as long as the loss.
    """
    num_classes = logits.shape[1]
    logits = jnp.asarray(logits).reshape(-1, per_cell * num_classes)
    return _sum_class_losses(logits, jnp.asarray(labels).reshape(-1, per_cell), elementwise, None)


def smooth_l1_sum(
    deltas: Float[Array, "A 4"], anchors: Float[Array, "A 4"], targets: Targets, *, beta: float
) -> Float[Array, ""]:
    """Return the smooth L1 loss summed over the coordinates and the foreground anchors.

    Args:
        deltas: The predicted (dy, dx, dh, dw) of each anchor.
        anchors: In pixels of the network's input.
        targets: Labels and ground-truth boxes of the anchors.
        beta: As in `smooth_l1`, in the units of the deltas.
    """
    losses = smooth_l1(deltas - encode(targets.boxes, anchors), beta=beta)
    return jnp.sum(jnp.where((targets.labels >= 0)[:, None], losses, 0))


def giou_sum(
    deltas: Float[Array, "A 4"], anchors: Float[Array, "A 4"], targets: Targets
) -> Float[Array, ""]:
    """Return the GIoU loss of the decoded boxes summed over the foreground anchors.

    Args:
        deltas: The predicted (dy, dx, dh, dw) of each anchor.
        anchors: In pixels of the network's input.
        targets: Labels and ground-truth boxes of the anchors.
    """
    losses = giou_loss(decode(deltas, anchors), targets.boxes)
    return jnp.sum(jnp.where(targets.labels >= 0, losses, 0))


def count_foreground(labels: Int[Array, " A"]) -> Int[Array, ""]:
    """Return the number of anchors that have a ground truth."""
    return jnp.sum(labels >= 0)


def ema_normalizer(
    previous: Float[Array, "*groups"], num_foreground: Num[Array, "*groups"], *, momentum: float
) -> Float[Array, "*groups"]:
    """Return the updated moving average of the number of foreground anchors, as in detectron2.

    The loss of a step is divided by the average that already includes this step.

    Args:
        previous: The value of the previous step, of a batch or of each group of its images.
        num_foreground: Foreground anchors of this step's batch or groups; 0 counts as 1.
        momentum: Weight of the previous value.
    """
    return momentum * previous + (1 - momentum) * jnp.maximum(num_foreground, 1)


def _true_class_logits(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return the logits of p_t, the probability of the true class, in at least float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(positive, logits, -logits)


def _log_probabilities(
    logits: Float[Array, "*shape"], positive: Bool[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return log(p_t) and log(1 - p_t), in at least float32.

    `jax.nn.log_sigmoid` for each of them would compute the logarithm twice.
    """
    logits = _true_class_logits(logits, positive)
    log_larger = -jnp.log1p(jnp.exp(jnp.minimum(logits, -logits)))  # of the larger probability
    return jnp.minimum(logits, 0) + log_larger, jnp.minimum(-logits, 0) + log_larger


def _sum_class_losses(
    logits: Float[Array, "N C"],
    labels: Int[Array, "N a"],
    elementwise: Callable[[Array, Array], Array],
    axis: int | None,
) -> Float[Array, " N"] | Float[Array, ""]:
    """Return sums of the losses of all logits; those of a label IGNORE are 0.

    Args:
        logits: The K logits of `a` anchors in each row.
        labels: The labels of the anchors.
        elementwise: As in `classification_per_anchor`.
        axis: 1 for the sum of each row, None for that of all.
    """
    num_classes = logits.shape[1] // labels.shape[1]
    classes = np.arange(logits.shape[1]) % num_classes

    # Logits are by far the largest arrays of training. Recomputing the loss for the gradient, from
    # one label an anchor to the sum, avoids storing more arrays of their size.
    @jax.checkpoint
    def sums(logits, labels):
        labels = _repeat_columns(labels, num_classes)
        losses = jnp.where(labels != IGNORE, elementwise(logits, classes == labels), 0)
        return jnp.sum(losses, axis=axis)

    return sums(logits, labels)


def _repeat_columns(x: Num[Array, "N a"], count: int) -> Num[Array, "N _"]:
    """Return `jnp.repeat(x, count, axis=1)`, by selections.

    On a TPU `jnp.repeat` would rearrange an array of the result's size.
    """
    source = np.arange(x.shape[1] * count) // count
    result = x[:, :1]
    for index in range(1, x.shape[1]):
        result = jnp.where(source == index, x[:, index : index + 1], result)
    return jnp.broadcast_to(result, (x.shape[0], len(source)))
