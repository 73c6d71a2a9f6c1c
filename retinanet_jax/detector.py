"""The detector: the network of `models` and the mathematics of `core`, joined over a batch.

All functions are pure and take the config's sections by the name of the function they feed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import Outputs, RetinaNet, conv_general_dilated


def build_model(config: ConfigDict, num_classes: int, *, portable: bool = False) -> RetinaNet:
    """The network that `config` describes. It holds no numbers of its own but its weights.

    On a CPU it convolves in ways that pay there; `portable`: as programs for other machines do.
    """
    # Where devices share a picture's rows, the compiler knows how to share a plain convolution.
    fast = jax.default_backend() == "cpu" and config.space == 1 and not portable
    return RetinaNet(
        num_classes=num_classes,
        num_anchors=len(config.anchors.scales) * len(config.anchors.ratios),
        max_level=config.anchors.max_level,
        dtype=jnp.dtype(config.dtype),
        convolve=conv_general_dilated if fast else None,
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
    inside = valid_pixels(sizes, images.shape[1:3])
    return jnp.where(inside[..., None], pixels, 0).astype(dtype)


def valid_pixels(sizes: Float[Array, "B 2"], image_size: tuple[int, int]) -> Bool[Array, "B H W"]:
    """Which pixels are of the pictures, which have the heights and widths `sizes`."""
    rows = jnp.arange(image_size[0])[None, :, None] < sizes[:, 0, None, None]  # B H 1
    columns = jnp.arange(image_size[1])[None, None, :] < sizes[:, 1, None, None]  # B 1 W
    return rows & columns


def network_input(batch: Batch, config: ConfigDict, *, train: bool) -> Float[Array, "B H W 3"]:
    """The batch's pictures as the network reads them; in training, with their drawn colours."""
    images = batch.images
    if train and any(config.data.color_jitter.values()):
        # On the device, where it costs next to nothing; the host is busy decoding.
        inside = valid_pixels(batch.sizes, images.shape[1:3])
        pixels = images.astype(jnp.promote_types(config.dtype, jnp.float32))
        images = jax.vmap(core.jitter_color)(pixels, inside, batch.colors)
    return normalize(images, batch.sizes, dtype=jnp.dtype(config.dtype), **config.input)


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

    loss.classification="ohem" changes the classification alone, to a mean over the anchors kept:
    the box loss is over all foreground anchors whatever the classification.

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
    labels, num_kept = targets.labels, None
    if config.loss.classification == "ohem":
        labels = hard_labels(outputs.logits, labels, anchors, config.loss.ohem)
        num_kept = jnp.sum(labels != core.IGNORE, axis=1)
    class_sums, box_sums = 0.0, 0.0
    ends = np.cumsum([len(level) for level in anchors])
    for logits, deltas, level, end in zip(*outputs, anchors, ends, strict=True):
        here = slice(end - len(level), end)
        class_sums += jax.vmap(classification_term(config.loss))(logits, labels[:, here])
        box_sums += jax.vmap(box_term(config.loss), in_axes=(0, None, 0))(
            deltas,
            jnp.asarray(level, batch.boxes.dtype),
            core.Targets(*(x[:, here] for x in targets)),
        )
    foreground = jax.vmap(core.count_foreground)(targets.labels).astype(class_sums.dtype)
    return reduce_losses(
        class_sums, box_sums, foreground, num_kept, batch.weights, normalizer, config.loss
    )


def hard_labels(
    logits: tuple[Float[Array, "B _ K"], ...],
    labels: Int[Array, "B A"],
    anchors: tuple[np.ndarray, ...],
    ohem: ConfigDict,
) -> Int[Array, "B A"]:
    """The labels, with IGNORE for the anchors that are not their image's hard examples.

    An anchor's loss is its cross entropy, summed over the classes.
    """
    loss = functools.partial(core.classification_per_anchor, elementwise=core.cross_entropy)
    ends = np.cumsum([len(level) for level in anchors])
    losses = [
        jax.vmap(loss)(level, part)
        for level, part in zip(logits, jnp.split(labels, ends[:-1], axis=1), strict=True)
    ]
    select = functools.partial(core.hard_examples, **ohem)
    keep = jax.vmap(select, in_axes=(0, None, 0))(
        jnp.concatenate(losses, axis=1), jnp.asarray(np.concatenate(anchors)), labels
    )
    return jnp.where(keep, labels, core.IGNORE)


def classification_term(loss: ConfigDict):
    """`(logits, labels) -> sum` of one image and level, as config.loss names it."""
    elementwise = {
        "focal": functools.partial(core.focal_loss, alpha=loss.alpha, gamma=loss.gamma),
        "focal_star": functools.partial(
            core.focal_star, alpha=loss.alpha, gamma=loss.gamma, beta=loss.star_beta
        ),
        "balanced_cross_entropy": functools.partial(core.balanced_cross_entropy, alpha=loss.alpha),
        "cross_entropy": core.cross_entropy,
        "ohem": core.cross_entropy,
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
    num_kept: Int[Array, " B"] | None,
    weights: Float[Array, " B"],
    normalizer: Float[Array, ""],
    loss: ConfigDict,
) -> LossTerms:
    """Sums of images -> the batch's loss, divided by foreground anchors of the batch, image or EMA.

    "batch" is the paper's; "image" is torchvision's (mean over images); "ema" is detectron2's.
    Where OHEM chose, the classification is divided by the `num_kept` anchors instead, of the image
    with "image" and of the batch otherwise.
    """
    num_foreground = jnp.sum(weights * foreground)
    if loss.normalizer == "ema":
        normalizer = core.ema_normalizer(normalizer, num_foreground, momentum=loss.ema_momentum)

    def shares(counts, moving):
        choices = {
            "batch": weights / jnp.maximum(jnp.sum(weights * counts), 1),
            "image": weights / jnp.maximum(counts, 1) / jnp.maximum(jnp.sum(weights), 1),
            "ema": weights / moving,
        }
        return choose("loss.normalizer", loss.normalizer, choices)

    box_shares = class_shares = shares(foreground, normalizer)
    if num_kept is not None:  # nearly the same at every step: it needs no moving average
        class_shares = shares(num_kept, jnp.maximum(jnp.sum(weights * num_kept), 1))
    classification, box = jnp.sum(class_shares * class_sums), jnp.sum(box_shares * box_sums)
    total = classification + loss.box_weight * box
    return LossTerms(total, classification, box, num_foreground, normalizer)


def detect(
    variables: dict[str, Any],
    batch: Batch,
    model: RetinaNet,
    config: ConfigDict,
    *,
    map_images: Callable = jax.vmap,
):
    """Detections of a batch in pixels of the original pictures: `core.Detections` with a B axis.

    `map_images` runs what is done image by image.
    """
    outputs = model.apply(variables, network_input(batch, config, train=False), train=False)
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

    return map_images(one_image)(outputs.logits, outputs.deltas, batch.sizes, batch.scales)


def choose(field: str, name: str, choices: dict[str, Any]) -> Any:
    """choices[name], or a ValueError that names the config field and what it may be."""
    if name not in choices:
        raise ValueError(f"{field}={name!r} must be one of {', '.join(choices)}.")
    return choices[name]
