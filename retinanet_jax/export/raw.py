"""The detector without NMS, for runtimes that have none: the boxes and scores of all anchors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float32
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.data.batch import Batch
from retinanet_jax.export.any_size import anchors_of
from retinanet_jax.export.servable import Servable
from retinanet_jax.modeling import (
    build_model,
    network_input,
    valid_sizes,
    without_padding,
)
from retinanet_jax.models import RetinaNet

OUTPUTS = ("boxes", "scores")


class RawOutputs(NamedTuple):
    """The decoded predictions of a batch for all A anchors, before the best ones are selected.

    The anchors are in the order level (finest first), row, column, scale, ratio.
    """

    boxes: Float32[Any, "B A 4"]  # x0 y0 x1 y1 in pixels of the input images
    scores: Float32[Any, "B A K"]  # of each class, in the order of the categories; 0 in the padding


class RawServable(Servable):
    """A checkpoint as a function of images of one size, which ends before top-k and NMS."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in their order."""
        return OUTPUTS

    def __call__(self, images: jax.Array, sizes: jax.Array) -> tuple[Any, ...]:
        """Return the outputs for a batch, `RawOutputs`; jax traces this function.

        Args:
            images: As in `Servable.__call__`.
            sizes: As in `Servable.__call__`.
        """
        sizes = sizes.astype(jnp.float32)
        batch = Batch.of_images(images, sizes, jnp.ones_like(sizes))
        model = build_model(self.config, len(self.checkpoint.categories), platform="any")
        return raw_outputs(self.checkpoint.variables, batch, model, self.config)

    def unrolled(self, images: jax.Array, sizes: jax.Array) -> tuple[Any, ...]:
        """Return the same outputs: nothing follows the network that needs a loop over the images.

        Args:
            images: As in `__call__`.
            sizes: As in `__call__`.
        """
        return self(images, sizes)


def raw_outputs(
    variables: Mapping[str, Any], batch: Batch, model: RetinaNet, config: ConfigDict
) -> RawOutputs:
    """Return the decoded boxes and the scores of all anchors of a batch.

    Boxes are clipped to their image only if `config.detections.clip` is "before_nms". A client that
    clips them again after its NMS has the boxes of `predict` in either case.

    Args:
        variables: The network's variables, {"params": ..., "batch_stats": ...}.
        batch: Images and their valid sizes.
        model: The network that `build_model` returns for `config`.
        config: A run's config; its `anchors`, `input`, `dtype` and `detections.clip` are used.
    """
    images = network_input(batch, config, train=False)
    outputs: Any = model.apply(variables, images, train=False, sizes=valid_sizes(batch))
    scores = tuple(map(jax.nn.sigmoid, outputs.logits))
    if config.model.padding == "masked":
        # Zeros in place of the logits' minus infinity, which a quantized runtime cannot hold.
        scores = without_padding(scores, batch, config, fill=0.0)
    anchors = jnp.concatenate(anchors_of(batch.images.shape[1:3], config))

    def decode_image(deltas, size):
        boxes = core.decode(jnp.concatenate(deltas), anchors)
        return core.clip(boxes, *size) if config.detections.clip == "before_nms" else boxes

    boxes = jax.vmap(decode_image)(outputs.deltas, batch.sizes)
    return RawOutputs(core.yxyx_to_xyxy(boxes), jnp.concatenate(scores, axis=1))
