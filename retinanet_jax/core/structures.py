"""The results and label values of `core`, its box format, and the letters of its shapes.

    A  anchors of an image          K  classes                    M  ground truths, padded
    a  anchors of a cell            L  levels of the pyramid      C  crowd regions, padded
    h w  cells of a level           N  candidates before NMS      D  detections returned

Boxes are (ymin, xmin, ymax, xmax) in absolute pixels of the network's input. The maximum is
exclusive, so a box's height is ymax - ymin. A mask is True for real entries and False for padding.

Nothing in `core` has a batch axis: every function computes for one image. Batch it with `jax.vmap`.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

# Every function accepts both: anchors are static numpy arrays, everything else is on the device.
Array = jax.Array | np.ndarray

# The labels of anchors without a ground truth; classes and indices of ground truths are from 0.
BACKGROUND = -1  # a negative example of every class
IGNORE = -2  # neither foreground nor background: excluded from every loss


class Targets(NamedTuple):
    """The training targets of one image's anchors."""

    labels: Int[Array, " A"]  # class in [0, K), BACKGROUND or IGNORE
    boxes: Float[Array, "A 4"]  # the matched ground truth; the anchor itself where there is none


class Detections(NamedTuple):
    """The detections of one image, best score first; padded with zeros and a False mask."""

    boxes: Float[Array, "D 4"]  # in pixels of the original image
    scores: Float[Array, " D"]
    classes: Int[Array, " D"]
    mask: Bool[Array, " D"]
