"""A SavedModel for TensorFlow Serving: the StableHLO of `jax.export` inside one TensorFlow op."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as dialect
from jaxlib.mlir.passmanager import PassManager

from retinanet_jax.data.transforms import tf_decode_jpeg, tf_pad, tf_resize
from retinanet_jax.export import stablehlo
from retinanet_jax.export.servable import INPUTS, OUTPUTS, Found, Run, Servable

if TYPE_CHECKING:
    import tensorflow as tf

FOLDER = "detector/1"  # TensorFlow Serving wants numbered versions
PACKAGES = ("tensorflow", "flatbuffers")
# TensorFlow 2.21 reads StableHLO up to 1.13.7, which is older than what jax writes by itself.
STABLEHLO_VERSION = "1.13.0"
# It does not know jax's top_k; what jax says of how to compute it, it does.
PASSES = "builtin.module(func.func(stablehlo-legalize-composite-to-call))"
JPEG_SIGNATURE = "serving_jpeg"


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Writes a SavedModel to FOLDER in `folder`."""
    import tensorflow as tf

    module = tf.Module()
    module.detect = tf.function(_detection(servable), input_signature=_specs(servable))
    signatures = {"serving_default": module.detect}
    if has_jpeg_signature(servable):
        names = tf.TensorSpec([servable.batch_size], tf.string, name="jpeg")
        module.detect_jpeg = tf.function(
            _jpeg_detection(servable, module.detect), input_signature=[names]
        )
        signatures[JPEG_SIGNATURE] = module.detect_jpeg
    tf.saved_model.save(module, str(folder / FOLDER), signatures=signatures)


def load(folder: pathlib.Path) -> Run:
    """What the default signature does."""
    import tensorflow as tf

    # Kept, or its functions go with it.
    model = tf.saved_model.load(str(folder / FOLDER))

    def run(images: np.ndarray, sizes: np.ndarray) -> Found:
        found = model.signatures["serving_default"](images=images, sizes=sizes)
        return Found(*(found[name].numpy() for name in OUTPUTS))

    return run


def has_jpeg_signature(servable: Servable) -> bool:
    """Whether TensorFlow can resize as the detector wants: Pillow's way it cannot."""
    return servable.config.data.resize != "pillow"


def _specs(servable: Servable) -> "list[tf.TensorSpec]":
    import tensorflow as tf

    return [
        tf.TensorSpec((servable.batch_size, *spec.shape[1:]), spec.dtype, name=name)
        for name, spec in zip(INPUTS, servable.specs(1), strict=True)
    ]


def _detection(servable: Servable) -> Any:
    """The function of the default signature."""
    # The op that jax2tf makes too; it has no public name.
    from tensorflow.compiler.tf2xla.python.xla import call_module

    exported = stablehlo.exported(servable)
    types = dict(zip(OUTPUTS, exported.out_avals, strict=True))

    def detect(images: "tf.Tensor", sizes: "tf.Tensor") -> "dict[str, tf.Tensor]":
        found = call_module(
            [images, sizes],
            version=exported.calling_convention_version,
            module=portable(exported.mlir_module_serialized),
            Tout=[type.dtype for type in types.values()],
            Sout=[(servable.batch_size, *type.shape[1:]) for type in types.values()],
            platforms=[platform.upper() for platform in exported.platforms],
        )
        return dict(zip(types, found, strict=True))

    return detect


def portable(module: bytes) -> bytes:
    """A serialised StableHLO module as TensorFlow reads it."""
    dialect.register_stablehlo_passes()
    with ir.Context() as context:
        dialect.register_dialect(context)
        parsed = dialect.deserialize_portable_artifact(context, module)
        PassManager.parse(PASSES).run(parsed.operation)
        return dialect.serialize_portable_artifact(parsed, STABLEHLO_VERSION)


def _jpeg_detection(servable: Servable, detect: Any) -> Any:
    """The function of the second signature: boxes are in pixels of the pictures in the files."""
    import tensorflow as tf

    data, (height, width) = servable.config.data, servable.image_size
    half = 0.0 if data.resize == "bilinear_float" else 0.5
    pixels = servable.specs(1)[0].dtype

    def prepared(jpeg: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        picture = tf_decode_jpeg(jpeg)
        original = tf.cast(tf.shape(picture)[:2], tf.float64)
        # As Servable.resized_size.
        factor = tf.minimum(
            tf.minimum(
                data.eval_short_side / tf.reduce_min(original),
                data.long_side / tf.reduce_max(original),
            ),
            tf.reduce_min(tf.constant([height, width], tf.float64) / original),
        )
        size = tf.cast(tf.maximum(tf.floor(original * factor + half), 1), tf.int32)
        resized = tf_pad(tf_resize(picture, size, kind=data.resize), (height, width))
        scale = tf.cast(original, tf.float32) / tf.cast(size, tf.float32)
        return tf.ensure_shape(resized, (height, width, 3)), size, scale

    def detect_jpeg(jpeg: tf.Tensor) -> dict[str, tf.Tensor]:
        images, sizes, scales = tf.map_fn(
            prepared, jpeg, fn_output_signature=(pixels, tf.int32, tf.float32)
        )
        images = tf.ensure_shape(images, (servable.batch_size, height, width, 3))
        sizes = tf.ensure_shape(sizes, (servable.batch_size, 2))
        found = detect(images, sizes)
        y, x = tf.unstack(scales, axis=1)
        return {**found, "boxes": found["boxes"] * tf.stack([x, y, x, y], axis=1)[:, None]}

    return detect_jpeg
