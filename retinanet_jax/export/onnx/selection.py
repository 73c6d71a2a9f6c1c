"""The rules of the primitives that select and order elements: gather, sort and top_k."""

from typing import Any

import numpy as np

from retinanet_jax.export.onnx.graph import Graph, Value, element_type, int64
from retinanet_jax.export.onnx.registry import full_operands, result_shape, rule


@rule("gather")
def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> Value:
    """Gather whole slices along one axis, by indices that are in bounds.

    If each image of a batch has indices of its own, the axis is the one after the batch axis; if
    each level of each image has, it is the one after both.
    """
    source_shape, indices_shape = (atom.aval.shape for atom in equation.invars)
    dimensions, shape = equation.params["dimension_numbers"], result_shape(equation)
    if indices_shape == (1,) and not dimensions.collapsed_slice_dims:
        return _slice_from(graph, equation, x, indices)
    batch = tuple(range(len(dimensions.operand_batching_dims)))
    axis, num_index_axes = dimensions.start_index_map[0], len(indices_shape) - 1
    first_index_axis = 0 if batch else axis  # in the result
    index_axes = range(first_index_axis, first_index_axis + num_index_axes)
    sizes = [1 if k == axis or k in batch else size for k, size in enumerate(source_shape)]
    if (
        (batch and axis != len(batch))
        or tuple(dimensions.start_index_map) != (axis,)
        or tuple(dimensions.collapsed_slice_dims) != (axis,)
        or tuple(dimensions.operand_batching_dims) != batch
        or tuple(dimensions.start_indices_batching_dims) != batch
        or list(dimensions.offset_dims) != [k for k in range(len(shape)) if k not in index_axes]
        or list(equation.params["slice_sizes"]) != sizes
    ):
        raise ValueError(
            f"The ONNX export has no rule for jax's gather with {dimensions}; export to stablehlo "
            "or savedmodel."
        )
    x, indices = full_operands(graph, equation, x, indices)
    if batch:
        indices = graph.elementwise("Cast", indices, to=element_type(np.int64))
        return graph.add_node("GatherND", x, indices, batch_dims=len(batch), shape=shape)
    indices = graph.reshape(indices, indices_shape[:-1])
    return graph.add_node("Gather", x, indices, axis=int(axis), shape=shape)


def _slice_from(graph: Graph, equation: Any, x: Value, start: Value) -> Value:
    """Take a slice that starts at an index: jax's slicing of an array with symbolic sizes."""
    (axis,) = equation.params["dimension_numbers"].start_index_map
    size = equation.params["slice_sizes"][axis]
    x, start = full_operands(graph, equation, x, start)
    start = graph.elementwise("Cast", start, to=element_type(np.int64))
    end = graph.elementwise("Add", start, graph.dimensions((size,)))
    return graph.add_node("Slice", x, start, end, int64(axis), shape=result_shape(equation))


@rule("sort")
def _sort(graph: Graph, equation: Any, *operands: Value) -> list[Value]:
    """Sort all operands by the first; TopK takes the first of equal values, so this is stable."""
    if equation.params["num_keys"] != 1:
        raise ValueError(
            "The ONNX export cannot sort by several keys; export to stablehlo or savedmodel."
        )
    axis, shape = equation.params["dimension"], result_shape(equation)
    keys, *values = full_operands(graph, equation, *operands)
    keys, order = graph.add_nodes(
        "TopK",
        keys,
        graph.dimensions(shape[axis : axis + 1]),
        axis=axis,
        largest=0,
        shapes=[shape, shape],
    )
    return [
        keys,
        *(graph.add_node("GatherElements", x, order, axis=axis, shape=shape) for x in values),
    ]


@rule("top_k")
def _top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    (x,) = full_operands(graph, equation, x)
    shape = result_shape(equation)
    count = graph.dimensions(shape[-1:])
    values, indices = graph.add_nodes("TopK", x, count, axis=-1, shapes=[shape, shape])
    return [values, graph.elementwise("Cast", indices, to=element_type(np.int32))]
