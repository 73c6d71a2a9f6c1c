"""The ONNX model of a detector: network, candidate selection and NMS in standard operators.

The model is written in the layout of a model repository of the Triton inference server.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from retinanet_jax.export.onnx.graph import Graph
from retinanet_jax.export.onnx.nms import make_nms_rule
from retinanet_jax.export.onnx.rules import RULES
from retinanet_jax.export.servable import (
    INPUTS,
    OUTPUTS,
    ArtifactFunction,
    ArtifactOutputs,
    Servable,
)

FOLDER = "detector"  # the name of the model in the Triton repository
FILE, TRITON_CONFIG = f"{FOLDER}/1/model.onnx", f"{FOLDER}/config.pbtxt"
PACKAGES = ("onnx", "onnxruntime")


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Write the model and its Triton configuration.

    Args:
        servable: The detector, with a fixed batch size.
        folder: An existing folder, in which FILE and TRITON_CONFIG are created.

    Raises:
        ValueError: If the config uses a feature that ONNX or onnxruntime lacks.
    """
    import onnx

    config = servable.config
    _check_supported(config)
    nms_rule = make_nms_rule(
        num_classes=len(servable.checkpoint.categories),
        iou_threshold=config.detections.iou_threshold,
        class_agnostic=config.detections.class_agnostic,
    )
    graph = Graph(RULES, {"non_maximum_suppression": nms_rule})
    specs = servable.specs(servable.batch_size)
    jaxpr = jax.make_jaxpr(lambda *inputs: tuple(servable.unrolled(*inputs)))(*specs)
    (folder / FILE).parent.mkdir(parents=True)
    onnx.save(graph.model(jaxpr, INPUTS, OUTPUTS), folder / FILE)
    (folder / TRITON_CONFIG).write_text(triton_config(jaxpr.in_avals, jaxpr.out_avals))


def _check_supported(config: ConfigDict) -> None:
    """Raise ValueError if the config uses a feature that ONNX or onnxruntime lacks."""
    if config.detections.nms != "hard":
        raise ValueError(
            f"config.detections.nms={config.detections.nms!r} cannot be expressed in ONNX, which "
            "has hard NMS only; export to stablehlo or savedmodel."
        )
    if config.dtype != "float32":
        raise ValueError(
            f"config.dtype={config.dtype!r} is not supported by onnxruntime on every device, only "
            "float32 is; export to stablehlo or savedmodel."
        )


def triton_config(inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """Return the text of Triton's config.pbtxt; the batch axis is part of the shapes.

    Args:
        inputs: Shape and dtype of each of INPUTS.
        outputs: Shape and dtype of each of OUTPUTS.
    """

    def tensors(names: Sequence[str], avals: Sequence[Any]) -> str:
        types = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
        return ",\n".join(
            f'  {{ name: "{name}" data_type: {types[str(aval.dtype)]} dims: {list(aval.shape)} }}'
            for name, aval in zip(names, avals, strict=True)
        )

    return (
        f'name: "{FOLDER}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        f"input [\n{tensors(INPUTS, inputs)}\n]\noutput [\n{tensors(OUTPUTS, outputs)}\n]\n"
    )


def load(folder: pathlib.Path) -> ArtifactFunction:
    """Return the function that runs the model in `folder` on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, sizes: np.ndarray) -> ArtifactOutputs:
        return ArtifactOutputs(*session.run(OUTPUTS, {"images": images, "sizes": sizes}))

    return run
