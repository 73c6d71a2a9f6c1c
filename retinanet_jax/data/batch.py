"""What the data island hands over: one host's share of one step."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8


class Batch(NamedTuple):
    """Pictures of one bucket and their ground truth, padded to fixed shapes.

    Pictures are RGB in 0..255, resized into the top left corner of (H, W), zero elsewhere; bytes,
    or floats where resizing was not to be rounded. Boxes are yxyx in pixels of (H, W). Where a mask
    is False the row is zero.
    """

    images: UInt8[np.ndarray, "B H W 3"] | Float32[np.ndarray, "B H W 3"]
    sizes: Float32[np.ndarray, "B 2"]  # height and width of the picture inside (H, W)
    scales: Float32[np.ndarray, "B 2"]  # original pixels per input pixel, y and x
    boxes: Float32[np.ndarray, "B M 4"]
    classes: Int32[np.ndarray, "B M"]
    mask: Bool[np.ndarray, "B M"]
    crowd_boxes: Float32[np.ndarray, "B C 4"]
    crowd_mask: Bool[np.ndarray, "B C"]
    weights: Float32[np.ndarray, " B"]  # 1 a picture of the data set, 0 a filler
    index: Int32[np.ndarray, " B"]  # row of the source
    colors: Float32[np.ndarray, "B 4"]  # brightness, contrast, saturation factors; shift of the hue
    dropped: Int32[np.ndarray, " B"]  # boxes that the crop cut below the share that must be visible
