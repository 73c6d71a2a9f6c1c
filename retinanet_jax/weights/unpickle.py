"""Pickles of plain arrays, as Python 2 and 3 write them, read without running what they name.

A pickle is a program: it names classes and functions, and has them called. The few that numpy's
arrays name are stood in for here by what only keeps shape, type and bytes; numpy's own could be
told to take bytes for pointers. At any other name the reading ends.
"""

import collections
import pickle
import re
from typing import Any, BinaryIO

import numpy as np


class RefusedError(Exception):
    """The pickle names something that no plain array needs; the message is its quoted name."""


def load(file: BinaryIO) -> Any:
    """Return the containers of a pickle, with an `Array` in place of each numpy array.

    Raises RefusedError, and whatever pickle raises for files that are none or are cut short.
    """
    # Python 2's strings, the arrays' bytes among them, come as text; latin1 keeps every byte.
    return _Unpickler(file, encoding="latin1").load()


class Array:
    """Stands in for a numpy array; `array` is None where the pickle did not fill it."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if isinstance(content, str):
            content = content.encode("latin1")
        self.array = _array(content, dtype, shape, "F" if is_fortran else "C")


class _Type:
    """Stands in for numpy.dtype."""

    kind: str
    order = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype:
        """The type, if it is of booleans, integers or floats."""
        name = f"{self.order}{self.kind}"
        if not re.fullmatch(r"[<>=|](b1|[iu][1248]|f[248])", name):
            raise RefusedError(f"arrays of type {name!r}")
        return np.dtype(name)


def _array(content: bytes, dtype: _Type, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype.to_numpy()).reshape(shape, order=order)


# What a pickle may call. Functions and no classes: it could set a class's attributes.


def _empty_array(*_: Any) -> Array:
    return Array()


def _array_from_buffer(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> Array:
    """How numpy's arrays are pickled by protocol 5."""
    filled = Array()
    filled.array = _array(content, dtype, shape, order)
    return filled


def _type(kind: str, *_: Any) -> _Type:
    made = _Type()
    made.kind = kind
    return made


def _encode(text: str, _: str) -> bytes:
    """How Python 3 pickles bytes by protocol 2."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How it pickles none."""
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
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise RefusedError(repr(f"{module}.{name}"))
        return STAND_INS[module, name]
