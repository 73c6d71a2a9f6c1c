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
