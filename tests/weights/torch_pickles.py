"""Files as torch.save writes them, made without PyTorch.

A `Call` is pickled as a call of a function or class of which only the name is given, a `Storage` as
PyTorch's reference to a block of numbers.
"""

import io
import pickle
import struct
import sys
import zipfile
from typing import Any, NamedTuple

import numpy as np

# PyTorch's name of a type -> numpy's; bfloat16 is given as its 16 bits.
TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "QInt8Storage": "i1",
}


class Name(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str


class Call:
    """The result of a call; its state and items are set afterwards."""

    def __init__(self, function, *args, state=None, appended=(), items=None, new=False):
        self.function, self.args, self.new = function, args, new
        self.state, self.appended, self.items = state, appended, items


class Storage:
    """Numbers that tensors view."""

    def __init__(self, numbers, storage_type, device="cpu", module="torch"):
        self.numbers, self.storage_type, self.device = np.asarray(numbers), storage_type, device
        self.type = Name(module, storage_type)


class Module(NamedTuple):
    """A class of modules, to which the format without zip refers."""

    type: Name


class Pickler(pickle._Pickler):
    """A pickler that knows the classes above, and lists the storages."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def __init__(self, file, protocol, is_sequence):
        super().__init__(file, protocol)
        self.is_sequence, self.storages = is_sequence, {}

    def persistent_id(self, obj: Any):
        if isinstance(obj, Module):
            return "module", obj.type, "file.py", "source"
        if not isinstance(obj, Storage):
            return None
        key = self.storages.setdefault(id(obj), (str(len(self.storages)), obj))[0]
        view = [None] if self.is_sequence else []
        return ("storage", obj.type, key, obj.device, obj.numbers.size, *view)

    def save_name(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.args)
        self.write(pickle.NEWOBJ if obj.new else pickle.REDUCE)
        if obj.appended:
            self._batch_appends(iter(obj.appended))
        if obj.items:
            self._batch_setitems(iter(obj.items.items()))
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    dispatch[Name] = save_name
    dispatch[Call] = save_call


def view(storage, offset, shape, strides):
    """Return a tensor that views a storage."""
    function = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(function, storage, offset, shape, strides, False, ordered_dict({}))


def ordered_dict(items, state=None):
    return Call(Name("collections", "OrderedDict"), items=items, state=state)


def tensor(array, storage_type=None):
    """Return a tensor that is all of a storage."""
    array = np.asarray(array)
    if not storage_type:
        storage_type = next(name for name, dtype in TYPES.items() if np.dtype(dtype) == array.dtype)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return view(Storage(array.ravel(), storage_type), 0, array.shape, strides)


def tensors(arrays):
    return {name: tensor(array) for name, array in arrays.items()}


def _pickled(content, protocol=2, is_sequence=False):
    file = io.BytesIO()
    pickler = Pickler(file, protocol, is_sequence)
    pickler.dump(content)
    return file.getvalue(), [storage for _, storage in pickler.storages.values()]


def write_zip(path, content, *, protocol=2, order=sys.byteorder, folder="archive/", **zip_options):
    """Write the format of PyTorch since 1.6; an `order` of "" writes none."""
    pickled, storages = _pickled(content, protocol)
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        archive.writestr(f"{folder}data.pkl", pickled)
        if order:
            archive.writestr(f"{folder}byteorder", order)
        for key, storage in enumerate(storages):
            numbers = storage.numbers
            if order and order != sys.byteorder:
                numbers = numbers.byteswap()
            archive.writestr(f"{folder}data/{key}", numbers.tobytes())
        archive.writestr(f"{folder}version", "3\n")


def write_sequence(path, content, *, protocol=2):
    """Write the format before PyTorch 1.6: pickles, then the storages."""
    pickled, storages = _pickled(content, protocol, is_sequence=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    header = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    keys = pickle.dumps([str(index) for index in range(len(storages))], 2)
    numbers = [struct.pack("<q", s.numbers.size) + s.numbers.tobytes() for s in storages]
    path.write_bytes(b"".join([*header, pickled, keys, *numbers]))


WRITERS = {"zip": write_zip, "sequence": write_sequence}
