"""The detector: the network of `models` and the mathematics of `core`, joined over a batch.

All functions are pure and take the config's sections by the name of the function they feed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import RetinaNet, conv_general_dilated


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
