"""The batch: what the data pipeline produces and the model reads."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float32, Int32, UInt8

IDENTITY_COLORS = (1.0, 1.0, 1.0, 0.0)  # the `Batch.colors` that change nothing


class Batch(NamedTuple):
    """Images of one bucket and their ground truth, padded to fixed shapes.

    The fields are numpy arrays in the pipeline and jax arrays on devices; each host has only its
    own part of the batch. Images are RGB in 0..255, resized into the top left corner of the bucket
    (H, W) and zero outside; uint8, or float32 if the resize method does not round. Boxes are yxyx
    in pixels of (H, W). Boxes that are padding are zero, with a mask of False.
    """

    images: UInt8[Any, "B H W 3"] | Float32[Any, "B H W 3"]
    sizes: Float32[Any, "B 2"]  # height and width of the image inside the bucket
    scales: Float32[Any, "B 2"]  # original pixels per input pixel, y and x
    boxes: Float32[Any, "B M 4"]
    classes: Int32[Any, "B M"]
    mask: Bool[Any, "B M"]
    crowd_boxes: Float32[Any, "B C 4"]
    crowd_mask: Bool[Any, "B C"]
    weights: Float32[Any, " B"]  # 1 for an image of the dataset, 0 for a filler
    index: Int32[Any, " B"]  # index of each image in its source
    colors: Float32[Any, "B 4"]  # factors of brightness, contrast and saturation; shift of the hue
    dropped: Int32[Any, " B"]  # number of the image's own boxes that are too little visible

    @classmethod
    def of_images(
        cls,
        images: UInt8[Any, "B H W 3"] | Float32[Any, "B H W 3"],
        sizes: Float32[Any, "B 2"],
        scales: Float32[Any, "B 2"],
        *,
        num_boxes: int = 0,
        num_crowd: int = 0,
    ) -> "Batch":
        """Return a batch of images without ground truth and without color jitter.

        Args:
            images: A numpy or jax array; the other fields become arrays of the same library.
            sizes: Height and width of each image inside (H, W).
            scales: Original pixels per input pixel, y and x.
            num_boxes: M, the number of boxes per image, all of which are padding.
            num_crowd: C, the number of crowd regions per image, all of which are padding.
        """
        xp, count = images.__array_namespace__(), images.shape[0]
        return cls(
            images=images,
            sizes=sizes,
            scales=scales,
            boxes=xp.zeros((count, num_boxes, 4), xp.float32),
            classes=xp.zeros((count, num_boxes), xp.int32),
            mask=xp.zeros((count, num_boxes), bool),
            crowd_boxes=xp.zeros((count, num_crowd, 4), xp.float32),
            crowd_mask=xp.zeros((count, num_crowd), bool),
            weights=xp.ones(count, xp.float32),
            index=xp.arange(count, dtype=xp.int32),
            colors=xp.broadcast_to(xp.asarray(IDENTITY_COLORS, dtype=xp.float32), (count, 4)),
            dropped=xp.zeros(count, xp.int32),
        )
