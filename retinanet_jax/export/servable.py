"""The function that is exported: resized pictures and their sizes in, detections out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sizes import SIZE_MULTIPLE, resized_size
from retinanet_jax.data.transforms import PIXEL_TYPES, Pixels, pad, resize
from retinanet_jax.modeling import build_model, detect

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "categories", "count")
PLATFORMS = ("cpu", "cuda", "tpu")


class Found(NamedTuple):
    """What an artifact gives: rows past an image's count are zero."""

    boxes: Float32[np.ndarray, "B D 4"]  # x0 y0 x1 y1 in pixels of the pictures given
    scores: Float32[np.ndarray, "B D"]  # falling
    categories: Int32[np.ndarray, "B D"]  # the data set's own ids
    count: Int32[np.ndarray, " B"]  # detections


# How an artifact is run: images "B H W 3" and sizes "B 2", as `Servable.specs` has them.
Run = Callable[[np.ndarray, np.ndarray], Found]


class Servable(NamedTuple):
    """A checkpoint, for pictures of one size."""

    trained: Checkpoint
    image_size: tuple[int, int]  # (H, W), multiples of 32
    batch_size: int | None  # None: any

    @property
    def config(self) -> ConfigDict:
        """With the limits that the artifact has."""
        return self.trained.config

    def __call__(self, images: jax.Array, sizes: jax.Array) -> Found:
        """What jax traces."""
        return self._found(images, sizes, jax.vmap)

    def unrolled(self, images: jax.Array, sizes: jax.Array) -> Found:
        """The same, one picture after the other once they have passed the network."""
        return self._found(images, sizes, _one_by_one)

    def _found(self, images: jax.Array, sizes: jax.Array, map_images: Callable) -> Found:
        sizes = sizes.astype(jnp.float32)
        batch = image_batch(images, sizes, jnp.ones_like(sizes))
        model = build_model(self.config, len(self.trained.categories), portable=True)
        boxes, scores, classes, mask = detect(
            self.trained.variables, batch, model, self.config, map_images=map_images
        )
        ids = jnp.array([category.id for category in self.trained.categories], jnp.int32)
        return Found(
            boxes=jnp.where(mask[..., None], core.yxyx_to_xyxy(boxes), 0),
            scores=jnp.where(mask, scores, 0),
            categories=jnp.where(mask, ids[classes], 0),
            count=jnp.sum(mask, axis=1, dtype=jnp.int32),
        )

    def specs(self, batch_size: Any) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Of `INPUTS`; `batch_size` may be symbolic."""
        pixels = PIXEL_TYPES[self.config.data.resize]
        return (
            jax.ShapeDtypeStruct((batch_size, *self.image_size, 3), pixels),
            jax.ShapeDtypeStruct((batch_size, 2), np.int32),
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """To which (height, width) a picture is resized: as in evaluation, if that fits."""
        data, short = self.config.data, min(height, width)
        fitting = short * min(self.image_size[0] / height, self.image_size[1] / width)
        return resized_size(
            height,
            width,
            short_side=min(data.eval_short_side, fitting),
            long_side=data.long_side,
            resize=data.resize,
        )

    def prepared(self, picture: Pixels) -> tuple[np.ndarray, np.ndarray]:
        """A row of `INPUTS`: the picture resized and padded, its valid height and width."""
        size = self.resized_size(*picture.shape[:2])
        resized = resize(picture, *size, kind=self.config.data.resize)
        return pad(resized, *self.image_size), np.array(size, np.int32)


def default_image_size(config: ConfigDict) -> tuple[int, int]:
    """The square that holds every picture as evaluation resizes it, whatever its form."""
    side = -(-int(config.data.long_side) // SIZE_MULTIPLE) * SIZE_MULTIPLE
    return side, side


def image_batch(images: Any, sizes: Any, scales: Any) -> Batch:
    """What `detect` reads of a batch."""
    nothing = Batch(**dict.fromkeys(Batch._fields))
    return nothing._replace(images=images, sizes=sizes, scales=scales)


def _one_by_one(function: Callable) -> Callable:
    """`jax.vmap` without a batch axis inside."""

    def mapped(*columns: Any) -> Any:
        count = len(jax.tree.leaves(columns)[0])
        rows = [function(*jax.tree.map(lambda x: x[i], columns)) for i in range(count)]  # noqa: B023
        return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)

    return mapped
