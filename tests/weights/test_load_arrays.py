"""A file of weights is read as it was written or is an error, and none of its code runs."""

import collections
import copyreg
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch_pickles

from retinanet_jax.weights import load_arrays, load_backbone, save_arrays, unpickle


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}


def write_safetensors(path):
    pytest.importorskip("safetensors.numpy").save_file(ARRAYS, path)


def write_pickle(path, content=None, protocol=2):
    path.write_bytes(pickle.dumps(content or ARRAYS, protocol))


WRITERS = {
    "npz": lambda path: np.savez(path, **ARRAYS),
    "pth": lambda path: save_arrays(path, ARRAYS),
    # The format of PyTorch before 1.6, which torchvision's first files still have.
    "pt": lambda path: torch_pickles.write_sequence(path, torch_pickles.tensors(ARRAYS)),
    "safetensors": write_safetensors,
    "pkl": write_pickle,
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    path = tmp_path / f"weights.{request.param}"
    WRITERS[request.param](path)
    return path


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "weights.npz"
    WRITERS["npz"](path)
    return path


def assert_equal(loaded, expected=ARRAYS):
    assert set(loaded) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)


def assert_refused(path, match=None):
    with pytest.raises(ValueError, match=match) as caught:
        load_arrays(path)
    message = str(caught.value)
    assert match or "is not a readable file of plain arrays" in message
    assert str(path) in message
    assert "\n" not in message
    return message


def test_arrays_are_read_as_they_were_written(written):
    assert_equal(load_arrays(str(written)))


@pytest.mark.parametrize("name", ["absent.npz", "absent.pth", "."])
def test_the_error_for_a_missing_file_names_it(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"weights file .* does not exist; give the path"):
        load_arrays(tmp_path / name)


@pytest.mark.parametrize("suffix", ["", ".PTH", ".model", *(f".{name}" for name in WRITERS)])
def test_the_content_and_not_the_suffix_decides(written, suffix):
    assert_equal(load_arrays(written.rename(written.with_name(f"w{suffix}"))))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_an_error(written, fraction):
    content = written.read_bytes()
    written.write_bytes(content[: int(fraction * len(content))])
    assert_refused(written)


def test_a_flipped_bit_is_an_error(archive):
    content = bytearray(archive.read_bytes())
    content[content.index(ARRAYS["a/kernel"].tobytes()) + 5] ^= 1
    archive.write_bytes(content)
    assert_refused(archive)


def pack(file, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(file, b"content")


OTHERS = {
    "empty": (b"", "is empty; write or download it again"),
    "page": (b"\n<!DOCTYPE html><title>404</title>", "is a web page, as servers send it"),
    "refusal": (b'<?xml version="1.0"?><Error>', "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS .*lfs pull"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "b"}}', "the index of weights in several"),
    "npy": (npy(np.zeros(3)), "is one array of NumPy without a name; save"),
    "gzip": (b"\x1f\x8b\x08", r"is compressed \(\.gz\); unpack it"),
    "tar": (bytes(257) + b"ustar\x0000", "is an archive of tar; unpack it"),
    "zip": (lambda path: pack("weights/a.pth", path), "is an archive of zip; unpack it, and give"),
    "program": (
        lambda path: pack("a/serialized_exported_program.json", path),
        r"is a program of torch\.export; save the state dict",
    ),
    "objects": (lambda path: np.savez(path, a=np.array([{}], dtype=object)), None),
    "text": (b"Not Found", None),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), None),
    "bytes": (bytes(100), None),
}


@pytest.mark.parametrize("content", OTHERS)
def test_files_of_other_content_are_named(tmp_path, content):
    path = tmp_path / "weights.npz"
    content, match = OTHERS[content]
    content(path) if callable(content) else path.write_bytes(content)
    assert_refused(path, match)


def test_a_file_of_another_program_is_named_by_its_suffix(tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"\x08\x07\x12\x07pytorch")
    assert_refused(path, "is an ONNX model; give the weights from which it was exported")


def test_safetensors_of_16_bits_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    half = np.float32([[1.5, -2]]).astype(jnp.bfloat16)
    safetensors.save_file({"a": half}, tmp_path / "w.safetensors")
    assert_equal(load_arrays(tmp_path / "w.safetensors"), {"a": np.float32([[1.5, -2]])})


def test_the_error_names_a_library_that_is_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    # Python's import then behaves as if the package were absent.
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(path, "requires safetensors, which .*; run `pip install .safetensors.`, or ")


@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_files_of_pytorch_need_no_pytorch(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"weights.{suffix}"
    save_arrays(path, ARRAYS)
    assert_equal(load_arrays(path))


@pytest.mark.parametrize("key", ["model", "state_dict", "blobs"])
def test_weights_are_read_from_inside_a_checkpoint(tmp_path, key):
    path = tmp_path / "checkpoint.pkl"
    write_pickle(path, {key: ARRAYS, "__author__": "somebody", "epoch": 3, "lr": [0.1, None]})
    assert_equal(load_arrays(path))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "contains a list and not arrays by name"),
        ({"lr": 0.1}, "contains a dict and not arrays by name"),
    ],
    ids=["list", "float"],
)
def test_anything_but_arrays_by_name_is_an_error(tmp_path, content, match):
    path = tmp_path / "weights.pkl"
    write_pickle(path, content)
    assert_refused(path, match)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2", "i8", "u1", "?"])
def test_arrays_pickled_with_every_protocol_are_read(tmp_path, protocol, dtype):
    path = tmp_path / "weights.pkl"
    values = np.array([[0, 1, 2], [253, 254, 255]]).astype(dtype)
    arrays = {
        "c": values,
        "fortran": np.asfortranarray(values),
        "strided": values[:, ::2],
        "scalar": values[1, 1:2].reshape(()),
        "empty": values[:0],
    }
    write_pickle(path, collections.OrderedDict(arrays), protocol)
    assert_equal(load_arrays(path), arrays)


def python2_pickle(values):
    """Return what Python 2's cPickle writes of {"conv1_w": values} with protocol 2."""
    content = values.astype("<f4").tobytes()
    return (
        b"\x80\x02}q\x01U\x07conv1_wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01"
        + b"".join(b"K" + bytes([n]) for n in values.shape)
        + b"\x86cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07"
        + b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tbs."
    )


def test_a_pickle_of_python_2_is_read(tmp_path):
    path = tmp_path / "R-50.pkl"
    # Many bytes are over 127, which is not text in most encodings.
    values = np.random.default_rng(0).standard_normal((40, 3), np.float32)
    path.write_bytes(python2_pickle(values))
    assert_equal(load_arrays(path), {"conv1_w": values})


class Runs:
    """An object of which the pickle calls `function(*arguments)` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def maker(path):
    return Runs(os.mkdir, str(path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"conv1_w": np.zeros(3), "__author__": evil},
        lambda evil: {"conv1_w": np.array([evil, evil], dtype=object)},
    ],
    ids=["top", "value", "element"],
)
def test_a_pickle_that_would_run_code_is_an_error(tmp_path, wrap, protocol):
    path, witness = tmp_path / "weights.pkl", tmp_path / "witness"
    path.write_bytes(pickle.dumps(wrap(maker(witness)), protocol))
    pickle.loads(path.read_bytes())
    assert witness.exists()  # pickle itself runs it
    witness.rmdir()
    assert_refused(path, rf"uses '{os.mkdir.__module__}\.mkdir', and loading that could run any")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cos\nsystem\n(S'false'\ntR.", "'os.system'"),
        (b"(S'false'\nios\nsystem\n.", "'os.system'"),  # the old opcode INST
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "'builtins.eval'"),
        (b"cnumpy\nload\n.", "'numpy.load'"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "'numpy.core.multiarray.fromfile'"),
        (b"\x80\x04\x8c\x01a\x8c\x03b\nc\x93.", r"'a\.b\\nc'"),  # a forged second line
    ],
)
def test_names_that_no_array_needs_are_errors(tmp_path, content, name):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    assert_refused(path, name)


@pytest.mark.parametrize("code", ["O8", "V8", "U2", "S4"])
def test_arrays_of_objects_and_text_are_errors(tmp_path, code):
    # With numpy's own types a pickle could declare the bytes to be pointers.
    path = tmp_path / "weights.pkl"
    content = python2_pickle(np.zeros((2, 3))).replace(b"U\x02f4", b"U\x02" + code.encode())
    path.write_bytes(content)
    assert_refused(path, f"contains an array of type '<{code}' under 'conv1_w'; only booleans")


def test_a_byte_order_that_contains_a_type_is_an_error(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(python2_pickle(np.zeros((2, 3))).replace(b"U\x01<NNN", b"U\x03O8,NNN"))
    assert_refused(path, "contains an array of type 'O8,f4' under 'conv1_w'; only booleans")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03\x86c", b"K\x02K\x04\x86c"),  # more values than bytes
        (b"\x80\x02}", b"\x80\x02N"),  # None where a dict is filled
        (
            b"U\x07conv1_wq\x02cnumpy.core.multiarray\n_reconstruct",
            b"U\x07conv1_wq\x02cnumpy\nndarray",
        ),
    ],
    ids=["shape", "dict", "call"],
)
def test_a_contradictory_pickle_is_an_error(tmp_path, old, new):
    path = tmp_path / "weights.pkl"
    path.write_bytes(python2_pickle(np.zeros((2, 3))).replace(old, new))
    assert_refused(path)


TYPE, RECONSTRUCT = b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"
DICT = b"ccollections\nOrderedDict\n"
TUPLES = b")" + b"\x85" * 1000  # nested; hashing a million of them overflows the stack
ATTACKS = {
    "state of a function": TYPE + b"}S'code'\nS'O8'\nsb.",
    "state by protocol 4": b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93}\x8c\x01xK\x01sb.",
    "slots of a function": TYPE + b"N}S'__name__'\nS'x'\nsS'__defaults__'\n(I1\nts\x86b.",
    "keyword defaults": RECONSTRUCT + b"N}S'__kwdefaults__'\n}S'x'\nI1\nss\x86b.",
    "documentation": RECONSTRUCT + b"N}S'__doc__'\nS'x'\ns\x86b.",
    "state of a class": DICT + b"}S'x'\nI1\nsb.",
    "slots of a class": DICT + b"N}S'x'\nI1\ns\x86b.",
    "state of None": b"cnumpy\nndarray\n}S'x'\nI1\nsb.",
    "state of a list": b"]}S'x'\nI1\nsb.",
    "class of an array": RECONSTRUCT + b")R" + b"N}S'__class__'\n" + TYPE + b"s\x86b.",
    "item of a function": TYPE + b"S'x'\nI1\ns.",
    "element of a function": TYPE + b"I1\na.",
    "object of a function": TYPE + b")\x81.",
    "object of a function by keywords": b"\x80\x04" + TYPE + b")}\x92.",
    "object of a dict": DICT + b")\x81}S'x'\nI1\nsb.",
    "type that is a list": TYPE + b"(]NI0\ntR(I3\nS'<'\ntb.",
    "type that is a dict": b"cnumpy.core.numeric\n_frombuffer\n(S'12'\n}(I1\ntS'C'\ntR.",
    "persistent id": b"Pname\n.",
    "persistent id by protocol 2": b"\x80\x02K\x01Q.",
    "buffer": b"\x80\x05\x97.",
    "extension": b"\x80\x02\x82\xf1.",
    "extension of two bytes": b"\x80\x02\x83\xf1\x00.",
    "extension of four bytes": b"\x80\x02\x84\xf1\x00\x00\x00.",
    "called extension": b"\x80\x02\x82\xf1(S'x'\ntR.",
    "place in the memo": b"\x80\x02}r\xff\xff\xff\x7f",
    "length": b"\x80\x05\x96" + struct.pack("<Q", 1 << 28) + b"x.",
    "length of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 28) + b"x.",
    "tuples as a key": b"}" + TUPLES + b"I1\ns.",
    "tuples as one of the keys": b"}(I1\nI1\n" + TUPLES + b"I1\nu.",
    "tuples as the key of a new dict": b"(" + TUPLES + b"I1\nd.",
    "tuples as the key of an ordered dict": DICT + b"(](" + TUPLES + b"I1\ntatR.",
    "tuples in a set": b"\x80\x04\x8f(" + TUPLES + b"\x90.",
    "tuples in a frozen set": b"\x80\x04(" + TUPLES + b"\x91.",
    "reconstructor": b"ccopyreg\n_reconstructor\n.",
    "maker of objects": b"ccopyreg\n__newobj__\n.",
    "registration of an extension": b"ccopyreg\nadd_extension\n(S'os'\nS'system'\nI7\ntR.",
}


def process_state():
    """Return what a pickle could alter: all attributes of the stand-ins, and registries."""
    objects = [value for value in vars(unpickle).values() if callable(value)]
    functions = [
        (f.__name__, f.__doc__, f.__defaults__, f.__kwdefaults__, dict(f.__dict__), f.__code__)
        for f in objects
        if isinstance(f, types.FunctionType)
    ]
    classes = [dict(vars(value)) for value in objects if isinstance(value, type)]
    registries = [dict(vars(copyreg)[name]) for name in ("dispatch_table", "_extension_cache")]
    return functions, classes, registries, dict(unpickle.STAND_INS), list(vars(unpickle))


@pytest.fixture
def extension(tmp_path):
    """Make number 241 an extension of pickles that makes a folder, as a program may."""
    copyreg.add_extension(os.mkdir.__module__, "mkdir", 241)
    pickle.loads(b"\x80\x02\x82\xf1.")  # the function is now in the cache of copyreg
    yield
    copyreg.remove_extension(os.mkdir.__module__, "mkdir", 241)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("extension")
def test_no_pickle_alters_the_process(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pkl"
    path.write_bytes(ATTACKS[attack])
    before = process_state()
    tracemalloc.start()
    try:
        assert_refused(path, r"weights\.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert process_state() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pkl"]
    write_pickle(path)
    assert_equal(load_arrays(path))


def test_attributes_of_a_dict_change_no_array(tmp_path):
    """PyTorch's state dicts have some, and a pickle could replace methods."""
    path = tmp_path / "weights.pkl"
    state = b"}S'items'\n" + b"c__builtin__\nbytes\n" + b"sS'_metadata'\n}sb."
    content = pickle.dumps(collections.OrderedDict(ARRAYS), 2)
    path.write_bytes(content[:-1] + state)
    assert_equal(load_arrays(path))


def test_an_unknown_source_is_an_error_before_the_file_is_read():
    with pytest.raises(ValueError, match="source='caffe' must be one of keras_resnet50"):
        load_backbone("caffe", "absent.npz", architecture="resnet50", norm="batch")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("keras_resnet50", "these are not Keras weights of resnet50: missing: bn2a_branch1/beta"),
        ("torchvision", "these are not torchvision weights of resnet50: missing: bn1.bias"),
        ("msra", "these are not MSRA weights of resnet50: missing: conv1_w"),
    ],
)
def test_a_file_of_other_arrays_is_an_error(archive, source, message):
    with pytest.raises(ValueError, match=r"; unexpected: a/kernel, b; give ") as caught:
        load_backbone(source, archive, architecture="resnet50", norm="batch")
    assert str(caught.value).startswith(f"weights file {archive}: {message}")


def test_a_file_of_the_source_becomes_the_backbone_s_variables(tmp_path, state_dict):
    arrays = state_dict("resnet18")
    np.savez(tmp_path / "resnet18.npz", **arrays)
    variables = load_backbone(
        "torchvision", tmp_path / "resnet18.npz", architecture="resnet18", norm="batch"
    )
    scale = variables["params"]["stage4_block1"]["norm2"]["scale"]
    np.testing.assert_array_equal(scale, arrays["layer3.1.bn2.weight"])
