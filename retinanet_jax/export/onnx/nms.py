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
        (num_boxes,) = equation.outvars[0].aval.shape
        # The boxes are in descending order of score. The operator sorts them again, by these
        # numbers: unlike scores, no two of them are equal.
        order = np.arange(num_boxes, 0, -1, dtype=np.float32)[None]
        allowed = graph.reshape(graph.broadcast(mask, equation.invars[2].aval), (1, num_boxes))
        num_rows = 1
        if not class_agnostic:
            num_rows = num_classes
            has_class = graph.elementwise(
                "Equal",
                graph.reshape(graph.broadcast(classes, equation.invars[1].aval), (1, num_boxes)),
                np.arange(num_classes, dtype=np.int32)[:, None],
            )
            allowed = graph.elementwise("And", allowed, has_class)
        scores = graph.elementwise("Where", allowed, order, np.zeros((), np.float32))
        selected = graph.add_node(
            "NonMaxSuppression",
            graph.reshape(boxes, (1, num_boxes, 4)),
            graph.reshape(scores, (1, num_rows, num_boxes)),
            np.array(num_boxes, np.int64),
            np.array(iou_threshold, np.float32),
            np.array(0, np.float32),
            shape=(0, 3),  # the length is dynamic; each row is (image, class, box)
        )
        return _mask_of_boxes(graph, selected, num_boxes)

    return suppress


def _mask_of_boxes(graph: Graph, selected: Value, num_boxes: int) -> Value:
    """Return a boolean per box that is True where a row of `selected` names the box."""
    indices = graph.add_node("Slice", selected, int64(2), int64(3), int64(1), shape=(0, 1))
    true = graph.add_node("Equal", indices, indices, shape=(0, 1))
    true = graph.add_node("Squeeze", true, int64(1), shape=(0,))
    return graph.add_node("ScatterND", np.zeros(num_boxes, bool), indices, true, shape=(num_boxes,))
