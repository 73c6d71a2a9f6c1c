"""Pickles of plain arrays, as Python 2 and 3 write them, read without running what they name.

A pickle is a program: it names classes and functions, calls them, and sets their attributes. The
few that numpy's arrays name are replaced here by stand-ins that only keep shape, type and bytes,
since numpy's own could be made to take bytes for pointers. Any other name ends the reading or, for
`InertUnpickler`, gives an object that absorbs every use. Nothing that exists before the reading can
be altered: only the arrays, types, inert objects and containers of this pickle.
"""

import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

# Python's implementation, since its opcodes can be changed. That in C allocates memory for the
# largest number in a pickle's `memo`, however large it is.
PYTHON_UNPICKLER: Any = pickle._Unpickler
# The keys of dicts and the elements of sets. The hash of deeply nested tuples overflows the stack.
KEY_TYPES = (str, bytes, int, float, type(None))
MAX_LENGTH = 100  # of a name from the file in an error message


class RefusedError(Exception):
    """The file uses something that no plain array needs, which the message names."""


def load(file: BinaryIO) -> Any:
    """Read the containers of a pickle, with an `Array` in place of each numpy array.

    Raises:
        RefusedError: If the pickle names something that no plain array needs.
        Exception: Any that pickle raises for a file that is truncated or no pickle.
    """
    return Unpickler(file).load()


class Array:
    """A stand-in for an array of the file.

    Attributes:
        shape: Its shape, if the file does not contradict itself.
    """

    __slots__ = ("shape",)
    shape: Any

    def read(self) -> np.ndarray:
        """Return the array.

        Raises:
            RefusedError: If its numbers are neither booleans, integers nor floats.
            Exception: If the file contradicts itself.
        """
        raise NotImplementedError


class _NumpyArray(Array):
    """A stand-in for a numpy array, which has no content until the pickle sets its state."""

    __slots__ = ("_content", "_dtype", "_order")

    def __init__(self, content: Any = None, dtype: Any = None, shape: Any = (), order: Any = "C"):
        self._content, self._dtype, self.shape = content, dtype, shape
        self._order: Any = order

    def set_state(self, state: tuple) -> None:
        """Set the content, as numpy's arrays are pickled with protocols before 5."""
        _, self.shape, self._dtype, is_fortran, self._content = state
        self._order = "F" if is_fortran else "C"

    def read(self) -> np.ndarray:
        if not isinstance(self._dtype, _Type):
            raise pickle.UnpicklingError("an array has no type")
        dtype, content = self._dtype.to_numpy(), self._content
        if isinstance(content, str):
            content = content.encode("latin1")
        return np.frombuffer(content, dtype).reshape(self.shape, order=self._order)


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
            raise RefusedError(f"an array of type {name[:MAX_LENGTH]!r}")
        return np.dtype(name)


class Inert:
    """A stand-in for a class or function that is not run, for its results and for its objects.

    Whatever a pickle calls, adds to or sets of it has no effect, but that `state` is kept.
    """

    __slots__ = ("name", "state")

    def __init__(self, name: str):
        self.name, self.state = name, None

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        """Return an object of the class, or a result of the function."""
        return Inert(self.name)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        """Absorb an element."""

    append = add

    def set_state(self, state: Any) -> None:
        """Keep the attributes of an object."""
        self.state = state


# What a pickle may call.


def _empty_array(*_: Any) -> Array:
    """Stand in for the function that makes an array before its state is set."""
    return _NumpyArray()


def _array_from_buffer(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> Array:
    """Stand in for the function by which numpy's arrays are pickled with protocol 5."""
    return _NumpyArray(content, dtype, shape, order)


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


def _with_plain_keys(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    """Return the implementation of an opcode that adds `keys`, a part of the stack, once plain.

    A mark in a pickle begins a new stack.
    """
    load = PYTHON_UNPICKLER.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        unpickler.stack[keys] = [unpickler.plain_key(key) for key in unpickler.stack[keys]]
        load(unpickler)

    return checked


class ExactFile:
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


class Unpickler(PYTHON_UNPICKLER):
    """An unpickler that finds the stand-ins only, and alters nothing but what it has made."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(PYTHON_UNPICKLER.dispatch)

    def __init__(self, file: BinaryIO):
        # Python 2's strings, among them the bytes of arrays, are read as text; latin1 keeps every
        # byte.
        super().__init__(ExactFile(file), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; RefusedError if there is none."""
        if (module, name) not in STAND_INS:
            name = f"{module}.{name}"[:MAX_LENGTH]
            raise RefusedError(
                f"uses {name!r}, and loading that could run any code; only plain arrays and "
                "containers are read; where its library is installed, write the arrays by "
                "torch.save or numpy.savez"
            )
        return STAND_INS[module, name]

    def plain_key(self, key: Any) -> Any:
        """Return a key of a dict or an element of a set; UnpicklingError if it is not plain."""
        _check_keys([key])
        return key

    def load_build(self) -> None:
        """Set the state of an object that has one here; that of dicts does not matter."""
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, _NumpyArray | _Type | Inert):
            instance.set_state(state)
        elif not isinstance(instance, dict):
            raise pickle.UnpicklingError("only arrays and types have a state")

    def load_newobj(self) -> None:
        """Call a stand-in for a class, as REDUCE does."""
        args, stand_in = self.stack.pop(), self.stack.pop()
        self.append(stand_in(*args))

    def load_newobj_ex(self) -> None:
        """Call a stand-in for a class with keywords."""
        kwargs, args, stand_in = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.append(stand_in(*args, **kwargs))

    def load_bytearray8(self) -> None:
        """Read a bytearray; memory is allocated only if the file has that many bytes."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    for opcode, keys in (
        (pickle.SETITEM, slice(-2, -1)),
        (pickle.SETITEMS, slice(None, None, 2)),
        (pickle.DICT, slice(None, None, 2)),
        (pickle.ADDITEMS, slice(None)),
        (pickle.FROZENSET, slice(None)),
    ):
        dispatch[opcode[0]] = _with_plain_keys(opcode, keys)
    for opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
        del dispatch[opcode[0]]  # names by numbers, which `copyreg` of the process keeps


class InertUnpickler(Unpickler):
    """An unpickler for which every unknown class and function is `Inert`.

    Args:
        file: The file with the pickle.
        stand_ins: Further functions that the pickle may call, by module and name.
    """

    def __init__(self, file: BinaryIO, stand_ins: Mapping[tuple[str, str], Any]):
        super().__init__(file)
        self._stand_ins = {**STAND_INS, **stand_ins}

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, which is inert if the name is unknown."""
        return self._stand_ins.get((module, name)) or Inert(f"{module}.{name}")

    def plain_key(self, key: Any) -> Any:
        """Return a key as it is, or an inert one in its place."""
        return key if isinstance(key, KEY_TYPES) else Inert(type(key).__name__)
