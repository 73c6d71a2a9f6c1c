"""The detector: the network of `models` and the mathematics of `core`, joined over a batch.

All functions are pure and take the config's sections by the name of the function they feed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import Outputs, RetinaNet


def build_model(config: ConfigDict, num_classes: int) -> RetinaNet:
    """The network that `config` describes. It holds no numbers of its own but its weights."""
    return RetinaNet(
        num_classes=num_classes,
        num_anchors=len(config.anchors.scales) * len(config.anchors.ratios),
        max_level=config.anchors.max_level,
        dtype=jnp.dtype(config.dtype),
        **config.model,
    )


def initialize(config: ConfigDict, num_classes: int, seed: int) -> dict[str, Any]:
    """Random variables of the network: {"params": ..., "batch_stats": ...}."""
    model = build_model(config, num_classes)
    # No output depends on the picture's size; a small one compiles fastest.
    image = jnp.zeros((1, 64, 64, 3), jnp.float32)
    # Threefry, the default generator, compiles slowly for the many kernels of a ResNet.
    key = jax.random.key(seed, impl="unsafe_rbg")
    variables = jax.jit(functools.partial(model.init, train=False))(key, image)
    return {"batch_stats": {}, **variables}


def normalize(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    sizes: Float[Array, "B 2"],
    *,
    order: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: jnp.dtype,
) -> Float[Array, "B H W 3"]:
    """(pixel - mean) / std in the network's channel order; zero beyond each picture's valid size.

    Args:
        images: RGB pixels in 0..255.
        sizes: valid height and width of each picture.
        order: "rgb" or "bgr", the order in which mean and std are given and the network reads.
        mean: of the pixels, one a channel.
        std: of the pixels, one a channel.
        dtype: of the result; the arithmetic is at least float32.
    """
    if order not in ("rgb", "bgr"):
        raise ValueError(f"input.order={order!r} must be 'rgb' or 'bgr'.")
    arithmetic = jnp.promote_types(dtype, jnp.float32)
    pixels = images[..., ::-1] if order == "bgr" else images
    pixels = (pixels.astype(arithmetic) - jnp.array(mean, arithmetic)) / jnp.array(std, arithmetic)
    rows = jnp.arange(images.shape[1])[None, :, None] < sizes[:, 0, None, None]  # B H 1
    columns = jnp.arange(images.shape[2])[None, None, :] < sizes[:, 1, None, None]  # B 1 W
    return jnp.where((rows & columns)[..., None], pixels, 0).astype(dtype)


def network_input(batch: Batch, config: ConfigDict) -> Float[Array, "B H W 3"]:
    """The batch's pictures as the network reads them."""
    return normalize(batch.images, batch.sizes, dtype=jnp.dtype(config.dtype), **config.input)


def image_anchors(image_size: tuple[int, int], config: ConfigDict) -> tuple[np.ndarray, ...]:
    """One array of anchors a level (static numpy) for pictures of `image_size`."""
    return core.pyramid_anchors(image_size, **config.anchors)


class LossTerms(NamedTuple):
    """What one batch costs, and what a person wants to see of it."""

    total: Float[Array, ""]
    classification: Float[Array, ""]
    box: Float[Array, ""]
    num_foreground: Float[Array, ""]  # anchors of the batch
    normalizer: Float[Array, ""]  # the moving count of foreground anchors; unchanged unless "ema"


def batch_loss(
    outputs: Outputs, batch: Batch, normalizer: Float[Array, ""], config: ConfigDict
) -> LossTerms:
    """Loss of a batch: classification + box_weight * box (paper, section 4.1).

    Args:
        outputs: of the network, per level.
        batch: ground truth; filler rows (weight 0) cost nothing.
        normalizer: the moving count of foreground anchors so far, for loss.normalizer="ema".
        config: its sections anchors, matching and loss.
    """
    anchors = image_anchors(batch.images.shape[1:3], config)
    assign = functools.partial(core.assign_targets, **config.matching)
    targets = jax.vmap(assign, in_axes=(None, 0, 0, 0, 0, 0, 0))(
        jnp.asarray(np.concatenate(anchors), batch.boxes.dtype),
        batch.boxes,
        batch.classes,
        batch.mask,
        batch.crowd_boxes,
        batch.crowd_mask,
        batch.sizes,
    )
    class_sums, box_sums = 0.0, 0.0
    ends = np.cumsum([len(level) for level in anchors])
    for logits, deltas, level, end in zip(*outputs, anchors, ends, strict=True):
        part = core.Targets(*(x[:, end - len(level) : end] for x in targets))
        class_sums += jax.vmap(classification_term(config.loss))(logits, part.labels)
        box_sums += jax.vmap(box_term(config.loss), in_axes=(0, None, 0))(
            deltas, jnp.asarray(level, batch.boxes.dtype), part
        )
    foreground = jax.vmap(core.count_foreground)(targets.labels).astype(class_sums.dtype)
    return reduce_losses(class_sums, box_sums, foreground, batch.weights, normalizer, config.loss)


def classification_term(loss: ConfigDict):
    """`(logits, labels) -> sum` of one image and level, as config.loss names it."""
    elementwise = {
        "focal": functools.partial(core.focal_loss, alpha=loss.alpha, gamma=loss.gamma),
        "balanced_cross_entropy": functools.partial(core.balanced_cross_entropy, alpha=loss.alpha),
        "cross_entropy": core.cross_entropy,
    }
    return functools.partial(
        core.classification_sum,
        elementwise=choose("loss.classification", loss.classification, elementwise),
    )


def box_term(loss: ConfigDict):
    """`(deltas, anchors, targets) -> sum` of one image and level, as config.loss names it."""
    terms = {
        "smooth_l1": functools.partial(core.smooth_l1_sum, beta=loss.beta),
        "giou": core.giou_sum,
    }
    return choose("loss.box", loss.box, terms)


def reduce_losses(
    class_sums: Float[Array, " B"],
    box_sums: Float[Array, " B"],
    foreground: Float[Array, " B"],
    weights: Float[Array, " B"],
    normalizer: Float[Array, ""],
    loss: ConfigDict,
) -> LossTerms:
    """Sums of images -> the batch's loss, divided by foreground anchors of the batch, image or EMA.

    "batch" is the paper's; "image" is torchvision's (mean over images); "ema" is detectron2's.
    """
    num_foreground = jnp.sum(weights * foreground)
    if loss.normalizer == "ema":
        normalizer = core.ema_normalizer(normalizer, num_foreground, momentum=loss.ema_momentum)
    share = choose(
        "loss.normalizer",
        loss.normalizer,
        {
            "batch": weights / jnp.maximum(num_foreground, 1),
            "image": weights / jnp.maximum(foreground, 1) / jnp.maximum(jnp.sum(weights), 1),
            "ema": weights / normalizer,
        },
    )
    classification, box = jnp.sum(share * class_sums), jnp.sum(share * box_sums)
    total = classification + loss.box_weight * box
    return LossTerms(total, classification, box, num_foreground, normalizer)


def detect(variables: dict[str, Any], batch: Batch, model: RetinaNet, config: ConfigDict):
    """Detections of a batch in pixels of the original pictures: `core.Detections` with a B axis."""
    outputs = model.apply(variables, network_input(batch, config), train=False)
    anchors = image_anchors(batch.images.shape[1:3], config)

    def one_image(logits, deltas, size, scale):
        return core.detect(
            logits,
            deltas,
            tuple(map(jnp.asarray, anchors)),
            valid_size=size,
            original_scale=scale,
            **config.detections,
        )

    return jax.vmap(one_image)(outputs.logits, outputs.deltas, batch.sizes, batch.scales)


def choose(field: str, name: str, choices: dict[str, Any]) -> Any:
    """choices[name], or a ValueError that names the config field and what it may be."""
    if name not in choices:
        raise ValueError(f"{field}={name!r} must be one of {', '.join(choices)}.")
    return choices[name]
