"""The network of `models` and the mathematics of `core`, put together by the config.

Data reaches `core` only through these pure functions: `network_input` prepares a batch's images for
the network, `image_anchors` returns the anchors of the network's outputs, `assign_batch_targets`
the targets of these outputs, and `detect` runs the network and returns detections.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.augmentation_presets import augmented_data
from retinanet_jax.config import anchors_per_cell
from retinanet_jax.config_checks import check_dtype
from retinanet_jax.core.structures import Array
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import CONVOLUTIONS, Float32Gradients, RetinaNet, level_masks, valid_mask


def build_model(config: ConfigDict, num_classes: int, *, platform: str | None = None) -> RetinaNet:
    """Return the network that `config.model` and `config.anchors` describe, as a Flax module.

    Args:
        config: A run's config.
        num_classes: Number of classes that the network scores.
        platform: The platform of the devices, such as "tpu", for which `models.convolution` may
            have faster convolutions than XLA; None for that of this process. A program exported for
            other machines has XLA's own, with "any".

    Raises:
        ValueError: If `config.dtype` is unknown.
    """
    check_dtype(config)
    # If the rows of an image are split among devices, only XLA's own convolution exchanges borders.
    convolve = None if config.space > 1 else CONVOLUTIONS.get(platform or jax.default_backend())
    if config.float32_gradients and jnp.finfo(config.dtype).bits < 32:
        convolve = Float32Gradients(convolve or lax.conv_general_dilated)
    return RetinaNet(
        num_classes=num_classes,
        num_anchors=anchors_per_cell(config),
        max_level=config.anchors.max_level,
        dtype=jnp.dtype(config.dtype),
        convolve=convolve,
        **config.model,
    )


def initialize(config: ConfigDict, num_classes: int, seed: int) -> dict[str, Any]:
    """Return random initial variables of the network: {"params": ..., "batch_stats": ...}.

    Args:
        config: A run's config.
        num_classes: Number of classes that the network scores.
        seed: Seed of the random generator.
    """
    model = build_model(config, num_classes)
    # The variables do not depend on the image's size, and a small image compiles fastest.
    image = jnp.zeros((1, 64, 64, 3), jnp.float32)
    # The default generator, Threefry, compiles slowly for the many kernels of a ResNet.
    key = jax.random.key(seed, impl="unsafe_rbg")
    variables = jax.jit(functools.partial(model.init, train=False))(key, image)
    return {"batch_stats": {}, **variables}


@jax.named_scope("input")
def network_input(batch: Batch, config: ConfigDict, *, train: bool) -> Float[Array, "B H W 3"]:
    """Return the batch's images as the network expects them: normalized, and zero in the padding.

    Args:
        batch: Images, their valid sizes, and the colors sampled for each image.
        config: A run's config; its `input`, `dtype` and augmentation of colors are used.
        train: Whether to augment the colors, provided that the config does.

    Raises:
        ValueError: If `config.dtype` is float64, and JAX is not configured to compute in it.
    """
    if jax.dtypes.canonicalize_dtype(config.dtype) != config.dtype:
        raise ValueError(
            f"dtype={config.dtype!r} would be float32, since JAX disables it; set the environment "
            "variable JAX_ENABLE_X64=1."
        )
    images = batch.images
    data = augmented_data(config)
    if train and (data.gray or any(data.color_jitter.values())):
        # Jittered on the device, where it takes almost no time; the host is busy decoding.
        valid = valid_mask(batch.sizes, images.shape[1:3])
        pixels = images.astype(jnp.promote_types(config.dtype, jnp.float32))
        images = jax.vmap(core.jitter_color)(pixels, valid, batch.colors)
    return normalize(images, batch.sizes, dtype=jnp.dtype(config.dtype), **config.input)


def normalize(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    sizes: Float[Array, "B 2"],
    *,
    order: str,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> Float[Array, "B H W 3"]:
    """Return (pixel - mean) / std in the network's channel order, and zero in the padding.

    Args:
        images: RGB pixels in 0..255.
        sizes: Valid height and width of each image, in pixels.
        order: "rgb" or "bgr", the channel order that the network expects.
        mean: Mean of each channel, in the network's order.
        std: Standard deviation of each channel, in the network's order.
        dtype: The dtype of the result; the computation uses at least float32.

    Raises:
        ValueError: If `order` is neither "rgb" nor "bgr".
    """
    if order not in ("rgb", "bgr"):
        raise ValueError(f"input.order={order!r} must be 'rgb' or 'bgr'.")
    arithmetic = jnp.promote_types(dtype, jnp.float32)
    pixels = images[..., ::-1] if order == "bgr" else images
    pixels = (pixels.astype(arithmetic) - jnp.array(mean, arithmetic)) / jnp.array(std, arithmetic)
    _, height, width, _ = images.shape
    valid = valid_mask(sizes, (height, width))
    return jnp.where(valid[..., None], pixels, 0).astype(dtype)


def valid_sizes(batch: Batch) -> Float[Array, "B 2"]:
    """Return the height and width of each image without its padding; 0 for a filler."""
    return batch.sizes * batch.weights[:, None]


def image_anchors(
    image_size: tuple[int, int], config: ConfigDict
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Return the anchors of a padded image, one static array per pyramid level.

    Args:
        image_size: Height and width of the network's input, in pixels.
        config: A run's config; its section `anchors` is used.

    Returns:
        One array of yxyx boxes in pixels of the network's input per level, finest level first, in
        the order of the network's outputs.
    """
    return core.pyramid_anchors(image_size, **config.anchors)


@jax.named_scope("targets")
def assign_batch_targets(
    anchors: Float[Array, "A 4"], batch: Batch, matching: Mapping[str, Any] | ConfigDict
) -> core.Targets:
    """Return the training targets of every anchor in every image of a batch.

    Args:
        anchors: Anchors of all levels, in yxyx pixels of the network's input.
        batch: Ground truth, crowd regions and valid sizes.
        matching: Keyword arguments of `core.assign_targets`, such as `config.matching`.

    Returns:
        `core.Targets` with a leading batch axis: labels (B, A) and boxes (B, A, 4).
    """
    # Batches are padded for the largest image of the dataset; most have far fewer boxes.
    assign = functools.partial(
        core.assign_targets,
        **matching,
        num_gt=_last_true(batch.mask),
        num_crowd=_last_true(batch.crowd_mask),
    )
    return jax.vmap(assign, in_axes=(None, 0, 0, 0, 0, 0, 0))(
        anchors,
        batch.boxes,
        batch.classes,
        batch.mask,
        batch.crowd_boxes,
        batch.crowd_mask,
        batch.sizes,
    )


def _last_true(mask: Bool[Array, "B M"]) -> Int[Array, ""]:
    """Return the number of columns up to the last one in which an element of the mask is True."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1), 0), initial=0)


def without_padding(
    values: tuple[Float[Array, "B _ K"], ...], batch: Batch, config: ConfigDict, *, fill: float
) -> tuple[Float[Array, "B _ K"], ...]:
    """Return the logits or scores of each level with `fill` in the padding.

    With the lowest value, no detections are in the padding; their number would depend on its size.

    Args:
        values: The logits or scores of each level.
        batch: The images' valid sizes, and the weights by which fillers are known.
        config: A run's config; its `anchors` are used.
        fill: The value of every class of the anchors in the padding.
    """
    image_size = batch.images.shape[1:3]
    # The masks of the network: XLA computes equal expressions once.
    masks = level_masks(valid_sizes(batch), image_size, config.anchors.max_level)
    levels = range(config.anchors.min_level, config.anchors.max_level + 1)
    map_sizes = [tuple(-(-side // 2**level) for side in image_size) for level in levels]

    def fill_padding(level_values, map_size):
        batch_size, _, num_classes = level_values.shape
        cells = level_values.reshape(batch_size, *map_size, -1)
        cells = jnp.where(masks[map_size], cells, fill)
        return cells.reshape(batch_size, -1, num_classes)

    return tuple(map(fill_padding, values, map_sizes))


def detect(
    variables: Mapping[str, Any],
    batch: Batch,
    model: RetinaNet,
    config: ConfigDict,
    *,
    score_thresholds: Sequence[float] | None = None,
    map_images: Callable[[Callable[..., Any]], Callable[..., Any]] = jax.vmap,
) -> core.Detections:
    """Return the detections of a batch, with boxes in pixels of the original images.

    Args:
        variables: The network's variables, {"params": ..., "batch_stats": ...}.
        batch: Images, their valid sizes and their scales; the ground truth is not used.
        model: The network that `build_model` returns for `config`.
        config: A run's config; its `anchors`, `detections`, `input` and `dtype` are used.
        score_thresholds: One for each class, in place of `config.detections.score_threshold`.
        map_images: Turns a function of one image into one of a batch, as `jax.vmap` does.

    Returns:
        `core.Detections` with a leading batch axis in every array.
    """
    outputs = network_outputs(variables, batch, model, config)
    anchors = image_anchors(batch.images.shape[1:3], config)
    return select_detections(
        outputs, anchors, batch, config, score_thresholds=score_thresholds, map_images=map_images
    )


def network_outputs(
    variables: Mapping[str, Any], batch: Batch, model: RetinaNet, config: ConfigDict
) -> Any:
    """Return the `models.Outputs` of a batch; with masked padding, it has the lowest logits.

    Args:
        variables: As in `detect`.
        batch: Images and their valid sizes.
        model: As in `detect`.
        config: As in `detect`.
    """
    images, sizes = network_input(batch, config, train=False), valid_sizes(batch)
    outputs: Any = model.apply(variables, images, train=False, sizes=sizes)
    if config.model.padding == "masked":
        logits = without_padding(outputs.logits, batch, config, fill=-jnp.inf)
        outputs = outputs._replace(logits=logits)
    return outputs


def select_detections(
    outputs: Any,
    anchors: Sequence[Float[Array, "_ 4"]],
    batch: Batch,
    config: ConfigDict,
    *,
    score_thresholds: Sequence[float] | None,
    map_images: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> core.Detections:
    """Return the detections of a network's outputs, with boxes in pixels of the original images.

    Args:
        outputs: The `models.Outputs` of the batch.
        anchors: The anchors of each level.
        batch: The images' valid sizes and scales.
        config: A run's config; its `detections` are used.
        score_thresholds: As in `detect`.
        map_images: As in `detect`.

    Returns:
        As `detect`.
    """
    limits = dict(config.detections)
    if score_thresholds is not None:
        limits["score_threshold"] = np.asarray(score_thresholds, np.float32)

    def detect_in_image(logits, deltas, size, scale):
        return core.detect(
            logits,
            deltas,
            tuple(map(jnp.asarray, anchors)),
            valid_size=size,
            original_scale=scale,
            per_cell=anchors_per_cell(config),
            **limits,
        )

    with jax.named_scope("detections"):
        return map_images(detect_in_image)(*outputs, batch.sizes, batch.scales)
