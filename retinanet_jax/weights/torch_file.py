"""Files that torch.save writes, read and written without PyTorch.

Both formats are a pickle in which each tensor names a storage, a block of numbers that several
tensors may view. Since PyTorch 1.6 a file is a zip archive of the pickle and one record per
storage; before, the storages followed the pickle. A storage is read when an array first views it,
so that an optimizer's state costs nothing. What is neither tensor nor container is `unpickle.Inert`
and no code of the file is run; the pickle can do no more than `unpickle` permits.
"""

import io
import math
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from retinanet_jax.weights import unpickle
from retinanet_jax.weights.unpickle import ExactFile, Inert, RefusedError

MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a file without zip
# Type of a storage -> (type of its numbers, their bytes).
STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "UntypedStorage": ("", 1),  # each tensor has its own type
    # The rest are not read, but others may follow them.
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}
# The types that are read, by the names that PyTorch and JAX have in common.
INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
FLOATS = (
    *("float64", "float32", "float16", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
# A tensor may view one number many times. With more of them than this, it is no weight but fills
# the memory.
MAX_REPEATED = 1 << 24
# PyTorch stores records as they are, but the archive may have been packed again. No weights shrink
# to less than a twentieth; a small file of zeros may.
MAX_EXPANSION, MAX_SMALL = 20, 1 << 26


def is_sequence(start: bytes) -> bool:
    """Whether a file's first bytes are those of the format before PyTorch 1.6."""
    return any(start.startswith(pickle.dumps(MAGIC, protocol)) for protocol in range(6))


def load(file: BinaryIO) -> Any:
    """Read the containers of a file that torch.save wrote, with an `Array` for each tensor.

    Arrays are read from the file, which must be open until then. Floats of any size become float32.

    Raises:
        RefusedError: If the file is another zip archive.
        Exception: Any for a file that is truncated, or no file of PyTorch.
    """
    is_zip = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    return _load_archive(file) if is_zip else _load_sequence(file)


def _load_archive(file: BinaryIO) -> Any:
    """Read a zip archive."""
    archive = zipfile.ZipFile(file)
    records = {info.filename: info for info in archive.infolist()}
    size = file.seek(0, os.SEEK_END)
    if sum(record.file_size for record in records.values()) > max(MAX_EXPANSION * size, MAX_SMALL):
        raise pickle.UnpicklingError("the archive would fill the memory")
    folder = _folder(records)

    def read(name: str) -> bytes:
        record = records[folder + name]
        if record.CRC == 0:
            record.CRC = None  # pyright: ignore[reportAttributeAccessIssue]  # written without
        with archive.open(record) as content:
            return content.read(record.file_size)

    is_big = f"{folder}byteorder" in records and read("byteorder") == b"big"
    pickled = io.BytesIO(read("data.pkl"))
    return _TorchUnpickler(pickled, lambda key: read(f"data/{key}"), is_big_endian=is_big).load()


def _folder(names: Mapping[str, Any]) -> str:
    """Return the folder of an archive that contains its pickle, or raise RefusedError."""
    pickles = [name for name in names if f"/{name}".endswith("/data.pkl")]
    if any(f"/{name}".endswith("/constants.pkl") for name in names):
        raise RefusedError(
            "is a TorchScript program; where PyTorch is installed, save its arrays: "
            'torch.save(torch.jit.load(FILE).state_dict(), "weights.pth")'
        )
    if len(pickles) != 1:
        raise RefusedError(
            "is a zip archive that torch.save did not write; give the file of the state dict"
        )
    return pickles[0].removesuffix("data.pkl")


def _load_sequence(file: BinaryIO) -> Any:
    """Read a file of the format before PyTorch 1.6: pickles, then the storages."""
    if unpickle.load(file) != MAGIC:
        raise pickle.UnpicklingError("this is no file of torch.save")
    for _ in ("version of the format", "byte order of the computer; that of the file is little"):
        unpickle.load(file)
    places: dict[str, tuple[int, int]] = {}

    def read(key: str) -> bytes:
        start, length = places[key]
        file.seek(start)
        return ExactFile(file).read(length)

    unpickler = _TorchUnpickler(file, read)
    content = unpickler.load()
    for key in unpickle.load(file):
        storage = unpickler.storages[key]
        if struct.unpack("<q", ExactFile(file).read(8)) != (storage.count,):
            raise pickle.UnpicklingError("a storage has another number of elements")
        places[key] = file.tell(), storage.num_bytes
        file.seek(storage.num_bytes, os.SEEK_CUR)
    return content


class _Storage:
    """A block of numbers, read when they are first needed.

    Args:
        storage_type: The name of its class in PyTorch.
        count: How many numbers it has.
        read: A function that returns its bytes.
        is_big_endian: Whether its numbers begin with their highest byte.
    """

    def __init__(
        self, storage_type: str, count: int, read: Callable[[], bytes], is_big_endian: bool
    ):
        self.dtype, item_size = STORAGES[storage_type]
        self.count, self.num_bytes = count, count * item_size
        self._read, self._order = read, ">" if is_big_endian else "<"
        self._numbers: dict[str, np.ndarray] = {}

    def numbers(self, dtype: str) -> np.ndarray:
        """Return the numbers, read as `dtype`; floats as float32."""
        if dtype not in FLOATS + INTEGERS:
            raise RefusedError(f"an array of type {dtype[: unpickle.MAX_LENGTH]!r}")
        if dtype not in self._numbers:
            own_type = np.dtype(getattr(jnp, dtype))
            size = own_type.itemsize
            count = self.num_bytes // size
            bits = np.frombuffer(self._read(), f"{self._order}u{size}", count)
            numbers = bits.astype(f"=u{size}", copy=False).view(own_type)
            if dtype in FLOATS:
                with np.errstate(over="ignore"):  # infinite in float32, as in PyTorch
                    numbers = numbers.astype(np.float32, copy=False)
            self._numbers[dtype] = numbers
        return self._numbers[dtype]


class _Tensor(unpickle.Array):
    """A stand-in for a tensor: numbers of a storage, from an offset and with strides."""

    __slots__ = ("_dtype", "_offset", "_storage", "_strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: str = ""):
        self._storage, self._dtype = storage, dtype
        self._offset, self.shape, self._strides = offset, shape, strides

    def read(self) -> np.ndarray:
        numbers = self._storage.numbers(self._dtype or self._storage.dtype)
        for number in (*self.shape, *self._strides, self._offset):
            if not isinstance(number, int) or number < 0:
                raise pickle.UnpicklingError("a tensor's shape is not one")
        count = math.prod(self.shape)
        if count > max(numbers.size, MAX_REPEATED):
            raise pickle.UnpicklingError("a tensor would fill the memory")
        if not count:
            return np.empty(self.shape, numbers.dtype)
        size = numbers.itemsize
        strides = [size * stride for stride in self._strides]
        # numpy checks that all numbers are within the storage.
        return np.ndarray(self.shape, numbers.dtype, numbers, size * self._offset, strides)


# What a pickle may call.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Any:
    """Stand in for the functions that make a tensor, of which the last argument may be a dict."""
    is_lazy = len(others) > 2 and others[2]  # conjugate or negative until it is read
    return Inert("lazy torch.Tensor") if is_lazy else _Tensor(storage, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Any:
    """Stand in for the function that makes a tensor of a storage without a type."""
    dtype = others[2].name.removeprefix("torch.")
    return _Tensor(storage, offset, shape, strides, dtype)


def _first(data: Any, *_: Any) -> Any:
    """Stand in for the functions that make a parameter, or move a tensor to a device."""
    return data


def _from_type(function: Callable[..., Any], _: Any, args: Any, *__: Any) -> Any:
    """Stand in for the function that makes a tensor with attributes, or of a subclass."""
    return function(*args)


TENSORS = {
    ("torch._utils", "_rebuild_tensor"): _tensor,  # until 0.3
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    # From a TPU and some other devices.
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first,
    ("torch._utils", "_rebuild_xla_tensor"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
}


class _TorchUnpickler(unpickle.InertUnpickler):
    """An unpickler that knows tensors and storages.

    Args:
        file: The file with the pickle.
        read: A function from a storage's key to its bytes.
        is_big_endian: Whether numbers begin with their highest byte.
    """

    def __init__(self, file: BinaryIO, read: Callable[[str], bytes], *, is_big_endian=False):
        super().__init__(file, TENSORS)
        self.storages: dict[str, _Storage] = {}
        self._read, self._is_big_endian = read, is_big_endian

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that a tuple describes, or the class of a module."""
        match pid:
            # The fourth is the device, and the last of the older format a view of the storage.
            case ("storage", Inert(name=name), str(key), _, int(count), *view) if not any(view):
                storage_type = name.rpartition(".")[2]
                if key not in self.storages:
                    self.storages[key] = _Storage(
                        storage_type, count, lambda: self._read(key), self._is_big_endian
                    )
                return self.storages[key]
            case ("module", Inert() as module, *_):
                return module
        raise pickle.UnpicklingError("unknown reference")


def save(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as torch.save writes a dict of tensors.

    Raises:
        ValueError: If PyTorch has no storage of an array's type.
    """
    pickled = [b"\x80\x02}("]  # protocol 2, a dict, and the first of its items
    with zipfile.ZipFile(path, "w") as archive:

        def write(name: str, content: str | bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)

        for index, (name, array) in enumerate(arrays.items()):
            pickled += [_pickled(name), _pickled_tensor(str(index), name, array)]
            write(f"data/{index}", array.tobytes())
        write("data.pkl", b"".join([*pickled, b"u."]))  # add the items; end
        write("byteorder", sys.byteorder)
        write("version", "3\n")


def _pickled_tensor(key: str, name: str, array: np.ndarray) -> bytes:
    """Return the opcodes of a tensor that is all of a storage."""
    storage_types = {dtype: storage_type for storage_type, (dtype, _) in STORAGES.items()}
    if str(array.dtype) not in storage_types:
        raise ValueError(f"PyTorch has no tensors of the type of array {name!r}, {array.dtype}.")
    # Between "(" and "t" is a tuple; "c" names, "R" calls, and "Q" refers to the storage.
    storage = (
        b"(%bctorch\n%b\n" % (_pickled("storage"), storage_types[str(array.dtype)].encode())
        + b"".join(map(_pickled, (key, "cpu", array.size)))
        + b"tQ"
    )
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    plain = b"".join(map(_pickled, (0, array.shape, strides, False)))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(%b%b%btR" % (storage, plain, hooks)


def _pickled(value: Any) -> bytes:
    """Return the opcodes of a plain value, without the header and the end of a pickle."""
    return pickle.dumps(value, 2)[2:-1]
