"""The rules that translate jax primitives to ONNX operators, and the functions that they use."""

from collections.abc import Callable
from typing import Any

from retinanet_jax.export.onnx.graph import Graph, Rule, Value

RULES: dict[str, Rule] = {}  # by the name of the primitive


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a function as the rule of these primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(primitives, function))
        return function

    return register


def full_operands(graph: Graph, equation: Any, *operands: Value) -> list[Value]:
    """Return the operands with the broadcasts that were left out."""
    return [
        graph.broadcast(value, atom.aval)
        for value, atom in zip(operands, equation.invars, strict=True)
    ]


def result_shape(equation: Any) -> tuple[Any, ...]:
    """Return the shape of the equation's first result."""
    return equation.outvars[0].aval.shape
