"""A traced function without loops as an ONNX graph.

What depends on no input is computed while the graph is made, so that of the weights' arithmetic
only the results are in it. Broadcasts are left to ONNX's elementwise operators, which do them
without a copy, wherever only those read the result.
"""

from typing import Any

import numpy as np

from retinanet_jax.export.onnx.graph import Graph, Value, axes_of, element_type, rule


@rule("rsqrt")
def _rsqrt(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Reciprocal", graph.elementwise("Sqrt", x))


@rule("square")
def _square(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Mul", x, x)


@rule("ne")
def _not_equal(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return graph.elementwise("Not", graph.elementwise("Equal", x, y))


@rule("rem")
def _remainder(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return graph.elementwise("Mod", x, y, fmod=1)  # with the sign of x, as jax


@rule("clamp")
def _clamp(graph: Graph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.elementwise("Min", graph.elementwise("Max", x, low), high)


@rule("select_n")
def _select(graph: Graph, equation: Any, which: Value, if_not: Value, if_so: Value) -> Value:
    if equation.outvars[0].aval.dtype != bool:
        return graph.elementwise("Where", which, if_so, if_not)
    # onnxruntime has no Where of truth values.
    so = graph.elementwise("And", which, if_so)
    return graph.elementwise(
        "Or", so, graph.elementwise("And", graph.elementwise("Not", which), if_not)
    )


@rule("convert_element_type")
def _convert(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Cast", x, to=element_type(equation.params["new_dtype"]))


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _same(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    return list(values)


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.reshaped(graph.full(x, equation.invars[0].aval), equation.outvars[0].aval.shape)


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, equation: Any, x: Value) -> Value:
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], graph.shape(x), strict=True):
        shape[axis] = size
    return graph.reshaped(x, shape)  # left at that


@rule("transpose")
def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.transposed(x, equation.params["permutation"])


@rule("concatenate")
def _concatenate(graph: Graph, equation: Any, *parts: Value) -> Value:
    full = [graph.full(x, atom.aval) for x, atom in zip(parts, equation.invars, strict=True)]
    return graph.node(
        "Concat", *full, axis=equation.params["dimension"], shape=equation.outvars[0].aval.shape
    )


@rule("stack")
def _stack(graph: Graph, equation: Any, *parts: Value) -> Value:
    axis, result = equation.params["axis"], equation.outvars[0].aval
    shape = [1 if k == axis else size for k, size in enumerate(result.shape)]
    full = [
        graph.reshaped(graph.full(x, atom.aval), shape)
        for x, atom in zip(parts, equation.invars, strict=True)
    ]
    return graph.node("Concat", *full, axis=axis, shape=result.shape)


@rule("unstack")
def _unstack(graph: Graph, equation: Any, x: Value) -> list[Value]:
    x = graph.full(x, equation.invars[0].aval)
    return [
        graph.node(
            "Gather",
            x,
            np.array(k, np.int64),
            axis=equation.params["axis"],
            shape=var.aval.shape,
        )
        for k, var in enumerate(equation.outvars)
    ]


@rule("tile")
def _tile(graph: Graph, equation: Any, x: Value) -> Value:
    x = graph.full(x, equation.invars[0].aval)
    return graph.node(
        "Tile", x, axes_of(*equation.params["reps"]), shape=equation.outvars[0].aval.shape
    )


@rule("slice")
def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or [1] * len(starts)
    x = graph.full(x, equation.invars[0].aval)
    numbers = (axes_of(*row) for row in (starts, limits, range(len(starts)), strides))
    return graph.node("Slice", x, *numbers, shape=equation.outvars[0].aval.shape)


@rule("pad")
def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    low, high, inside = zip(*equation.params["padding_config"], strict=True)
    if any(inside):
        raise ValueError("Padding between elements is not in ONNX; export to stablehlo.")
    x = graph.full(x, equation.invars[0].aval)
    shape = equation.outvars[0].aval.shape
    return graph.node("Pad", x, axes_of(*low, *high), value, shape=shape)


@rule("rev")
def _reverse(graph: Graph, equation: Any, x: Value) -> Value:
    x = graph.full(x, equation.invars[0].aval)
    for axis in equation.params["dimensions"]:
        size = equation.invars[0].aval.shape[axis]
        x = graph.node(
            "Gather", x, axes_of(*reversed(range(size))), axis=axis, shape=graph.shape(x)
        )
    return x


@rule("gather")
def _gather(graph: Graph, equation: Any, x: Value, rows: Value) -> Value:
    """Of whole rows alone, at places that are inside."""
    source, places = (atom.aval.shape for atom in equation.invars)
    dimensions, result = equation.params["dimension_numbers"], equation.outvars[0].aval.shape
    offsets = tuple(range(len(places) - 1, len(result)))
    if (
        tuple(dimensions.start_index_map) != (0,)
        or tuple(dimensions.collapsed_slice_dims) != (0,)
        or tuple(dimensions.offset_dims) != offsets
        or tuple(equation.params["slice_sizes"]) != (1, *source[1:])
    ):
        raise ValueError(f"jax's gather of {dimensions} is not known to the ONNX export.")
    x, rows = (graph.full(v, atom.aval) for v, atom in zip((x, rows), equation.invars, strict=True))
    return graph.node("Gather", x, graph.reshaped(rows, places[:-1]), axis=0, shape=result)


@rule("sort")
def _sort(graph: Graph, equation: Any, *columns: Value) -> list[Value]:
    """By the first column; of equals TopK takes the first, and so is stable."""
    axis, shape = equation.params["dimension"], equation.outvars[0].aval.shape
    if equation.params["num_keys"] != 1:
        raise ValueError("A sort by several keys is not known to the ONNX export.")
    columns = [graph.full(x, atom.aval) for x, atom in zip(columns, equation.invars, strict=True)]
    first, order = graph.nodes(
        "TopK", columns[0], axes_of(shape[axis]), axis=axis, largest=0, shapes=[shape, shape]
    )
    others = (graph.node("GatherElements", x, order, axis=axis, shape=shape) for x in columns[1:])
    return [first, *others]


@rule("top_k")
def _top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    shape = equation.outvars[0].aval.shape
    x = graph.full(x, equation.invars[0].aval)
    best, places = graph.nodes("TopK", x, axes_of(shape[-1]), axis=-1, shapes=[shape, shape])
    return [best, graph.elementwise("Cast", places, to=element_type(np.int32))]


@rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(graph: Graph, equation: Any, x: Value) -> Value:
    operator = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}
    return graph.node(
        operator[equation.primitive.name.removeprefix("reduce_")],
        graph.full(x, equation.invars[0].aval),
        axes_of(*equation.params["axes"]),
        keepdims=0,
        shape=equation.outvars[0].aval.shape,
    )


@rule("conv_general_dilated")
def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    """Pictures are NHWC in jax and NCHW in ONNX."""
    params = equation.params
    dimensions = params["dimension_numbers"]
    orders = (dimensions.lhs_spec, dimensions.rhs_spec, dimensions.out_spec)
    if orders != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or set(params["lhs_dilation"]) != {1}:
        raise ValueError(f"jax's convolution of {dimensions} is not known to the ONNX export.")
    (top, bottom), (left, right) = params["padding"]
    batch, height, width, channels = equation.outvars[0].aval.shape
    result = graph.node(
        "Conv",
        graph.transposed(graph.full(x, equation.invars[0].aval), (0, 3, 1, 2)),
        graph.transposed(kernel, (3, 2, 0, 1)),
        strides=list(params["window_strides"]),
        pads=[top, left, bottom, right],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        shape=(batch, channels, height, width),
    )
    return graph.transposed(result, (0, 2, 3, 1))


@rule("reduce_window_max")
def _max_pool(graph: Graph, equation: Any, x: Value) -> Value:
    params = equation.params
    (_, (top, bottom), (left, right), _) = params["padding"]
    batch, height, width, channels = equation.outvars[0].aval.shape
    result = graph.node(
        "MaxPool",
        graph.transposed(graph.full(x, equation.invars[0].aval), (0, 3, 1, 2)),
        kernel_shape=list(params["window_dimensions"][1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=[top, left, bottom, right],
        shape=(batch, channels, height, width),
    )
    return graph.transposed(result, (0, 2, 3, 1))
