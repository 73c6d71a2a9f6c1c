"""A SavedModel for TensorFlow Serving: the StableHLO of `jax.export` inside one TensorFlow op."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as dialect
from jaxlib.mlir.passmanager import PassManager

from retinanet_jax.data import tf_transforms
from retinanet_jax.data.sizes import size_in_canvas
from retinanet_jax.export import stablehlo
from retinanet_jax.export.any_size import known_shape
from retinanet_jax.export.servable import (
    INPUTS,
    OUTPUTS,
    ArtifactFunction,
    Servable,
    resize_options,
)
from retinanet_jax.utils.progress import one_line

if TYPE_CHECKING:
    import tensorflow as tf

FOLDER = "detector/1"  # TensorFlow Serving requires numbered versions
PACKAGES = ("tensorflow", "flatbuffers")
# TensorFlow 2.21 reads StableHLO up to version 1.13.7; jax writes a newer version by default.
STABLEHLO_VERSION = "1.13.0"
# TensorFlow does not know jax's composite operation top_k. This pass replaces it by its
# decomposition, which is part of the module.
PASSES = "builtin.module(func.func(stablehlo-legalize-composite-to-call))"
JPEG_SIGNATURE = "serving_jpeg"


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Write a SavedModel to FOLDER in `folder`, with the signature for JPEGs if it is possible.

    That signature needs an input of one size.

    Args:
        servable: The detector.
        folder: The folder, which exists.

    Raises:
        OSError: If it cannot be written.
    """
    tf = tf_transforms.import_tensorflow()

    module: Any = tf.Module()
    module.detect = tf.function(make_detect(servable), input_signature=input_specs(servable))
    signatures = {"serving_default": module.detect}
    if servable.image_size and has_jpeg_signature(servable):
        files = tf.TensorSpec([servable.batch_size], tf.string, name="jpeg")
        module.detect_jpeg = tf.function(
            _make_detect_jpeg(servable, servable.image_size, module.detect), input_signature=[files]
        )
        signatures[JPEG_SIGNATURE] = module.detect_jpeg
    try:
        tf.saved_model.save(module, str(folder / FOLDER), signatures=signatures)
    except tf.errors.OpError as error:  # such as of a full disk
        raise OSError(f"TensorFlow cannot write the SavedModel ({one_line(error)}).") from None


def check_supported(servable: Servable) -> None:
    """Accept every detector."""


def load(folder: pathlib.Path) -> ArtifactFunction:
    """Return the function that runs the default signature of the SavedModel in `folder`."""
    tf = tf_transforms.import_tensorflow()

    # A signature does not keep its model alive, so `run` must refer to the model.
    model = tf.saved_model.load(str(folder / FOLDER))

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = model.signatures["serving_default"](images=images, sizes=sizes)
        return tuple(outputs[name].numpy() for name in OUTPUTS if name in outputs)  # raw has fewer

    return run


def has_jpeg_signature(servable: Servable) -> bool:
    """Return whether TensorFlow has the config's method of resizing; it lacks Pillow's."""
    return servable.config.data.resize != "pillow"


def input_specs(servable: Servable) -> "list[tf.TensorSpec]":
    """Return the shapes and types of INPUTS for TensorFlow."""
    import tensorflow as tf

    return [
        tf.TensorSpec(known_shape(spec.shape), spec.dtype, name=name)
        for name, spec in zip(INPUTS, servable.specs(servable.batch_size), strict=True)
    ]


def make_detect(servable: Servable) -> "Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]":
    """Return the function of the default signature."""
    # jax2tf uses the same operation; it has no public name.
    from tensorflow.compiler.tf2xla.python.xla import call_module

    exported = stablehlo.export_servable(servable)
    types = dict(zip(servable.output_names, exported.out_avals, strict=True))

    def detect(images: "tf.Tensor", sizes: "tf.Tensor") -> "dict[str, tf.Tensor]":
        outputs: Any = call_module(
            [images, sizes],
            version=exported.calling_convention_version,
            module=portable_module(exported.mlir_module_serialized),
            Tout=[aval.dtype for aval in types.values()],
            Sout=[known_shape(aval.shape) for aval in types.values()],
            platforms=[platform.upper() for platform in exported.platforms],
        )
        return dict(zip(types, outputs, strict=True))

    return detect


def portable_module(module: bytes) -> bytes:
    """Return a serialized StableHLO module in a version and with operations TensorFlow can read."""
    dialect.register_stablehlo_passes()
    with ir.Context() as context:
        dialect.register_dialect(context)
        parsed = dialect.deserialize_portable_artifact(context, module)
        PassManager.parse(PASSES).run(parsed.operation)
        return dialect.serialize_portable_artifact(parsed, STABLEHLO_VERSION)


def _make_detect_jpeg(
    servable: Servable, image_size: tuple[int, int], detect: Callable
) -> "Callable[[tf.Tensor], dict[str, tf.Tensor]]":
    """Return the function of the JPEG signature; its boxes are in pixels of the files' images."""
    import tensorflow as tf

    height, width = image_size
    pixels = servable.specs(1)[0].dtype
    prepare = _make_prepare(servable, image_size)

    def detect_jpeg(jpeg: tf.Tensor) -> dict[str, tf.Tensor]:
        images, sizes, scales = tf.map_fn(
            prepare, jpeg, fn_output_signature=(pixels, tf.int32, tf.float32)
        )
        images = tf.ensure_shape(images, (servable.batch_size, height, width, 3))
        sizes = tf.ensure_shape(sizes, (servable.batch_size, 2))
        outputs = detect(images, sizes)
        y, x = tf.unstack(scales, axis=1)
        return {**outputs, "boxes": outputs["boxes"] * tf.stack([x, y, x, y], axis=1)[:, None]}

    return detect_jpeg


def _make_prepare(
    servable: Servable, image_size: tuple[int, int]
) -> "Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]":
    """Return a function that decodes, resizes and pads a JPEG, as `Servable.prepare` does.

    It returns the image, its size inside the input, and the original pixels per input pixel.
    """
    import tensorflow as tf

    height, width = image_size
    options = resize_options(servable.config)
    options["short_side"] = tf.constant(options["short_side"], tf.float64)

    def prepare(jpeg: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = tf_transforms.decode_jpeg(jpeg)
        original = tf.shape(image)[:2]
        rows, columns = tf.unstack(tf.cast(original, tf.float64))
        size = size_in_canvas(rows, columns, image_size, **options, xp=tf)
        size = tf.cast(tf.stack(size), tf.int32)
        resized = tf_transforms.pad(
            tf_transforms.resize(image, size, method=options["resize"]), (height, width)
        )
        scale = tf.cast(original, tf.float32) / tf.cast(size, tf.float32)
        return tf.ensure_shape(resized, (height, width, 3)), size, scale

    return prepare
