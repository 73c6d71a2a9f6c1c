"""Reading weight files: back as written, or one clear line; and nothing in them is run."""

import collections
import io
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from retinanet_jax.weights import load_arrays, load_backbone


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}


def write_torch(path, content=None):
    torch = pytest.importorskip("torch")
    content = content or {k: torch.from_numpy(np.asarray(v)) for k, v in ARRAYS.items()}
    torch.save(content, path)


def write_old_torch(path):
    """As PyTorch before 1.6 wrote, and torchvision's first files still are."""
    torch = pytest.importorskip("torch")
    content = {k: torch.from_numpy(np.asarray(v)) for k, v in ARRAYS.items()}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_safetensors(path):
    pytest.importorskip("safetensors.numpy").save_file(ARRAYS, path)


def write_pickle(path, content=None, protocol=2):
    path.write_bytes(pickle.dumps(content or ARRAYS, protocol))


WRITERS = {
    "npz": lambda path: np.savez(path, **ARRAYS),
    "pth": write_torch,
    "pt": write_old_torch,
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
    assert match or f"is not a readable {path.suffix} of plain arrays" in message
    assert str(path) in message
    assert "\n" not in message
    return message


def test_arrays_come_back(written):
    assert_equal(load_arrays(str(written)))


@pytest.mark.parametrize("name", ["absent.npz", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"weights file .* does not exist; scripts/"):
        load_arrays(tmp_path / name)


def test_a_missing_file_of_others_is_not_said_to_be_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist; give the path of"):
        load_arrays(tmp_path / "absent.pth")


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    assert_refused(path, r"weights\.h5 must end in one of \.npz, \.pth, \.pt, \.safetensors, \.pkl")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(written, share):
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    assert_refused(written)


def test_a_flipped_bit_is_refused(archive):
    content = bytearray(archive.read_bytes())
    content[content.index(ARRAYS["a/kernel"].tobytes()) + 5] ^= 1
    archive.write_bytes(content)
    assert_refused(archive)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("<html>404: not found</html>"),
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
        lambda path: path.write_bytes(npy(np.zeros(3))),
        lambda path: np.savez(path, a=np.array([{}], dtype=object)),
    ],
    ids=["text", "hdf5", "npy", "pickle"],
)
@pytest.mark.parametrize("suffix", WRITERS)
def test_other_files_are_refused(tmp_path, write, suffix):
    if suffix in ("pth", "pt"):
        pytest.importorskip("torch")
    elif suffix == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / "weights.npz"
    write(path)
    path = path.rename(path.with_suffix(f".{suffix}"))
    assert_refused(path)


@pytest.mark.parametrize(
    ("suffix", "library"), [("pth", "torch"), ("pt", "torch"), ("safetensors", "safetensors")]
)
def test_a_library_that_is_not_there_is_named(tmp_path, monkeypatch, suffix, library):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(b"content")
    # What Python's import does where a package is absent.
    for name in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(path, f"needs {library}, which is not installed; pip install {library}, or ")


@pytest.mark.parametrize("key", ["model", "state_dict", "blobs"])
def test_the_weights_of_a_checkpoint_are_found(tmp_path, key):
    path = tmp_path / "checkpoint.pkl"
    write_pickle(path, {key: ARRAYS, "__author__": "somebody", "epoch": 3, "lr": [0.1, None]})
    assert_equal(load_arrays(path))


def test_the_weights_of_a_pytorch_checkpoint_are_found(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pth"
    model = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.zeros(3))}
    write_torch(path, {"model": model, "optimizer": {"state": {}}, "epoch": 3})
    assert_equal(load_arrays(path), {"a": np.ones(2, np.float32), "b": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds a list, no arrays by name"),
        ({"a": np.zeros(1), "lr": 0.1}, "holds a float under 'lr'; only arrays by name are read"),
        ({0: np.zeros(1)}, "under 0; only arrays by name are read"),
    ],
    ids=["list", "float", "number"],
)
def test_what_is_no_array_by_name_is_told(tmp_path, content, match):
    path = tmp_path / "weights.pkl"
    write_pickle(path, content)
    assert_refused(path, match)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2", "i8", "u1", "?"])
def test_pickled_arrays_come_back_by_every_protocol(tmp_path, protocol, dtype):
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
    """What Python 2's cPickle writes, by protocol 2, of {"conv1_w": values}; strings are bytes."""
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


def test_a_pickle_of_python_2_comes_back(tmp_path):
    path = tmp_path / "R-50.pkl"
    # Many bytes over 127, which are no text in most encodings.
    values = np.random.default_rng(0).standard_normal((40, 3), np.float32)
    path.write_bytes(python2_pickle(values))
    assert_equal(load_arrays(path), {"conv1_w": values})


class Runs:
    """Pickled, it has `function(*arguments)` run by whoever loads it."""

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
    ids=["alone", "beside", "inside"],
)
def test_a_pickle_that_would_run_something_is_refused(tmp_path, wrap, protocol):
    path, witness = tmp_path / "weights.pkl", tmp_path / "witness"
    path.write_bytes(pickle.dumps(wrap(maker(witness)), protocol))
    pickle.loads(path.read_bytes())
    assert witness.exists()  # it would
    witness.rmdir()
    assert_refused(path, rf"asks for '{os.mkdir.__module__}\.mkdir', and loading it could run any")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        (b"cos\nsystem\n(S'false'\ntR.", "'os.system'"),
        (b"(S'false'\nios\nsystem\n.", "'os.system'"),  # the old INST
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "'builtins.eval'"),
        (b"cnumpy\nload\n.", "'numpy.load'"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "'numpy.core.multiarray.fromfile'"),
        (b"\x80\x04\x8c\x01a\x8c\x03b\nc\x93.", r"'a\.b\\nc'"),  # a forged second line
    ],
)
def test_names_that_no_array_needs_are_refused(tmp_path, content, asked):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    assert_refused(path, asked)


@pytest.mark.parametrize("kind", ["O8", "V8", "U2", "S4"])
def test_arrays_of_objects_and_text_are_refused(tmp_path, kind):
    # The bytes would be taken for pointers if numpy were told, as a pickle can, that they are.
    path = tmp_path / "weights.pkl"
    content = python2_pickle(np.zeros((2, 3))).replace(b"U\x02f4", b"U\x02" + kind.encode())
    path.write_bytes(content)
    assert_refused(path, f"asks for arrays of type '<{kind}'")


def test_an_order_that_describes_a_type_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(python2_pickle(np.zeros((2, 3))).replace(b"U\x01<NNN", b"U\x03O8,NNN"))
    assert_refused(path, "asks for arrays of type 'O8,f4'")


@pytest.mark.parametrize(
    ("replaced", "by"),
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
def test_a_pickle_that_makes_no_sense_is_refused(tmp_path, replaced, by):
    path = tmp_path / "weights.pkl"
    path.write_bytes(python2_pickle(np.zeros((2, 3))).replace(replaced, by))
    assert_refused(path)


def test_a_pytorch_file_that_would_run_something_is_refused(tmp_path):
    path, witness = tmp_path / "weights.pth", tmp_path / "witness"
    write_torch(path, {"a": maker(witness)})
    assert_refused(path)
    assert not witness.exists()


def test_a_zip_that_is_no_pytorch_file_is_refused(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert_refused(path)


def test_an_unknown_source_is_named_before_the_file_is_read():
    with pytest.raises(ValueError, match="source='caffe' is unknown; use one of keras_resnet50"):
        load_backbone("caffe", "absent.npz", architecture="resnet50", norm="batch")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("keras_resnet50", "not Keras' ResNet-50: missing: bn2a_branch1/beta"),
        ("torchvision", "not torchvision's resnet50: missing: bn1.bias"),
        ("msra", "not MSRA's resnet50: missing: conv1_w"),
    ],
)
def test_a_file_of_something_else_is_refused(archive, source, said):
    with pytest.raises(ValueError, match=r"; unknown: a/kernel, b; give ") as caught:
        load_backbone(source, archive, architecture="resnet50", norm="batch")
    assert str(caught.value).startswith(f"weights file {archive}: {said}")


def test_a_file_of_the_source_is_the_backbone_s_variables(tmp_path, state_dict):
    arrays = state_dict("resnet18")
    np.savez(tmp_path / "resnet18.npz", **arrays)
    variables = load_backbone(
        "torchvision", tmp_path / "resnet18.npz", architecture="resnet18", norm="batch"
    )
    scale = variables["params"]["stage4_block1"]["norm2"]["scale"]
    np.testing.assert_array_equal(scale, arrays["layer3.1.bn2.weight"])
