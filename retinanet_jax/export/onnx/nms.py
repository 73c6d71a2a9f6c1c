"""The translation of non-maximum suppression to the ONNX operator NonMaxSuppression.

The operator is much faster in onnxruntime than the equations of `core.non_maximum_suppression`
would be as nodes.
"""

from typing import Any

import numpy as np

from retinanet_jax.export.onnx.graph import Graph, Rule, Value, int64


def make_nms_rule(*, num_classes: int, iou_threshold: float, class_agnostic: bool) -> Rule:
    """Return the rule that replaces `core.non_maximum_suppression` by NonMaxSuppression.

    The argument `limit` is ignored: `core.detect` selects only the first of the boxes anyway.

    Args:
        num_classes: Number of classes K; the classes of boxes are 0..K-1.
        iou_threshold: Boxes that overlap a better one by more than this are suppressed.
        class_agnostic: Whether boxes of different classes suppress each other.
    """

    def suppress(graph: Graph, equation: Any, boxes: Value, classes: Value, mask: Value) -> Value:
        *batch, num_boxes = equation.outvars[0].aval.shape  # without a batch axis, or with one
        row = (*batch, 1, num_boxes)
        # The boxes are in descending order of score. The operator sorts them again, by these
        # numbers: unlike scores, no two of them are equal.
        order = np.arange(num_boxes, 0, -1, dtype=np.float32)[None]
        allowed = graph.reshape(graph.broadcast(mask, equation.invars[2].aval), row)
        num_rows = 1
        if not class_agnostic:
            num_rows = num_classes
            has_class = graph.elementwise(
                "Equal",
                graph.reshape(graph.broadcast(classes, equation.invars[1].aval), row),
                np.arange(num_classes, dtype=np.int32)[:, None],
            )
            allowed = graph.elementwise("And", allowed, has_class)
        scores = graph.elementwise("Where", allowed, order, np.zeros((), np.float32))
        num_images = batch or [1]
        selected = graph.add_node(
            "NonMaxSuppression",
            graph.reshape(boxes, (*num_images, num_boxes, 4)),
            graph.reshape(scores, (*num_images, num_rows, num_boxes)),
            np.array(num_boxes, np.int64),
            np.array(iou_threshold, np.float32),
            np.array(0, np.float32),
            shape=(0, 3),  # the length is dynamic; each row is (image, class, box)
        )
        return _mask_of_boxes(graph, selected, equation.outvars[0].aval)

    return suppress


def _mask_of_boxes(graph: Graph, selected: Value, aval: Any) -> Value:
    """Return a boolean per box that is True where a row of `selected` names the box.

    Args:
        graph: The graph.
        selected: The result of NonMaxSuppression.
        aval: The abstract value of the result, which may have a batch axis.
    """
    indices = graph.add_node("Slice", selected, int64(2), int64(3), int64(1), shape=(0, 1))
    true = graph.add_node("Equal", indices, indices, shape=(0, 1))
    true = graph.add_node("Squeeze", true, int64(1), shape=(0,))
    if len(aval.shape) > 1:
        indices = graph.add_node("Gather", selected, int64(0, 2), axis=1, shape=(0, 2))
    false = graph.broadcast(np.zeros((1,) * len(aval.shape), bool), aval)
    return graph.add_node("ScatterND", false, indices, true, shape=aval.shape)
