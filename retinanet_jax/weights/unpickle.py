"""Pickles of plain arrays, as Python 2 and 3 write them, read without running what they name.

A pickle is a program: it names classes and functions, calls them, and sets their attributes. The
few that numpy's arrays name are replaced here by stand-ins that only keep shape, type and bytes,
since numpy's own could be made to take bytes for pointers. Any other name ends the reading. Nothing
that exists before the reading can be altered: only the arrays, types and containers of this pickle.
"""

import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import numpy as np

# Python's implementation, since its opcodes can be changed. That in C allocates memory for the
# largest number in a pickle's `memo`, however large it is.
PYTHON_UNPICKLER: Any = pickle._Unpickler
# The keys of dicts and the elements of sets. The hash of deeply nested tuples overflows the stack.
KEY_TYPES = (str, bytes, int, float, type(None))


class RefusedError(Exception):
    """The pickle names something that no plain array needs; the message is its quoted name."""


def load(file: BinaryIO) -> Any:
    """Read the containers of a pickle, with an `Array` in place of each numpy array.

    Raises:
        RefusedError: If the pickle names something that no plain array needs.
        Exception: Any that pickle raises for a file that is truncated or no pickle.
    """
    # Python 2's strings, among them the arrays' bytes, are read as text; latin1 keeps every byte.
    return _Unpickler(_ExactFile(file), encoding="latin1").load()


class Array:
    """A stand-in for a numpy array; `array` is None until the pickle sets its state."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def set_state(self, state: tuple) -> None:
        """Set the content, as numpy's arrays are pickled with protocols before 5."""
        _, shape, dtype, is_fortran, content = state
        if isinstance(content, str):
            content = content.encode("latin1")
        self.array = _to_numpy(content, dtype, shape, "F" if is_fortran else "C")


class _Type:
    """A stand-in for numpy.dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: str):
        self.code, self.order = code, "="

    def set_state(self, state: tuple) -> None:
        """Set the byte order."""
        self.order = state[1]

    def to_numpy(self) -> np.dtype:
        """Return the type, which must be of booleans, integers or floats."""
        if not isinstance(self.code, str) or not isinstance(self.order, str):
            raise pickle.UnpicklingError("the name of a type is not text")
        name = f"{self.order}{self.code}"
        if not re.fullmatch(r"[<>=|](b1|[iu][1248]|f[248])", name):
            raise RefusedError(f"arrays of type {name!r}")
        return np.dtype(name)


def _to_numpy(content: bytes, dtype: _Type, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Return the array that a pickle describes."""
    if not isinstance(dtype, _Type):
        raise pickle.UnpicklingError("an array has no type")
    return np.frombuffer(content, dtype.to_numpy()).reshape(shape, order=order)


# What a pickle may call.


def _empty_array(*_: Any) -> Array:
    """Stand in for the function that makes an array before its state is set."""
    return Array()


def _array_from_buffer(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> Array:
    """Stand in for the function by which numpy's arrays are pickled with protocol 5."""
    return Array(_to_numpy(content, dtype, shape, order))


def _type(code: str, *_: Any) -> _Type:
    """Stand in for numpy.dtype's constructor."""
    return _Type(code)


def _encode(text: str, _: str) -> bytes:
    """Stand in for the function by which Python 3 pickles bytes with protocol 2."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand in for `bytes`, which Python 3 calls for empty bytes with protocol 2."""
    return b""


def _ordered_dict(pairs: Iterable[Any] = ()) -> dict:
    """Stand in for OrderedDict, which a pickle of Python 2 calls with the items."""
    pairs = list(pairs)
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


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
    ("collections", "OrderedDict"): _ordered_dict,
}


def _check_keys(keys: Iterable[Any]) -> None:
    """Raise UnpicklingError if a key of a dict, or an element of a set, is not plain."""
    for key in keys:
        if not isinstance(key, KEY_TYPES):
            raise pickle.UnpicklingError("a key is neither text nor a number")


def _with_check(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    """Return the implementation of an opcode that adds `keys`, a part of the stack, after a check.

    A mark in a pickle begins a new stack.
    """
    load = PYTHON_UNPICKLER.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        _check_keys(unpickler.stack[keys])
        load(unpickler)

    return checked


class _ExactFile:
    """A file of which every read is complete, or raises EOFError."""

    def __init__(self, file: BinaryIO):
        start = file.tell()
        self._end = file.seek(0, os.SEEK_END)
        file.seek(start)
        self._file = file

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes; no memory is allocated for more than there are."""
        if length > self._end - self._file.tell():
            raise EOFError
        return self._file.read(length)

    def readline(self) -> bytes:
        """Return a line and its end."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _Unpickler(PYTHON_UNPICKLER):
    """An unpickler that finds the stand-ins only, and alters nothing but what it has made."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(PYTHON_UNPICKLER.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise RefusedError(repr(f"{module}.{name}"))
        return STAND_INS[module, name]

    def load_build(self) -> None:
        """Set the state of an array or a type; dicts have none that matters."""
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, Array | _Type):
            instance.set_state(state)
        elif not isinstance(instance, dict):
            raise pickle.UnpicklingError("only arrays and types have a state")

    def load_bytearray8(self) -> None:
        """Read a bytearray; memory is allocated only if the file has that many bytes."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    for opcode, keys in (
        (pickle.SETITEM, slice(-2, -1)),
        (pickle.SETITEMS, slice(None, None, 2)),
        (pickle.DICT, slice(None, None, 2)),
        (pickle.ADDITEMS, slice(None)),
        (pickle.FROZENSET, slice(None)),
    ):
        dispatch[opcode[0]] = _with_check(opcode, keys)
    for opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
        del dispatch[opcode[0]]  # names by numbers, which `copyreg` of the process keeps
