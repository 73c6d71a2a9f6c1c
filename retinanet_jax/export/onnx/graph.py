"""The graph of an ONNX model, built from the equations of a function that jax traced.

The function has no loops. Its shapes may contain symbolic dimensions of `jax.export`, which the
model computes from the shapes of its inputs. Values that depend on no input are computed while the
graph is built, so arithmetic on the weights leaves only its results in the model. A broadcast adds
no node as long as only elementwise operators read its result: those of ONNX broadcast by
themselves, without a copy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jax_core

from retinanet_jax.export.onnx.dimensions import (
    Shape,
    broadcast_shapes,
    evaluate_dimension,
    is_static,
    variable_and_factor,
)

OPSET = 18
# Larger results are computed by the model instead of being stored in it, such as constant images.
LARGEST_STORED = 2**20  # number of elements

Value = np.ndarray | str  # known while the graph is built, or the name of a node's output
# Translates an equation: (graph, equation, *operands) -> its result or list of results.
Rule = Callable[..., Value | list[Value]]


class Graph:
    """The nodes and constants of an ONNX model under construction."""

    def __init__(self, rules: Mapping[str, Rule], function_rules: Mapping[str, Rule]) -> None:
        """Start an empty graph.

        Args:
            rules: The translation of each jax primitive, by the primitive's name.
            function_rules: The translations of whole jitted functions, by the function's name.
                The equations inside such a function are not visited.
        """
        self._rules = rules
        self._function_rules = function_rules
        self._nodes: list[Any] = []
        self._constants: dict[Any, Any] = {}
        self._shapes: dict[str, tuple[Any, ...]] = {}  # may have 1 where the traced array has more
        self._variables: dict[str, str] = {}  # the nodes of the variables of symbolic dimensions
        self._dimensions: dict[str, str] = {}  # the nodes of symbolic dimensions

    def model(
        self, jaxpr: jax_core.ClosedJaxpr, inputs: Sequence[str], outputs: Sequence[str]
    ) -> Any:
        """Return the `onnx.ModelProto` of a traced function. Call this once per graph.

        Args:
            jaxpr: The function as `jax.make_jaxpr` returns it.
            inputs: A name for each of its inputs.
            outputs: A name for each of its outputs.

        Raises:
            ValueError: If the function contains a primitive without a rule, or one with parameters
                that its rule does not support.
        """
        import onnx
        from onnx import helper

        for name, aval in zip(inputs, jaxpr.in_avals, strict=True):
            self._shapes[name] = aval.shape
            self._add_variables(name, aval.shape)
        results = self._evaluate(jaxpr.jaxpr, jaxpr.consts, list(inputs))
        for name, value, aval in zip(outputs, results, jaxpr.out_avals, strict=True):
            result = self._input_name(self.broadcast(value, aval))
            self._nodes.append(helper.make_node("Identity", [result], [name]))

        def value_infos(names: Sequence[str], avals: Sequence[Any]) -> list[Any]:
            return [
                helper.make_tensor_value_info(
                    name,
                    element_type(aval.dtype),
                    [size if isinstance(size, int) else str(size) for size in aval.shape],
                )
                for name, aval in zip(names, avals, strict=True)
            ]

        graph = helper.make_graph(
            self._nodes,
            "detector",
            value_infos(inputs, jaxpr.in_avals),
            value_infos(outputs, jaxpr.out_avals),
            list(self._constants.values()),
        )
        # The oldest format that has this opset: onnxruntime rejects formats newer than itself.
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )
        onnx.checker.check_model(model)
        return model

    def add_node(self, operator: str, *operands: Value, shape: Shape, **attributes: Any) -> str:
        """Add an operator with one output of the given shape, and return the output's name."""
        return self.add_nodes(operator, *operands, shapes=[shape], **attributes)[0]

    def add_nodes(
        self,
        operator: str,
        *operands: Value,
        shapes: Sequence[Shape],
        **attributes: Any,
    ) -> list[str]:
        """Add an operator with one output per given shape, and return the outputs' names."""
        from onnx import helper

        node_index = len(self._nodes)
        names = [f"{operator}_{node_index}_{k}" for k in range(len(shapes))]
        self._shapes.update(zip(names, map(tuple, shapes), strict=True))
        self._nodes.append(
            helper.make_node(operator, list(map(self._input_name, operands)), names, **attributes)
        )
        return names

    def elementwise(self, operator: str, *operands: Value, **attributes: Any) -> str:
        """Add an operator that broadcasts its operands, and return its output's name."""
        shape = broadcast_shapes(*map(self.shape, operands))
        return self.add_node(operator, *operands, shape=shape, **attributes)

    def shape(self, value: Value) -> tuple[Any, ...]:
        """Return the shape in the model: 1 along axes that were not broadcast."""
        return self._shapes[value] if isinstance(value, str) else value.shape

    def broadcast(self, value: Value, aval: Any) -> Value:
        """Return the value in the full shape of `aval`, its abstract value in jax."""
        if self.shape(value) == tuple(aval.shape):
            return value
        if isinstance(value, str) or not is_static(aval.shape):
            return self.add_node("Expand", value, self.dimensions(aval.shape), shape=aval.shape)
        return np.broadcast_to(value, aval.shape)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Return the value in another shape with the same number of elements."""
        if isinstance(value, str):
            known = [size if isinstance(size, int) else -1 for size in shape]
            # The operator computes a single unknown size, which it reads as -1.
            sizes = int64(*known) if known.count(-1) <= 1 else self.dimensions(shape)
            return self.add_node("Reshape", value, sizes, shape=shape)
        return value.reshape(shape)

    def dimensions(self, sizes: Shape) -> Value:
        """Return sizes, some of which may be symbolic, as a vector that operators read."""
        if is_static(sizes):
            return int64(*sizes)
        parts = [int64(size) if isinstance(size, int) else self.dimension(size) for size in sizes]
        return self.add_node("Concat", *parts, axis=0, shape=(len(sizes),))

    def dimension(self, size: Any) -> str:
        """Return a symbolic dimension as a vector of one element."""
        if str(size) not in self._dimensions:
            value = evaluate_dimension(size, self._variables, self.elementwise)
            self._dimensions[str(size)] = value
        return self._dimensions[str(size)]

    def _add_variables(self, name: str, shape: Shape) -> None:
        """Add the nodes that compute the variables of an input's symbolic dimensions."""
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                continue
            variable, factor = variable_and_factor(size)
            if variable not in self._variables:
                size = self.add_node("Shape", name, start=axis, end=axis + 1, shape=(1,))
                self._variables[variable] = self.elementwise("Div", size, int64(factor))

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Return the value with its axes in another order."""
        if isinstance(value, str):
            shape = [self.shape(value)[axis] for axis in order]
            return self.add_node("Transpose", value, perm=list(order), shape=shape)
        return value.transpose(order)

    def _input_name(self, value: Value) -> str:
        """Return the name under which a node reads the value; arrays become constants."""
        from onnx import numpy_helper

        if isinstance(value, str):
            return value
        key = (value.dtype, value.shape, value.tobytes())  # equal constants are stored once
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return self._constants[key].name

    def _evaluate(
        self, jaxpr: Any, constants: Sequence[Any], operands: Sequence[Value]
    ) -> list[Value]:
        """Return the outputs of a jaxpr, adding the nodes that compute them."""
        inputs = [*map(np.asarray, constants), *operands]
        values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, jax_core.Literal):
                aval: Any = atom.aval
                return np.asarray(atom.val, aval.dtype)
            return values[atom]

        for equation in jaxpr.eqns:
            results = self._evaluate_equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _evaluate_equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Return the results of an equation: of its rule, its inner jaxpr, or jax itself."""
        name, params = equation.primitive.name, equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if inner is not None and params.get("name") in self._function_rules:
            return as_list(self._function_rules[params["name"]](self, equation, *operands))
        if inner is not None:
            return self._evaluate(inner.jaxpr, inner.consts, operands)
        if name != "dim_as_value" and _is_known(equation, operands):
            return _evaluate_in_jax(equation, operands)
        if name not in self._rules:
            raise ValueError(
                f"The ONNX export has no rule for jax's primitive {name!r}; export to stablehlo or "
                "savedmodel."
            )
        return as_list(self._rules[name](self, equation, *operands))


def _is_known(equation: Any, operands: Sequence[Value]) -> bool:
    """Return whether the results depend on no input and are small enough to be stored."""
    return all(isinstance(value, np.ndarray) for value in operands) and all(
        is_static(var.aval.shape) and var.aval.size <= LARGEST_STORED for var in equation.outvars
    )


def _evaluate_in_jax(equation: Any, operands: Sequence[Any]) -> list[Value]:
    """Return the results of an equation for known operands, which may lack broadcasts."""
    arrays = [
        np.broadcast_to(value, atom.aval.shape)
        for value, atom in zip(operands, equation.invars, strict=True)
    ]
    results = equation.primitive.bind(*arrays, **equation.params)
    return [np.asarray(result) for result in as_list(results)]


def as_list(results: Any) -> list[Any]:
    """Return several results as a list, and a single result as a list of one."""
    return list(results) if isinstance(results, list | tuple) else [results]


def element_type(dtype: Any) -> int:
    """Return the number by which ONNX denotes a numpy type."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def int64(*values: int | np.integer) -> np.ndarray:
    """Return integers in the type in which ONNX operators read axes and sizes."""
    return np.array(values, np.int64)
