"""Pickles of plain arrays, as Python 2 and 3 write them, read without running what they name.

A pickle is a program: it names classes and functions, and calls them. The few that numpy's arrays
name are replaced here by stand-ins that only keep shape, type and bytes, since numpy's own could be
made to take bytes for pointers. Any other name ends the reading.
"""

import collections
import pickle
import re
from typing import Any, BinaryIO

import numpy as np


class RefusedError(Exception):
    """The pickle names something that no plain array needs; the message is its quoted name."""


def load(file: BinaryIO) -> Any:
    """Read the containers of a pickle, with an `Array` in place of each numpy array.

    Raises:
        RefusedError: If the pickle names something that no plain array needs.
        Exception: Any that pickle raises for a file that is truncated or no pickle.
    """
    # Python 2's strings, among them the arrays' bytes, are read as text; latin1 keeps every byte.
    return _Unpickler(file, encoding="latin1").load()


class Array:
    """A stand-in for a numpy array; `array` is None until the pickle sets its state."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if isinstance(content, str):
            content = content.encode("latin1")
        self.array = _to_numpy(content, dtype, shape, "F" if is_fortran else "C")


class _Type:
    """A stand-in for numpy.dtype."""

    code: str
    order = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype:
        """Return the type, which must be of booleans, integers or floats."""
        name = f"{self.order}{self.code}"
        if not re.fullmatch(r"[<>=|](b1|[iu][1248]|f[248])", name):
            raise RefusedError(f"arrays of type {name!r}")
        return np.dtype(name)


def _to_numpy(content: bytes, dtype: _Type, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Return the array that a pickle describes."""
    return np.frombuffer(content, dtype.to_numpy()).reshape(shape, order=order)


# What a pickle may call. These are functions, since a pickle could set the attributes of classes.


def _empty_array(*_: Any) -> Array:
    """Stand in for the function that makes an array before its state is set."""
    return Array()


def _array_from_buffer(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> Array:
    """Stand in for the function by which numpy's arrays are pickled with protocol 5."""
    array = Array()
    array.array = _to_numpy(content, dtype, shape, order)
    return array


def _type(code: str, *_: Any) -> _Type:
    """Stand in for numpy.dtype's constructor."""
    dtype = _Type()
    dtype.code = code
    return dtype


def _encode(text: str, _: str) -> bytes:
    """Stand in for the function by which Python 3 pickles bytes with protocol 2."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand in for the function by which it pickles no bytes."""
    return b""


# numpy.core is numpy._core since numpy 2.
STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy", "ndarray"): None,  # only an argument of _reconstruct
    ("numpy", "dtype"): _type,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that finds the stand-ins only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise RefusedError(repr(f"{module}.{name}"))
        return STAND_INS[module, name]
