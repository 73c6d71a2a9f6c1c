"""What the functions of `core` pass to each other, and the letters of their shapes.

    A  anchors of an image          K  classes                    M  ground truths, padded
    a  anchors of a cell            L  levels of the pyramid      C  crowd regions, padded
    h w  cells of a level           N  candidates before NMS      D  detections that come out

Boxes are (ymin, xmin, ymax, xmax) in absolute pixels of the network's input; the maximum is
exclusive, so a box's height is ymax - ymin. A mask is True where a row is real.

Nothing in `core` has a batch axis: it is the mathematics of one image. Batch it with `jax.vmap`.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

# What every function takes: anchors are static numpy, the rest lives on the device.
Array = jax.Array | np.ndarray

# Labels and matches count from 0; these stand where an anchor has no ground truth.
BACKGROUND = -1  # nothing there: every class is a negative
IGNORE = -2  # unsure: no loss at all


class Targets(NamedTuple):
    """What the losses must know about one image."""

    labels: Int[Array, " A"]  # class in [0, K), or BACKGROUND, or IGNORE
    boxes: Float[Array, "A 4"]  # the matched ground truth; the anchor itself where there is none


class Detections(NamedTuple):
    """What was found in one image, best score first; rows beyond the last are zero and False."""

    boxes: Float[Array, "D 4"]  # in pixels of the original picture
    scores: Float[Array, " D"]
    classes: Int[Array, " D"]
    mask: Bool[Array, " D"]
