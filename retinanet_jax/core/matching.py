"""Which ground truth each anchor takes, and the targets that follow.

An A x M matrix of overlaps would be 80 MB an image, so the ground truths pass by one at a time
and each anchor remembers the best it has seen.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from retinanet_jax.core.boxes import area, intersection, paired_iou
from retinanet_jax.core.types import BACKGROUND, IGNORE, Array, Targets


def match(
    anchors: Float[Array, "A 4"],
    gt_boxes: Float[Array, "M 4"],
    gt_mask: Bool[Array, " M"],
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
    eligible: Bool[Array, " A"] | None = None,
) -> Int[Array, " A"]:
    """The row of the ground truth that each anchor takes, or BACKGROUND, or IGNORE.

    By the IoU with the anchor's best ground truth (the first of equals): foreground from
    `foreground_iou`, background below `background_iou`, ignored between (paper, section 4.1).

    Args:
      anchors: pixels of the network's input.
      gt_boxes: likewise; any value where `gt_mask` is False.
      gt_mask: True where a ground truth is real.
      foreground_iou: the paper's is 0.5.
      background_iou: the paper's is 0.4.
      low_quality: also make foreground the anchors that no other beats at some ground truth, all
        of them where several tie. Such an anchor takes its own best ground truth, like any other.
        A ground truth that no anchor touches makes none.
      eligible: the rest of the anchors become IGNORE and compete for nothing. None: all are.

    Raises:
      ValueError: thresholds that are not 0 <= background_iou <= foreground_iou <= 1, or a
        `foreground_iou` of 0.
    """
    if not 0 <= background_iou <= foreground_iou <= 1 or foreground_iou == 0:
        raise ValueError(
            f"background_iou={background_iou} and foreground_iou={foreground_iou} must be ordered "
            "0 <= background <= foreground <= 1 with foreground > 0; try 0.4 and 0.5."
        )
    num_anchors, num_gt = len(anchors), len(gt_boxes)
    if eligible is None:
        eligible = jnp.ones(num_anchors, bool)

    columns = jnp.transpose(anchors)  # a coordinate's numbers side by side, as vector units want

    def visit(state, gt):
        best_iou, best_row, forced = state
        row, box, real = gt
        # The barrier makes this one array: recomputed in two fusions, its last bits could differ
        # and no anchor would equal the maximum.
        iou = jnp.where(real & eligible, paired_iou(columns.T, box), 0)  # A
        iou = jax.lax.optimization_barrier(iou)
        highest = jnp.max(iou)
        forced |= (iou == highest) & (highest > 0)
        better = iou > best_iou
        return (jnp.where(better, iou, best_iou), jnp.where(better, row, best_row), forced), None

    start = (
        jnp.zeros(num_anchors, jnp.result_type(anchors, gt_boxes)),
        jnp.zeros(num_anchors, jnp.int32),
        jnp.zeros(num_anchors, bool),
    )
    rows = jnp.arange(num_gt, dtype=jnp.int32)
    (best_iou, best_row, forced), _ = jax.lax.scan(visit, start, (rows, gt_boxes, gt_mask))

    foreground = best_iou >= foreground_iou
    if low_quality:
        foreground |= forced
    return jnp.select(
        [~eligible, foreground, best_iou < background_iou],
        [IGNORE, best_row, BACKGROUND],
        IGNORE,
    )


def assign_targets(
    anchors: Float[Array, "A 4"],
    gt_boxes: Float[Array, "M 4"],
    gt_classes: Int[Array, " M"],
    gt_mask: Bool[Array, " M"],
    crowd_boxes: Float[Array, "C 4"],
    crowd_mask: Bool[Array, " C"],
    valid_size: Float[Array, "2"],
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
    crowd_ioa: float | None,
    ignore_padding: bool,
) -> Targets:
    """What each anchor is to learn; arguments not listed are those of `match`.

    Args:
      anchors: pixels of the network's input.
      gt_boxes: likewise; at least one row, which need not be real.
      gt_classes: class of each ground truth, in [0, K).
      gt_mask: True where a ground truth is real.
      crowd_boxes: regions full of objects that nobody outlined one by one.
      crowd_mask: True where a region is real.
      valid_size: (height, width) of the picture inside the padded input.
      crowd_ioa: background anchors with more than this share of their area in one crowd region
        become IGNORE. None: regions are not looked at, as in the peers.
      ignore_padding: anchors centred outside the picture are IGNORE and compete for nothing.
        False: they are like any other, as in the peers.

    Raises:
      ValueError: no row of ground truth at all, or thresholds that `match` refuses.
    """
    if len(gt_boxes) == 0:
        raise ValueError("gt_boxes has 0 rows and needs 1; pad it, with gt_mask False.")
    eligible = None
    if ignore_padding:
        eligible = jnp.all((anchors[:, :2] + anchors[:, 2:]) / 2 < valid_size, axis=1)
    matches = match(
        anchors,
        gt_boxes,
        gt_mask,
        foreground_iou=foreground_iou,
        background_iou=background_iou,
        low_quality=low_quality,
        eligible=eligible,
    )
    if crowd_ioa is not None:
        in_crowd = max_crowd_ioa(anchors, crowd_boxes, crowd_mask) > crowd_ioa
        matches = jnp.where((matches == BACKGROUND) & in_crowd, IGNORE, matches)

    foreground = matches >= 0
    row = jnp.maximum(matches, 0)
    return Targets(
        labels=jnp.where(foreground, jnp.asarray(gt_classes)[row], matches),
        boxes=jnp.where(foreground[:, None], jnp.asarray(gt_boxes)[row], anchors),
    )


def max_crowd_ioa(
    anchors: Float[Array, "A 4"], crowd_boxes: Float[Array, "C 4"], crowd_mask: Bool[Array, " C"]
) -> Float[Array, " A"]:
    """The largest share of each anchor's area that lies in one crowd region."""

    def visit(most, crowd):
        box, real = crowd
        return jnp.maximum(most, jnp.where(real, intersection(anchors, box), 0)), None

    start = jnp.zeros(len(anchors), jnp.result_type(anchors, crowd_boxes))
    most, _ = jax.lax.scan(visit, start, (crowd_boxes, crowd_mask))
    return most / area(anchors)
