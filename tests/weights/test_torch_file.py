"""Files of PyTorch are read as PyTorch reads them, without it, and none of their code runs."""

import json
import os
import pathlib
import pickle
import pickletools
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch_pickles
from torch_pickles import Call, Name, Storage, tensor, tensors, view

from retinanet_jax.weights import load_arrays, save_arrays, torch_file

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
ARRAYS = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.int64(7)}
BITS = [0x3F80, 0xC020, 0x7F80, 0x0001, 0x8000, 0x7FC0]  # of bfloat16
BFLOATS = [1, -2.5, np.inf, 2.0**-133, -0.0, np.nan]


@pytest.fixture(params=torch_pickles.WRITERS)
def write(request):
    return torch_pickles.WRITERS[request.param]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def assert_equal(loaded, expected):
    """Types, shapes and bits are equal."""
    assert list(loaded) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)
        assert loaded[name].tobytes() == np.asarray(value).tobytes()


def error_of(path, match=None):
    with pytest.raises(ValueError, match=match) as caught:
        load_arrays(path)
    message = str(caught.value)
    assert message.startswith(f"weights file {path} ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message


def assert_unreadable(path):
    assert "is not a readable file of plain arrays" in error_of(path)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "pth.tar", "bin"])
def test_a_state_dict_is_read(path, write, protocol, suffix):
    path = path.with_suffix(f".{suffix}")
    metadata = {"_metadata": torch_pickles.ordered_dict({"": {"version": 1}})}
    content = torch_pickles.ordered_dict(tensors(ARRAYS), state=metadata)
    write(path, content, protocol=protocol)
    assert_equal(load_arrays(path), ARRAYS)


@pytest.mark.parametrize(
    ("storage_type", "values", "expected"),
    [
        ("FloatStorage", np.float32([1.5, -0.0, np.inf]), np.float32([1.5, -0.0, np.inf])),
        ("DoubleStorage", [1 / 3, 1e300, -1e-300], np.float32([1 / 3, np.inf, -0.0])),
        ("HalfStorage", np.float16([65504, 6e-8, -2]), np.float32([65504, 2.0**-24, -2])),
        ("BFloat16Storage", np.uint16(BITS), np.float32(BFLOATS)),
        ("LongStorage", [-(2**63), 2**63 - 1], np.int64([-(2**63), 2**63 - 1])),
        ("IntStorage", np.int32([-(2**31), 3]), np.int32([-(2**31), 3])),
        ("ShortStorage", np.int16([-(2**15), 3]), np.int16([-(2**15), 3])),
        ("CharStorage", np.int8([-128, 3]), np.int8([-128, 3])),
        ("ByteStorage", np.uint8([255, 3]), np.uint8([255, 3])),
        ("BoolStorage", [True, False], np.array([True, False])),
    ],
)
def test_floats_become_float32_and_other_types_remain(path, write, storage_type, values, expected):
    write(path, {"a.b": tensor(values, storage_type)})
    assert_equal(load_arrays(path), {"a.b": expected})


def test_tensors_of_untyped_storages_have_their_own_types(path):
    function = Name("torch._utils", "_rebuild_tensor_v3")

    def typed(dtype, values):
        storage = Storage(values.view(np.uint8), "UntypedStorage", module="torch.storage")
        arguments = (0, values.shape, (1,), False, torch_pickles.ordered_dict({}))
        return Call(function, storage, *arguments, Name("torch", dtype))

    values = np.array([1, 2**16 - 1], np.uint16)
    eighths = np.array([0x38, 0xB8, 0x7E], np.uint8)  # 1, -1 and the largest number
    torch_pickles.write_zip(
        path, {"a": typed("uint16", values), "b": typed("float8_e4m3fn", eighths)}
    )
    assert_equal(load_arrays(path), {"a": values, "b": np.float32([1, -1, 448])})


def test_tensors_are_views_of_storages(path, write):
    values = np.arange(24, dtype=np.float16)
    storage, empty = Storage(values, "HalfStorage"), Storage(values[:0], "HalfStorage")
    write(
        path,
        {
            "all": view(storage, 0, (2, 3, 4), (12, 4, 1)),
            "transposed": view(storage, 0, (4, 3, 2), (1, 4, 12)),
            "offset": view(storage, 20, (2, 2), (2, 1)),
            "scalar": view(storage, 7, (), ()),
            "empty": view(storage, 24, (0, 3), (3, 1)),
            "empty beyond": view(storage, 99, (0,), (1,)),
            "of empty": view(empty, 0, (2, 0), (1, 1)),
            "repeated": view(storage, 5, (3, 2), (0, 1)),
            "overlapping": view(storage, 1, (3, 3), (2, 1)),
        },
    )
    numbers = values.astype(np.float32)
    expected = {
        "all": numbers.reshape(2, 3, 4),
        "transposed": numbers.reshape(2, 3, 4).T,
        "offset": np.float32([[20, 21], [22, 23]]),
        "scalar": np.float32(7),
        "empty": np.zeros((0, 3), np.float32),
        "empty beyond": np.zeros(0, np.float32),
        "of empty": np.zeros((2, 0), np.float32),
        "repeated": np.float32([[5, 6]] * 3),
        "overlapping": np.float32([[1, 2, 3], [3, 4, 5], [5, 6, 7]]),
    }
    loaded = load_arrays(path)
    assert_equal(loaded, expected)
    assert np.shares_memory(loaded["all"], loaded["transposed"])


def test_parameters_old_tensors_and_tensors_with_attributes_are_read(path, write):
    storage = Storage(np.float32([1, 2]), "FloatStorage", "cuda:0", module="torch.cuda")
    old = Call(Name("torch._utils", "_rebuild_tensor"), storage, 0, (2,), (1,))
    new = view(storage, 0, (2,), (1,))
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), new, True, {})
    with_state = Call(
        Name("torch._utils", "_rebuild_parameter_with_state"), new, True, {}, {"x": 1}
    )
    arguments = (new.function, Name("torch", "Tensor"), new.args, {"foo": 1})
    attributes = Call(Name("torch._tensor", "_rebuild_from_type_v2"), *arguments)
    values = {"a": old, "b": parameter, "c": with_state, "d": attributes}
    write(path, values)
    assert_equal(load_arrays(path), dict.fromkeys(values, np.float32([1, 2])))


@pytest.mark.parametrize("order", ["big", ""])
def test_the_byte_order_of_a_zip_file_is_followed(path, order):
    arrays = {"a": np.float32([1, 2]), "b": np.int64([1, -2]), "c": np.array([True])}
    content = {**tensors(arrays), "d": tensor(np.uint16(BITS), "BFloat16Storage")}
    torch_pickles.write_zip(path, content, order=order)
    assert_equal(load_arrays(path), {**arrays, "d": np.float32(BFLOATS)})


@pytest.mark.parametrize("folder", ["", "model_final/", "a/b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_was_packed_again_is_read(path, folder, compression):
    torch_pickles.write_zip(path, tensors(ARRAYS), folder=folder, compression=compression)
    assert_equal(load_arrays(path), ARRAYS)


def test_records_may_lack_a_checksum(path):
    """As torch.serialization.set_crc32_options(False) writes them."""
    torch_pickles.write_zip(path, tensors(ARRAYS))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset : start + offset + 4] = bytes(4)
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    assert_equal(load_arrays(path), ARRAYS)


def test_a_flipped_bit_is_an_error(path):
    torch_pickles.write_zip(path, tensors(ARRAYS))
    content = bytearray(path.read_bytes())
    content[content.index(ARRAYS["conv.weight"].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert_unreadable(path)


def test_a_file_truncated_anywhere_is_an_error(path, write):
    write(path, tensors(ARRAYS))
    content = path.read_bytes()
    for length in range(1, len(content), 9):
        path.write_bytes(content[:length])
        assert_unreadable(path)


def test_only_the_storages_of_the_weights_are_read(path, write, monkeypatch):
    lengths = []
    numbers = torch_file._Storage.numbers

    def counted(storage, dtype):
        lengths.append(storage.count)
        return numbers(storage, dtype)

    monkeypatch.setattr(torch_file._Storage, "numbers", counted)
    write(
        path, {"optimizer": {"state": {0: tensors({"m": np.zeros(9)})}}, "model": tensors(ARRAYS)}
    )
    assert_equal(load_arrays(path), ARRAYS)
    assert lengths == [6, 1]


@pytest.mark.parametrize(
    ("storage_type", "name"), [("ComplexFloatStorage", "complex64"), ("QInt8Storage", "qint8")]
)
def test_types_that_no_network_has_are_named(path, write, storage_type, name):
    values = np.zeros(2, torch_pickles.TYPES[storage_type])
    write(
        path,
        {**tensors(ARRAYS), "x": tensor(values, storage_type), **tensors({"last": np.zeros(3)})},
    )
    error_of(path, f"an array of type '{name}' under 'x'; only booleans, integers and real floats")


def make_folder(path):
    return Call(Name(os.mkdir.__module__, "mkdir"), str(path))


INERT = {
    "namespace": Call(Name("argparse", "Namespace"), state={"lr": 0.1}, new=True),
    "path": Call(Name("pathlib", "PosixPath"), "a", "b"),
    "device": Call(Name("torch", "device"), "cuda", 0),
    "dtype": Name("torch", "float16"),
    "size": Call(Name("torch", "Size"), (1, 2)),
    "counter": Call(Name("collections", "Counter"), {8: 1}),
    "list": Call(Name("omegaconf.listconfig", "ListConfig"), appended=[1, 2], new=True),
    "one": Call(Name("omegaconf.listconfig", "ListConfig"), appended=[1], new=True),
    "dict": Call(
        Name("collections", "defaultdict"), Name("builtins", "list"), items={"a": 1, "b": 2}
    ),
    "scalar": np.float64(1.5),
    "text": np.array(["a", None], object),
    "keys": {(1, (2, 3)): 4, frozenset([(1,)]): 5},
    "slots": Call(Name("a", "B"), state=(None, {"c": 1}), new=True),
    "class": Name("torch.nn", "Conv2d"),
    "sparse": Call(Name("torch._utils", "_rebuild_sparse_tensor"), 0, tensor(np.zeros(2))),
    "self": (loop := {}),
}
loop["self"] = loop


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_objects_of_a_checkpoint_are_inert(path, tmp_path, write, protocol):
    rest = {**INERT, "evil": make_folder(tmp_path / "witness"), Name("a", "Key"): 3}
    write(path, {"model": tensors(ARRAYS), **rest}, protocol=protocol)
    assert_equal(load_arrays(path), ARRAYS)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("name", ["namespace", "sparse", "list", "dtype", "class"])
def test_an_inert_object_among_the_weights_is_an_error(path, write, name):
    value = INERT[name]
    named = ".".join(value if isinstance(value, Name) else value.function)
    for content in ({"x.y": value}, {**tensors(ARRAYS), "x.y": value}):
        write(path, {"model": content} if len(content) > 1 else content)
        error_of(path, f"contains an? {named} under 'x.y'; only arrays by name are read")


def test_code_is_not_run(path, tmp_path, write):
    evil = make_folder(tmp_path / "witness")
    for content in (evil, {"x": evil}, {"x": evil, **tensors(ARRAYS)}, [evil]):
        write(path, content)
        error_of(path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def module(name="torchvision.models.resnet.ResNet", children=()):
    state = {"training": True, "_parameters": tensors(ARRAYS), "_modules": dict(children)}
    return Call(Name(*name.rsplit(".", 1)), state=state, new=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: module,
        lambda module: {"model": module, "optimizer": {"state": {}}},
        lambda module: {"epoch": 3, "ema": module, "model": None},
        lambda module: {"anything": module, "buffers": tensors(ARRAYS)},
    ],
)
def test_a_whole_module_is_named_with_the_line_that_saves_its_state_dict(path, write, wrap):
    write(path, wrap(module(children=[("conv1", module("torch.nn.modules.conv.Conv2d"))])))
    message = error_of(path, r"contains a whole module \(torchvision\.models\.resnet\.ResNet\)")
    assert message.endswith('save its state dict: torch.save(model.state_dict(), "weights.pth").')


def test_a_whole_module_with_its_source_is_named(path):
    whole = module()
    whole.function = torch_pickles.Module(whole.function)
    torch_pickles.write_sequence(path, whole)
    error_of(path, "contains a whole module")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["m/data.pkl", "m/code/m.py", "m/constants.pkl"], "is a TorchScript program; .*jit.load"),
        (["a.pth", "b.npy"], "is an archive of zip; unpack it, and give the file of weights in"),
        (["a/data.pkl", "b/data.pkl"], "is a zip archive that torch.save did not write"),
    ],
)
def test_other_zip_archives_are_named(path, names, match):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({}))
    error_of(path, match)


@pytest.mark.parametrize(
    "content", [b"PK\3\4", pickle.dumps(0x1950A86A20F9469CFC6C, 2), bytes(100)]
)
def test_files_of_other_content_are_errors(path, content):
    path.write_bytes(content)
    assert_unreadable(path)


BIG = 1 << 40
STORAGE = Storage(np.zeros(4, np.float16), "HalfStorage")
HOSTILE = {
    "more values than bytes": view(STORAGE, 0, (5,), (1,)),
    "offset": view(STORAGE, 1, (4,), (1,)),
    "negative offset": view(STORAGE, -1, (1,), (1,)),
    "negative stride": view(STORAGE, 3, (4,), (-1,)),
    "negative shape": view(STORAGE, 0, (-1,), (1,)),
    "large stride": view(STORAGE, 0, (2,), (BIG,)),
    "overflow": view(STORAGE, 0, (2**32, 2**32), (0, 0)),
    "repeated": view(STORAGE, 0, (BIG,), (0,)),
    "shape of lists": view(STORAGE, 0, (BIG, [1]), (0, 0)),
    "shape of text": view(STORAGE, 0, "ab", (1, 1)),
    "fewer strides": view(STORAGE, 0, (2, 2), (1,)),
    "no storage": view({}, 0, (1,), (1,)),
    "no numbers": Call(Name("torch._utils", "_rebuild_tensor_v2")),
    "attributes by another function": Call(
        Name("torch._tensor", "_rebuild_from_type_v2"), 3, 4, ()
    ),
    "state of a function": Call(Name("torch._utils", "_rebuild_tensor_v2"), state={"a": 1}),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_contradictory_tensors_are_errors(path, write, attack):
    write(path, {"a": HOSTILE[attack]})
    tracemalloc.start()
    try:
        assert_unreadable(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_storage_that_claims_more_than_the_file_is_an_error(path):
    torch_pickles.write_sequence(path, tensors(ARRAYS))
    content = path.read_bytes()
    for claimed in (BIG, -1, 5, 7):
        path.write_bytes(content.replace(struct.pack("<q", 6), struct.pack("<q", claimed)))
        assert_unreadable(path)


@pytest.mark.parametrize("claimed", [1 << 27, 9])
def test_an_archive_that_would_fill_the_memory_is_an_error(path, claimed):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 27))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\1\2") + 24, claimed)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert_unreadable(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


DEEP = 100_000
END = b"\x85" * 10 * DEEP  # hashing this many overflows the stack
NESTED = {
    "tuples": b"}(X\1\0\0\0a)" + END + b"u.",
    "tuples as a key": b"}()" + END + b"K\1u.",
    "tuples in a set": b"\x80\x04\x8f()" + END + b"\x90.",
    "lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "models": b"}X\5\0\0\0model" * DEEP + b"}" + b"s" * DEEP + b".",
    "objects": b"ca\nB\n" * DEEP + b"b" * (DEEP - 1) + b".",
    "a dict in itself": b"}q\0X\5\0\0\0modelh\0s.",
    "a list in itself": b"]q\0h\0a.",
    "results of results": b"ca\nB\n" + b")R" * DEEP + b".",
}


@pytest.mark.parametrize("name", NESTED)
def test_deeply_nested_structures_are_errors(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", NESTED[name])
    error_of(path)


def test_long_names_are_cut_in_messages(path, write):
    for content in (
        {"n" * 10**6: make_folder(path), **tensors(ARRAYS)},
        {"a": Call(Name("m" * 10**6, "c"))},
        Call(Name("m" * 10**6, "c")),
        {10**5000: Call(Name("m", "c"))},
    ):
        write(path, content)
        error_of(path)


def test_the_golden_files_of_pytorch_are_read():
    golden = json.loads((GOLDEN / "torch_files.json").read_text())
    expected = {
        name: np.array(values["values"], values["dtype"]).reshape(values["shape"])
        for name, values in golden["arrays"].items()
    }
    for name in golden["files"]:
        assert_equal(load_arrays(GOLDEN / name), expected)


def test_a_written_file_is_read(path):
    arrays = {
        **ARRAYS,
        "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "empty": np.zeros((0, 3), np.float32),
        "flag": np.array([True, False]),
        "ünïcode": np.uint8([255]),
    }
    save_arrays(path, arrays)
    assert_equal(load_arrays(path), arrays)


def test_what_is_written_is_what_torch_save_writes(path):
    """The same calls with the same arguments, in an archive that PyTorch takes for its own."""
    save_arrays(path, ARRAYS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert contents["archive/byteorder"] == b"little"
    assert contents["archive/version"] == b"3\n"
    assert contents["archive/data/0"] == ARRAYS["conv.weight"].tobytes()
    own = path.with_suffix(".pkl")
    torch_pickles.write_zip(own, tensors(ARRAYS))
    with zipfile.ZipFile(own) as archive:
        expected = archive.read("archive/data.pkl")

    assert operations(contents["archive/data.pkl"]) == operations(expected)


def operations(pickled):
    """Return the operations of a pickle, with a name or text in place of its number in the memo."""
    result, memo = [], {}
    for opcode, value, _ in pickletools.genops(pickled):
        if "PUT" in opcode.name:
            memo[value] = result[-1]
        else:
            result.append(memo[value] if "GET" in opcode.name else (opcode.name, value))
    return result


def test_a_type_without_tensors_is_not_written(path):
    with pytest.raises(ValueError, match=r"PyTorch has no tensors of the type of array 'x', <U1"):
        save_arrays(path, {"x": np.array(["a"])})
    assert not path.exists()
