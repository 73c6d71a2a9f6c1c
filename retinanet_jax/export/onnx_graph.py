"""A traced function without loops as an ONNX graph.

What depends on no input is computed while the graph is made, so that of the weights' arithmetic
only the results are in it. Broadcasts are left to ONNX's elementwise operators, which do them
without a copy, wherever only those read the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jax_core

OPSET = 18
# Larger results are not stored but computed: pictures of constants, and the like.
LARGEST_STORED = 2**20  # numbers

Value = np.ndarray | str  # known, or the name of what a node gives
Rule = Callable[..., Value | list[Value]]

# Primitives that are one operator of the same operands.
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
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Says which primitives a function writes: (graph, equation, *operands) -> its results."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Graph:
    """The nodes and constants of a model that is being made."""

    def __init__(self, functions: dict[str, Rule]) -> None:
        """`functions`: what writes whole jitted functions, by their names."""
        self._functions = functions
        self._nodes: list[Any] = []
        self._constants: dict[Any, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # may have 1 where the traced array has more

    def model(
        self, jaxpr: jax_core.ClosedJaxpr, inputs: Sequence[str], outputs: Sequence[str]
    ) -> Any:
        """The ModelProto of a traced function. Call it once."""
        import onnx
        from onnx import helper

        for name, aval in zip(inputs, jaxpr.in_avals, strict=True):
            self._shapes[name] = aval.shape
        results = self._run(jaxpr.jaxpr, jaxpr.consts, list(inputs))
        for name, value, aval in zip(outputs, results, jaxpr.out_avals, strict=True):
            node = helper.make_node("Identity", [self.full(value, aval)], [name])
            self._nodes.append(node)

        def described(names: Sequence[str], avals: Sequence[Any]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, element_type(aval.dtype), aval.shape)
                for name, aval in zip(names, avals, strict=True)
            ]

        graph = helper.make_graph(
            self._nodes,
            "detector",
            described(inputs, jaxpr.in_avals),
            described(outputs, jaxpr.out_avals),
            list(self._constants.values()),
        )
        # The oldest format that has this opset: onnxruntime refuses what is newer than itself.
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )
        onnx.checker.check_model(model)
        return model

    def node(self, operator: str, *operands: Value, shape: Sequence[int], **attributes: Any) -> str:
        """Adds an operator of one result, which has this shape; returns its name."""
        return self.nodes(operator, *operands, shapes=[shape], **attributes)[0]

    def nodes(
        self,
        operator: str,
        *operands: Value,
        shapes: Sequence[Sequence[int]],
        **attributes: Any,
    ) -> list[Value]:
        """Adds an operator of several results."""
        from onnx import helper

        number = len(self._nodes)
        names = [f"{operator}_{number}_{k}" for k in range(len(shapes))]
        self._shapes.update(zip(names, map(tuple, shapes), strict=True))
        self._nodes.append(
            helper.make_node(operator, list(map(self._name, operands)), names, **attributes)
        )
        return list(names)

    def shape(self, value: Value) -> tuple[int, ...]:
        """As ONNX has it: 1 where a broadcast was left out."""
        return self._shapes[value] if isinstance(value, str) else value.shape

    def full(self, value: Value, aval: Any) -> Value:
        """The value in the shape that jax has it in."""
        if self.shape(value) == tuple(aval.shape):
            return value
        if isinstance(value, str):
            return self.node("Expand", value, np.array(aval.shape, np.int64), shape=aval.shape)
        return np.broadcast_to(value, aval.shape)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """The value in another shape of as many elements."""
        if isinstance(value, str):
            return self.node("Reshape", value, np.array(shape, np.int64), shape=shape)
        return value.reshape(shape)

    def transposed(self, value: Value, order: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        if isinstance(value, str):
            shape = [self.shape(value)[axis] for axis in order]
            return self.node("Transpose", value, perm=list(order), shape=shape)
        return value.transpose(order)

    def _name(self, value: Value) -> str:
        """Of a value that a node reads; a known one becomes a constant of the model."""
        from onnx import numpy_helper

        if isinstance(value, str):
            return value
        key = (value.dtype, value.shape, value.tobytes())  # equal ones are stored once
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return self._constants[key].name

    def _run(self, jaxpr: Any, constants: Sequence[Any], operands: Sequence[Value]) -> list[Value]:
        known = [*map(np.asarray, constants), *operands]
        values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], known, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, jax_core.Literal):
                return np.asarray(atom.val, atom.aval.dtype)
            return values[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        name, parameters = equation.primitive.name, equation.params
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if inner is not None and parameters.get("name") in self._functions:
            return as_list(self._functions[parameters["name"]](self, equation, *operands))
        if inner is not None:
            return self._run(inner.jaxpr, inner.consts, operands)
        if all(isinstance(value, np.ndarray) for value in operands) and all(
            var.aval.size <= LARGEST_STORED for var in equation.outvars
        ):
            full = [
                np.broadcast_to(value, atom.aval.shape)
                for value, atom in zip(operands, equation.invars, strict=True)
            ]
            results = equation.primitive.bind(*full, **parameters)
            return [np.asarray(one) for one in as_list(results)]
        if name in ELEMENTWISE:
            return [self.elementwise(ELEMENTWISE[name], *operands)]
        if name not in RULES:
            raise ValueError(
                f"jax's {name} is not known to the ONNX export; export to stablehlo or savedmodel."
            )
        return as_list(RULES[name](self, equation, *operands))

    def elementwise(self, operator: str, *operands: Value, **attributes: Any) -> str:
        """Adds an operator that broadcasts by itself."""
        shape = np.broadcast_shapes(*map(self.shape, operands))
        return self.node(operator, *operands, shape=shape, **attributes)


def as_list(results: Any) -> list[Any]:
    """One result or several."""
    return list(results) if isinstance(results, list | tuple) else [results]


def element_type(dtype: Any) -> int:
    """ONNX's number of a numpy type."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def axes_of(*axes: int) -> np.ndarray:
    """As ONNX reads axes, sizes and the like."""
    return np.array(axes, np.int64)


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
