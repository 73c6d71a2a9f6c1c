"""A traced function without loops as an ONNX graph.

What depends on no input is computed while the graph is made, so that of the weights' arithmetic
only the results are in it. Broadcasts are left to ONNX's elementwise operators, which do them
without a copy, wherever only those read the result.
"""

from typing import Any

import numpy as np

from retinanet_jax.export.onnx.graph import Graph, Rule, Value, axes_of


def non_maximum_suppression(
    *, num_classes: int, iou_threshold: float, class_agnostic: bool
) -> Rule:
    """`core.non_maximum_suppression` by ONNX's operator, which is much faster than its parts.

    Without its `limit`: `core.detect` takes the first rows of what stays in any case.
    """

    def suppress(graph: Graph, equation: Any, boxes: Value, classes: Value, mask: Value) -> Value:
        (size,) = equation.outvars[0].aval.shape
        # Best first is the order that the boxes have: scores could be equal, these are not.
        order = np.arange(size, 0, -1, dtype=np.float32)[None]
        allowed = graph.reshaped(graph.full(mask, equation.invars[2].aval), (1, size))
        rows = 1
        if not class_agnostic:
            rows = num_classes
            own = graph.elementwise(
                "Equal",
                graph.reshaped(graph.full(classes, equation.invars[1].aval), (1, size)),
                np.arange(num_classes, dtype=np.int32)[:, None],
            )
            allowed = graph.elementwise("And", allowed, own)
        scores = graph.elementwise("Where", allowed, order, np.zeros((), np.float32))
        kept = graph.node(
            "NonMaxSuppression",
            graph.reshaped(boxes, (1, size, 4)),
            graph.reshaped(scores, (1, rows, size)),
            np.array(size, np.int64),
            np.array(iou_threshold, np.float32),
            np.array(0, np.float32),
            shape=(0, 3),  # as many as there are; each is (picture, class, box)
        )
        places = graph.node("Slice", kept, axes_of(2), axes_of(3), axes_of(1), shape=(0, 1))
        ones = graph.node("Equal", places, places, shape=(0, 1))
        ones = graph.node("Squeeze", ones, axes_of(1), shape=(0,))
        return graph.node("ScatterND", np.zeros(size, bool), places, ones, shape=(size,))

    return suppress
