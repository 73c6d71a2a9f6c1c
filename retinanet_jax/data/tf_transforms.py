"""TensorFlow versions of the functions of `transforms`, and of `decoding` for plain JPEG files.

TensorFlow is imported only when a function is called.
"""

import os
from types import ModuleType
from typing import Any

import numpy as np

from retinanet_jax.data.transforms import PIXEL_TYPES, resize_window, unrotated_windows

Tensor = Any  # a tf.Tensor, or a value that TensorFlow converts to one
# Environment variables that TensorFlow reads when it is imported, with the values that the package
# sets unless the user has set others.
ENVIRONMENT = {
    # TensorFlow would report an invalid image before our own message does.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # If oneDNN is on, TensorFlow reports it in lines that no log level hides. No operation of this
    # package uses it: images and the detections of a SavedModel are bit for bit the same without.
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def import_tensorflow() -> ModuleType:
    """Import TensorFlow without its messages about itself.

    Raises:
        ImportError: If it is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import tensorflow as tf

    return tf


def transform_image(
    image: Tensor,
    resized: Tensor,
    flipped: Tensor,
    rot90_k: Tensor,
    offset: Tensor,
    size: Tensor,
    *,
    method: str,
) -> Tensor:
    """Resize, flip, rotate and crop an image.

    Args:
        image: uint8 RGB pixels.
        resized: `Geometry.resized`.
        flipped: `Geometry.flip`.
        rot90_k: `Geometry.rot90_k`.
        offset: `Geometry.offset`.
        size: `Geometry.size`.
        method: A key of PIXEL_TYPES.
    """
    import tensorflow as tf

    edges = tf.unstack(resized), tf.unstack(offset), tf.unstack(size)
    window = tf.stack(unrotated_windows(*edges))[tf.cast(flipped, tf.int32), rot90_k]
    image = tf.cond(
        tf.reduce_all(tf.shape(image)[:2] == resized),
        lambda: tf.cast(_crop(image, window), PIXEL_TYPES[method]),
        lambda: _resize_window(image, resized, window, method),
    )
    image = tf.cond(flipped, lambda: flip(image), lambda: image)
    return tf.cond(rot90_k > 0, lambda: tf.image.rot90(image, rot90_k), lambda: image)


def decode_jpeg(data: Tensor) -> Tensor:
    """Decode a file for which `decoding.is_plain_jpeg` is True, like `decoding.decode_image`.

    TensorFlow then uses the same inverse cosine transform as Pillow.
    """
    import tensorflow as tf

    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def resize(image: Tensor, size: Tensor, *, method: str) -> Tensor:
    """Resize an image.

    Args:
        image: uint8 RGB pixels.
        size: The new (height, width).
        method: A key of PIXEL_TYPES.
    """
    import tensorflow as tf

    return _resize_window(image, size, tf.concat([[0, 0], size], axis=0), method)


def flip(image: Tensor) -> Tensor:
    """Mirror an image left to right."""
    import tensorflow as tf

    return tf.reverse(image, axis=[1])


def pad(image: Tensor, size: Tensor) -> Tensor:
    """Pad an image with zeros at the bottom and the right.

    Args:
        image: RGB pixels.
        size: The new (height, width).
    """
    import tensorflow as tf

    return tf.image.pad_to_bounding_box(image, 0, 0, size[0], size[1])


def _resize_window(image: Tensor, size: Tensor, window: Tensor, method: str) -> Tensor:
    """Return `transforms.resize_window`, though TensorFlow resizes the image outside it, too."""
    import tensorflow as tf

    if method == "pillow":

        def resize_by_pillow(image: np.ndarray, size: np.ndarray, window: np.ndarray) -> np.ndarray:
            return resize_window(image, tuple(size.tolist()), tuple(window.tolist()), method)

        resized = tf.numpy_function(resize_by_pillow, [image, size, window], tf.uint8)
        return tf.ensure_shape(resized, (None, None, 3))
    # TensorFlow resizes float32 twice as fast as uint8.
    image = tf.cast(image, tf.float32)
    resized = tf.image.resize(image, size, method="bilinear", antialias=False)
    resized = _crop(resized, window)
    return resized if method == "bilinear_float" else tf.cast(tf.round(resized), tf.uint8)


def _crop(image: Tensor, window: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.concat([window[2:], [3]], axis=0))
