"""The function that is exported: it maps resized images and their sizes to detections."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import anchors_per_cell
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.buckets import make_buckets, smallest_bucket
from retinanet_jax.data.sizes import resized_size, round_up, size_in_canvas
from retinanet_jax.data.transforms import PIXEL_TYPES, Pixels, pad, resize
from retinanet_jax.export.any_size import anchors_of, size_multiple, with_more_anchors
from retinanet_jax.modeling import (
    build_model,
    network_outputs,
    select_detections,
)

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "categories", "count")
PLATFORMS = ("cpu", "cuda", "tpu")


class ArtifactOutputs(NamedTuple):
    """The detections of a batch as an artifact returns them; zeros follow the last detection."""

    boxes: Float32[Any, "B D 4"]  # x0 y0 x1 y1 in pixels of the input images
    scores: Float32[Any, "B D"]  # in descending order
    categories: Int32[Any, "B D"]  # category ids of the dataset
    count: Int32[Any, " B"]  # number of detections


# Runs an artifact: images (B, H, W, 3) and sizes (B, 2), typed as in `Servable.specs`. It returns
# the arrays of `ArtifactOutputs`, or those of `raw.RawOutputs`.
ArtifactFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


class Servable(NamedTuple):
    """A checkpoint as a function of images of one size.

    Attributes:
        checkpoint: The trained detector; the artifact has the score thresholds that it stores.
        config: The checkpoint's config with the detection limits of the artifact.
        image_size: Height and width of the input in pixels, multiples of 32; None for any multiples
            of `size_multiple`.
        batch_size: Number of images per call; None for any number.
    """

    checkpoint: Checkpoint
    config: ConfigDict
    image_size: tuple[int, int] | None
    batch_size: int | None

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in their order."""
        return OUTPUTS

    @property
    def inexact_field(self) -> str | None:
        """The config field because of which detections are not exactly those of `predict`, if any.

        With plain padding they depend on the size of the input, in bfloat16 on the order of sums.
        """
        if self.config.model.padding == "plain":
            return "config.model.padding='plain'"
        return None if self.config.dtype == "float32" else f"config.dtype='{self.config.dtype}'"

    @property
    def thresholds_by_id(self) -> dict[int, float] | None:
        """The stored score threshold of each category, by its id; None if none are stored."""
        if self.checkpoint.score_thresholds is None:
            return None
        ids = [category.id for category in self.checkpoint.categories]
        return dict(zip(ids, self.checkpoint.score_thresholds, strict=True))

    def __call__(self, images: jax.Array, sizes: jax.Array) -> tuple[Any, ...]:
        """Return the outputs for a batch, `ArtifactOutputs`; jax traces this function.

        Args:
            images: Images (B, H, W, 3) of `image_size`, each padded at the bottom and the right.
            sizes: Height and width (B, 2) of each image without its padding.
        """
        return self._detect(images, sizes, jax.vmap)

    def unrolled(self, images: jax.Array, sizes: jax.Array) -> tuple[Any, ...]:
        """Return the same outputs, with a loop over the images after the network.

        An ONNX artifact for a fixed number of images has this graph in every version.

        Args:
            images: As in `__call__`.
            sizes: As in `__call__`.
        """
        return self._detect(images, sizes, _unrolled_vmap)

    def _detect(self, images: jax.Array, sizes: jax.Array, map_images: Callable) -> ArtifactOutputs:
        sizes = sizes.astype(jnp.float32)
        batch = Batch.of_images(images, sizes, jnp.ones_like(sizes))
        categories = self.checkpoint.categories
        model = build_model(self.config, len(categories), platform="any")
        outputs = network_outputs(self.checkpoint.variables, batch, model, self.config)
        anchors = anchors_of((images.shape[1], images.shape[2]), self.config)
        if self.image_size is None:
            count = round_up(self.config.detections.top_k, anchors_per_cell(self.config))
            outputs, anchors = with_more_anchors(outputs, anchors, count)
        boxes, scores, classes, mask = select_detections(
            outputs,
            anchors,
            batch,
            self.config,
            score_thresholds=self.checkpoint.score_thresholds,
            map_images=map_images,
        )
        ids = jnp.array([category.id for category in categories], jnp.int32)
        return ArtifactOutputs(
            boxes=jnp.where(mask[..., None], core.yxyx_to_xyxy(boxes), 0),
            scores=jnp.where(mask, scores, 0),
            categories=jnp.where(mask, ids[classes], 0),
            count=jnp.sum(mask, axis=1, dtype=jnp.int32),
        )

    def specs(self, batch_size: int | None) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Return the shape and dtype of each of INPUTS, with symbolic dimensions for any size.

        Args:
            batch_size: The number of images; None for any.
        """
        sides = self.image_size or [f"{size_multiple(self.config)}*{side}" for side in "hw"]
        shape = export.symbolic_shape(f"{batch_size or 'b'}, {sides[0]}, {sides[1]}")
        pixels = PIXEL_TYPES[self.config.data.resize]
        return (
            jax.ShapeDtypeStruct((*shape, 3), pixels),
            jax.ShapeDtypeStruct((shape[0], 2), np.int32),
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is resized.

        It is the size that evaluation uses, or the largest that fits `image_size` if that does not.
        """
        if self.image_size is None:
            return resized_size(height, width, **resize_options(self.config))
        resized = size_in_canvas(height, width, self.image_size, **resize_options(self.config))
        return int(resized[0]), int(resized[1])

    def is_resized_as_in_evaluation(self, height: int, width: int) -> bool:
        """Return whether evaluation accepts an image, and the input can contain its size."""
        size = np.array([resized_size(height, width, **resize_options(self.config))])
        shapes = evaluation_shapes(self.config)
        fits_bucket = not shapes or smallest_bucket(size, np.array(shapes))[0] >= 0
        return bool(fits_bucket and (self.image_size is None or np.all(size <= self.image_size)))

    def prepare(self, image: Pixels) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs for an image: the resized and padded image, and its resized size."""
        size = self.resized_size(*image.shape[:2])
        resized = resize(image, *size, method=self.config.data.resize)
        multiple = size_multiple(self.config)
        padded = self.image_size or (round_up(size[0], multiple), round_up(size[1], multiple))
        return pad(resized, *padded), np.array(size, np.int32)


def resize_options(config: ConfigDict) -> dict[str, Any]:
    """Return the arguments `short_side`, `long_side` and `resize` of evaluation."""
    data = config.data
    return {"short_side": data.eval_short_side, "long_side": data.long_side, "resize": data.resize}


def evaluation_shapes(config: ConfigDict) -> list[tuple[int, int]]:
    """Return the (height, width) that evaluation pads images to; none if each has its own."""
    if config.data.eval_shapes == "own":
        return []
    return [(height, width) for height, width in make_buckets(config.data.buckets).tolist()]


def default_image_size(config: ConfigDict) -> tuple[int, int]:
    """Return the smallest size that contains every image as evaluation resizes it."""
    side = round_up(int(config.data.long_side))
    height, width = np.max(evaluation_shapes(config) or [(side, side)], axis=0).tolist()
    return min(height, side), min(width, side)


def _unrolled_vmap(function: Callable) -> Callable:
    """Return a function with the results of `jax.vmap(function)`, computed by a loop."""

    def mapped(*arrays: Any) -> Any:
        count = len(jax.tree.leaves(arrays)[0])
        results = [function(*jax.tree.map(lambda x: x[i], arrays)) for i in range(count)]  # noqa: B023
        return jax.tree.map(lambda *parts: jnp.stack(parts), *results)

    return mapped
