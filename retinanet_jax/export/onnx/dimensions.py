"""Symbolic dimensions of `jax.export` in shapes: polynomials of variables such as the batch size.

jax has no public access to their terms, but their text has a documented grammar, in which
`jax.export.symbolic_shape` reads them (https://docs.jax.dev/en/latest/export/shape_poly.html).
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = Sequence[Any]  # of integers and symbolic dimensions
OPERATORS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}


def is_static(shape: Shape) -> bool:
    """Return whether a shape contains no symbolic dimension."""
    return all(isinstance(size, int | np.integer) for size in shape)


def broadcast_shapes(*shapes: Shape) -> tuple[Any, ...]:
    """Return the shape to which arrays of these shapes broadcast, as numpy's function does."""
    rank = max(map(len, shapes))
    aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    columns = zip(*aligned, strict=True)
    return tuple(next((size for size in sizes if not is_one(size)), 1) for sizes in columns)


def is_one(size: Any) -> bool:
    """Return whether a dimension is the integer 1."""
    return isinstance(size, int | np.integer) and size == 1


def variable_and_factor(size: Any) -> tuple[str, int]:
    """Return the variable of a dimension of an input and its factor: ("h", 128) for 128*h.

    Raises:
        ValueError: If the dimension is not the multiple of a variable.
    """
    match ast.parse(str(size), mode="eval").body:
        case ast.Name(variable):
            return variable, 1
        case ast.BinOp(ast.Constant(int(factor)), ast.Mult(), ast.Name(variable)):
            return variable, factor
    raise ValueError(f"The ONNX export cannot have an input with the dimension {size}.")


def evaluate_dimension(size: Any, variables: Mapping[str, Any], apply: Callable[..., Any]) -> Any:
    """Return the value of a symbolic dimension.

    Args:
        size: A polynomial of variables with integer coefficients.
        variables: The value of each variable.
        apply: A function of an ONNX operator, Add, Sub or Mul, and two operands.

    Raises:
        ValueError: If the dimension is not a polynomial.
    """

    def evaluate(node: ast.expr) -> Any:
        match node:
            case ast.Constant(int(value)):
                return np.array([value], np.int64)
            case ast.Name(variable):
                return variables[variable]
            case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
                return apply(OPERATORS[type(operator)], evaluate(left), evaluate(right))
        raise ValueError(
            f"The ONNX export cannot compute the dimension {size}; export to stablehlo or "
            "savedmodel, or give --image_size=HEIGHT,WIDTH."
        )

    return evaluate(ast.parse(str(size), mode="eval").body)
