"""Reading weight files: back as written, or one clear line."""

import io

import numpy as np
import pytest

from retinanet_jax.weights import load_arrays, load_backbone


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **ARRAYS)
    return path


def test_arrays_come_back(archive):
    loaded = load_arrays(str(archive))
    assert set(loaded) == set(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


@pytest.mark.parametrize("name", ["absent.npz", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"weights file .* does not exist; scripts/"):
        load_arrays(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(archive, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    assert_refused(archive)


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
def test_other_files_are_refused(tmp_path, write):
    path = tmp_path / "weights.npz"
    write(path)
    assert_refused(path)


def assert_refused(path):
    with pytest.raises(ValueError, match="is not a readable .npz of plain arrays") as caught:
        load_arrays(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_source_is_named_before_the_file_is_read():
    with pytest.raises(ValueError, match="source='caffe' is unknown; use one of keras_resnet50"):
        load_backbone("caffe", "absent.npz", "batch")


def test_a_file_of_something_else_is_refused(archive):
    with pytest.raises(ValueError, match=r"missing: bn2a_branch1/beta.*unknown: a/kernel, b;"):
        load_backbone("keras_resnet50", archive, "batch")
