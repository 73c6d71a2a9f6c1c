"""ONNX for onnxruntime: the network, the choice of candidates, NMS, all in standard operators."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from retinanet_jax.export.onnx import nms
from retinanet_jax.export.onnx.graph import Graph
from retinanet_jax.export.servable import INPUTS, OUTPUTS, Found, Run, Servable

FOLDER = "detector"  # a model of a Triton repository
FILE, TRITON_CONFIG = f"{FOLDER}/1/model.onnx", f"{FOLDER}/config.pbtxt"
PACKAGES = ("onnx", "onnxruntime")


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Writes FILE and TRITON_CONFIG; ValueError for what ONNX has no operators for."""
    import onnx

    config = servable.config
    if config.detections.nms != "hard":
        raise ValueError(
            f"config.detections.nms={config.detections.nms!r} is not in ONNX; export to stablehlo "
            "or savedmodel."
        )
    if config.dtype != "float32":
        raise ValueError(
            f"config.dtype={config.dtype!r} is not what onnxruntime computes in on every device; "
            "export to stablehlo or savedmodel."
        )
    limits = config.detections
    graph = Graph(
        {
            "non_maximum_suppression": nms.non_maximum_suppression(
                num_classes=len(servable.trained.categories),
                iou_threshold=limits.iou_threshold,
                class_agnostic=limits.class_agnostic,
            )
        }
    )
    specs = servable.specs(servable.batch_size)
    jaxpr = jax.make_jaxpr(lambda *inputs: tuple(servable.unrolled(*inputs)))(*specs)
    (folder / FILE).parent.mkdir(parents=True)
    onnx.save(graph.model(jaxpr, INPUTS, OUTPUTS), folder / FILE)
    (folder / TRITON_CONFIG).write_text(triton_config(jaxpr.in_avals, jaxpr.out_avals))


def triton_config(inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """What Triton wants beside the folder of versions; the batch is one of the dimensions."""

    def listed(names: Sequence[str], avals: Sequence[Any]) -> str:
        types = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
        return ",\n".join(
            f'  {{ name: "{name}" data_type: {types[str(aval.dtype)]} dims: {list(aval.shape)} }}'
            for name, aval in zip(names, avals, strict=True)
        )

    return (
        f'name: "{FOLDER}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        f"input [\n{listed(INPUTS, inputs)}\n]\noutput [\n{listed(OUTPUTS, outputs)}\n]\n"
    )


def load(folder: pathlib.Path) -> Run:
    """What FILE does on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, sizes: np.ndarray) -> Found:
        return Found(*session.run(OUTPUTS, {"images": images, "sizes": sizes}))

    return run
