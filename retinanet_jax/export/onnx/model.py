"""The ONNX model of a detector: network, candidate selection and NMS in standard operators.

The model is written in the layout of a model repository of the Triton inference server.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from retinanet_jax.export.any_size import known_shape
from retinanet_jax.export.onnx.graph import Graph
from retinanet_jax.export.onnx.nms import make_nms_rule
from retinanet_jax.export.onnx.rules import RULES
from retinanet_jax.export.raw import RawServable
from retinanet_jax.export.servable import INPUTS, ArtifactFunction, Servable
from retinanet_jax.utils.packages import import_optional

FOLDER = "detector"  # the name of the model in the Triton repository
FILE, TRITON_CONFIG = f"{FOLDER}/1/model.onnx", f"{FOLDER}/config.pbtxt"
TRITON_MAX_BATCH_SIZE = 8  # images that Triton combines in a call at most
PACKAGES = ("onnx", "onnxruntime")
PURPOSE_AND_EXTRA = "the format onnx", "retinanet-jax[onnx]"  # for the error if one is missing


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Write the model and its Triton configuration.

    Args:
        servable: A detector that `check_supported` accepts.
        folder: An existing folder, in which FILE and TRITON_CONFIG are created.
    """
    onnx = import_optional("onnx", *PURPOSE_AND_EXTRA)
    config = servable.config
    nms_rule = make_nms_rule(
        num_classes=len(servable.checkpoint.categories),
        iou_threshold=config.detections.iou_threshold,
        class_agnostic=config.detections.class_agnostic,
    )
    graph = Graph(RULES, {"non_maximum_suppression": nms_rule})
    specs = servable.specs(servable.batch_size)
    function = servable.unrolled if servable.batch_size else servable
    jaxpr = jax.make_jaxpr(lambda *inputs: tuple(function(*inputs)))(*specs)
    (folder / FILE).parent.mkdir(parents=True)
    onnx.save(graph.model(jaxpr, INPUTS, servable.output_names), folder / FILE)
    outputs = dict(zip(servable.output_names, jaxpr.out_avals, strict=True))
    (folder / TRITON_CONFIG).write_text(triton_config(jaxpr.in_avals, outputs))


def check_supported(servable: Servable) -> None:
    """Check that ONNX and onnxruntime have all that the config uses.

    Raises:
        ValueError: If they lack a feature.
    """
    config = servable.config
    if config.detections.nms != "hard" and not isinstance(servable, RawServable):
        raise ValueError(
            f"config.detections.nms={config.detections.nms!r} cannot be expressed in ONNX, which "
            "has hard NMS only; export to stablehlo or savedmodel, or without NMS (--raw)."
        )
    if config.dtype != "float32":
        raise ValueError(
            f"config.dtype={config.dtype!r} is not supported by onnxruntime on every device, only "
            "float32 is; export to stablehlo or savedmodel."
        )


def triton_config(inputs: Sequence[Any], outputs: Mapping[str, Any]) -> str:
    """Return the text of Triton's config.pbtxt.

    If the model accepts any number of images, Triton combines the requests that arrive at the same
    time. Otherwise the batch axis is part of the shapes.

    Args:
        inputs: Shape and dtype of each of INPUTS.
        outputs: Shape and dtype of each output, by its name.
    """
    types = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
    accepts_any_number = known_shape(inputs[0].shape)[0] is None

    def tensor(name: str, aval: Any) -> str:
        dims = [-1 if size is None else size for size in known_shape(aval.shape)]
        if accepts_any_number:
            dims = dims[1:]  # Triton adds the batch axis
        # Triton cannot write that an image has a single number, except by a reshape.
        shape = f"dims: {dims}" if dims else "dims: [1] reshape: { shape: [] }"
        return f'  {{ name: "{name}" data_type: {types[str(aval.dtype)]} {shape} }}'

    input_tensors = ",\n".join(map(tensor, INPUTS, inputs))
    output_tensors = ",\n".join(map(tensor, outputs, outputs.values()))
    return (
        f'name: "{FOLDER}"\nbackend: "onnxruntime"\n'
        f"max_batch_size: {TRITON_MAX_BATCH_SIZE if accepts_any_number else 0}\n"
        f"input [\n{input_tensors}\n]\noutput [\n{output_tensors}\n]\n"
        + ("dynamic_batching { }\n" if accepts_any_number else "")
    )


def load(folder: pathlib.Path) -> ArtifactFunction:
    """Return the function that runs the model in `folder` on the CPU."""
    onnxruntime = import_optional("onnxruntime", *PURPOSE_AND_EXTRA)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(map(np.asarray, session.run(None, {"images": images, "sizes": sizes})))

    return run
