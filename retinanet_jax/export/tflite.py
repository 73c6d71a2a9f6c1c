"""LiteRT (TensorFlow Lite) of network and decoding, in builtin operators for small devices.

TensorFlow's converter translates the StableHLO of `jax.export`. It has no operators for the
selection of detections, so the artifact ends before it: its outputs are `raw.RawOutputs`.
"""

import pathlib
from typing import Any

import numpy as np

from retinanet_jax.data import tf_transforms
from retinanet_jax.export import savedmodel
from retinanet_jax.export.raw import OUTPUTS, RawServable
from retinanet_jax.export.servable import ArtifactFunction, Servable
from retinanet_jax.utils.packages import import_optional

FILE = "detector.tflite"
PACKAGES = ("tensorflow", "flatbuffers", "ai_edge_litert")
EXTRA = "retinanet-jax[tflite]"


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Write the detector with weights in float32 to FILE in `folder`, which exists.

    Args:
        servable: A detector that `check_supported` accepts.
        folder: The folder.
    """
    tf = tf_transforms.import_tensorflow()

    module: Any = tf.Module()
    module.detect = tf.function(
        savedmodel.make_detect(servable), input_signature=savedmodel.input_specs(servable)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.detect.get_concrete_function()], module
    )
    (folder / FILE).write_bytes(converter.convert())


def check_supported(servable: Servable) -> None:
    """Check that the converter has builtin operators for the detector.

    Raises:
        ValueError: If the detector has NMS or a variable size, or computes in bfloat16.
    """
    if not isinstance(servable, RawServable):
        raise ValueError("LiteRT has no operators for this NMS; export tflite without it (--raw).")
    check_fixed(servable.image_size, servable.batch_size)
    if servable.config.dtype != "float32":
        raise ValueError(
            f"config.dtype={servable.config.dtype!r} is not supported by LiteRT's convolutions; "
            "load the checkpoint with dtype='float32'."
        )


def check_fixed(image_size: object, batch_size: int | None) -> None:
    """Check that neither of the sizes is None, any size.

    Raises:
        ValueError: If one is.
    """
    if image_size is None:
        raise ValueError(
            "image_size must be fixed for tflite, because the memory of small devices is planned "
            "before the first image; try --image_size=320,320."
        )
    if batch_size is None:
        raise ValueError("batch_size must be fixed for tflite; try --batch_size=1.")


def load(folder: pathlib.Path) -> ArtifactFunction:
    """Return the function that runs FILE in `folder` by the LiteRT interpreter on the CPU."""
    litert = import_optional("ai_edge_litert.interpreter", "the format tflite", EXTRA)
    interpreter = litert.Interpreter(str(folder / FILE))
    signature = interpreter.get_signature_runner()

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = signature(images=images, sizes=sizes)
        return tuple(outputs[name] for name in OUTPUTS)

    return run
