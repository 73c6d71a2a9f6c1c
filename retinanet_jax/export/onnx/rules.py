"""The translation of each jax primitive to ONNX operators: one function per primitive.

A rule receives the graph, jax's equation, and the equation's operands, and returns the result or
the list of results. Operands may lack broadcasts (`Graph.shape`): a rule with an operator that
does not broadcast by itself calls `Graph.broadcast` first.
"""

from typing import Any

import numpy as np

from retinanet_jax.export.onnx import selection  # noqa: F401 (it adds its rules to RULES)
from retinanet_jax.export.onnx.graph import Graph, Value, element_type, int64
from retinanet_jax.export.onnx.registry import RULES, full_operands, result_shape, rule

__all__ = ["RULES"]

# Primitives that are a single ONNX operator with the same operands.
ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "ceil": "Ceil",
    "div": "Div",
    "eq": "Equal",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}

# ---- Elementwise


@rule(*ELEMENTWISE)
def _elementwise(graph: Graph, equation: Any, *operands: Value) -> Value:
    return graph.elementwise(ELEMENTWISE[equation.primitive.name], *operands)


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
    return graph.elementwise("Mod", x, y, fmod=1)  # with the sign of x, as in jax


@rule("clamp")
def _clamp(graph: Graph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.elementwise("Min", graph.elementwise("Max", x, low), high)


@rule("select_n")
def _select(
    graph: Graph, equation: Any, condition: Value, if_false: Value, if_true: Value
) -> Value:
    if equation.outvars[0].aval.dtype != bool:
        return graph.elementwise("Where", condition, if_true, if_false)
    # onnxruntime has no Where of booleans.
    true_part = graph.elementwise("And", condition, if_true)
    false_part = graph.elementwise("And", graph.elementwise("Not", condition), if_false)
    return graph.elementwise("Or", true_part, false_part)


@rule("convert_element_type")
def _convert(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Cast", x, to=element_type(equation.params["new_dtype"]))


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _identity(graph: Graph, equation: Any, *operands: Value) -> list[Value]:
    return list(operands)


# ---- Shapes


@rule("dim_as_value")
def _dimension(graph: Graph, equation: Any) -> Value:
    size = graph.reshape(graph.dimension(equation.params["dim"]), ())
    return graph.elementwise("Cast", size, to=element_type(equation.outvars[0].aval.dtype))


@rule("iota")
def _iota(graph: Graph, equation: Any) -> Value:
    """Count along an axis; the other axes of the result have size 1."""
    shape, axis = result_shape(equation), equation.params["dimension"]
    size = graph.reshape(graph.dimensions(shape[axis : axis + 1]), ())
    numbers = graph.add_node(
        "Range", np.array(0, np.int64), size, np.array(1, np.int64), shape=shape[axis : axis + 1]
    )
    numbers = graph.elementwise("Cast", numbers, to=element_type(equation.params["dtype"]))
    return graph.reshape(numbers, tuple(n if k == axis else 1 for k, n in enumerate(shape)))


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, equation: Any, x: Value) -> Value:
    (x,) = full_operands(graph, equation, x)
    return graph.reshape(x, result_shape(equation))


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, equation: Any, x: Value) -> Value:
    """Insert axes of size 1 only; the readers of the result broadcast it themselves."""
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], graph.shape(x), strict=True):
        shape[axis] = size
    return graph.reshape(x, shape)


@rule("transpose")
def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.transpose(x, equation.params["permutation"])


@rule("concatenate")
def _concatenate(graph: Graph, equation: Any, *parts: Value) -> Value:
    axis, full = equation.params["dimension"], full_operands(graph, equation, *parts)
    return graph.add_node("Concat", *full, axis=axis, shape=result_shape(equation))


@rule("stack")
def _stack(graph: Graph, equation: Any, *parts: Value) -> Value:
    axis, shape = equation.params["axis"], result_shape(equation)
    part_shape = [1 if k == axis else size for k, size in enumerate(shape)]
    reshaped = [graph.reshape(x, part_shape) for x in full_operands(graph, equation, *parts)]
    return graph.add_node("Concat", *reshaped, axis=axis, shape=shape)


@rule("unstack")
def _unstack(graph: Graph, equation: Any, x: Value) -> list[Value]:
    (x,) = full_operands(graph, equation, x)
    axis = equation.params["axis"]
    return [
        graph.add_node("Gather", x, np.array(k, np.int64), axis=axis, shape=var.aval.shape)
        for k, var in enumerate(equation.outvars)
    ]


@rule("tile")
def _tile(graph: Graph, equation: Any, x: Value) -> Value:
    (x,) = full_operands(graph, equation, x)
    repeats = int64(*equation.params["reps"])
    return graph.add_node("Tile", x, repeats, shape=result_shape(equation))


@rule("slice")
def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    (x,) = full_operands(graph, equation, x)
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or [1] * len(starts)
    axes = range(len(starts))
    bounds = (graph.dimensions(tuple(values)) for values in (starts, limits, axes, strides))
    return graph.add_node("Slice", x, *bounds, shape=result_shape(equation))


@rule("pad")
def _pad(graph: Graph, equation: Any, x: Value, padding_value: Value) -> Value:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise ValueError(
            "The ONNX export cannot pad between elements; export to stablehlo or savedmodel."
        )
    x = graph.broadcast(x, equation.invars[0].aval)
    return graph.add_node("Pad", x, int64(*low, *high), padding_value, shape=result_shape(equation))


@rule("rev")
def _reverse(graph: Graph, equation: Any, x: Value) -> Value:
    (x,) = full_operands(graph, equation, x)
    shape = result_shape(equation)
    for axis in equation.params["dimensions"]:
        x = graph.add_node(
            "Gather", x, int64(*reversed(range(shape[axis]))), axis=axis, shape=shape
        )
    return x


# ---- Reductions and windows


@rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(graph: Graph, equation: Any, x: Value) -> Value:
    (x,) = full_operands(graph, equation, x)
    operators = {
        "reduce_sum": "ReduceSum",
        "reduce_max": "ReduceMax",
        "reduce_min": "ReduceMin",
    }
    return graph.add_node(
        operators[equation.primitive.name],
        x,
        int64(*equation.params["axes"]),
        keepdims=0,
        shape=result_shape(equation),
    )


@rule("cumsum")
def _cumulative_sum(graph: Graph, equation: Any, x: Value) -> Value:
    (x,) = full_operands(graph, equation, x)
    axis, reverse = np.array(equation.params["axis"], np.int64), int(equation.params["reverse"])
    return graph.add_node("CumSum", x, axis, reverse=reverse, shape=result_shape(equation))


@rule("conv_general_dilated")
def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    """Convolve; images are NHWC in jax and NCHW in ONNX."""
    params = equation.params
    dimensions = params["dimension_numbers"]
    orders = (dimensions.lhs_spec, dimensions.rhs_spec, dimensions.out_spec)
    if orders != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or set(params["lhs_dilation"]) != {1}:
        raise ValueError(
            f"The ONNX export has no rule for jax's convolution with {dimensions}; export to "
            "stablehlo or savedmodel."
        )
    x = graph.broadcast(x, equation.invars[0].aval)
    (top, bottom), (left, right) = params["padding"]
    batch, height, width, channels = result_shape(equation)
    result = graph.add_node(
        "Conv",
        graph.transpose(x, (0, 3, 1, 2)),
        graph.transpose(kernel, (3, 2, 0, 1)),
        strides=list(params["window_strides"]),
        pads=[top, left, bottom, right],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        shape=(batch, channels, height, width),
    )
    return graph.transpose(result, (0, 2, 3, 1))


@rule("reduce_window_max")
def _max_pool(graph: Graph, equation: Any, x: Value) -> Value:
    """Take the maximum of each window of an NHWC image."""
    params = equation.params
    (x,) = full_operands(graph, equation, x)
    (_, (top, bottom), (left, right), _) = params["padding"]
    batch, height, width, channels = result_shape(equation)
    result = graph.add_node(
        "MaxPool",
        graph.transpose(x, (0, 3, 1, 2)),
        kernel_shape=list(params["window_dimensions"][1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=[top, left, bottom, right],
        shape=(batch, channels, height, width),
    )
    return graph.transpose(result, (0, 2, 3, 1))
