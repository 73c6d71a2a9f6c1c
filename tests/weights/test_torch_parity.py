"""Where PyTorch is installed: our reader gives the arrays that torch.load gives, bit for bit."""

import argparse
import collections
import pathlib

import numpy as np
import pytest

from retinanet_jax.weights import load_arrays, save_arrays

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64"),
)
# torch.load itself does not read these from the format without zip.
ZIP_ONLY = ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")


@pytest.fixture(params=[True, False], ids=["zip", "sequence"])
def is_zip(request):
    return request.param


def random_bits(dtype, count=40):
    """Return numbers of random bits, among them NaN, infinite and subnormal ones."""
    rng = np.random.default_rng(0)
    if dtype == torch.bool:
        return torch.from_numpy(rng.integers(0, 2, count).astype(bool))
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(rng.integers(0, 256, count * size, np.uint8)).view(dtype)


def views(values):
    block = values[:24].reshape(2, 3, 4)
    return {
        "all": values,
        "block": block,
        "transposed": block.permute(2, 0, 1),
        "sliced": block[:, ::2, 1:],
        "offset": values[5:17].reshape(3, 4).t(),
        "scalar": values[7],
        "empty": values[:0],
        "empty block": block[:, :0],
        "repeated": values[3:4].expand(5, 2),
        "overlapping": torch.as_strided(values, (3, 3), (2, 3), 4),
        "copy": block.clone(),
        "channels last": block[None].contiguous(memory_format=torch.channels_last),
    }


def assert_equal(path, tensors):
    loaded = load_arrays(path)
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        expected = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        assert loaded[name].dtype == expected.dtype
        np.testing.assert_array_equal(loaded[name], expected, strict=True)
        np.testing.assert_array_equal(np.signbit(loaded[name]), np.signbit(expected))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_of_every_type_and_view(tmp_path, dtype, protocol, is_zip):
    if dtype in ZIP_ONLY and not is_zip:
        pytest.skip("torch.load does not read these")
    path = tmp_path / "w.pth"
    values = random_bits(getattr(torch, dtype))
    for items in (list(views(values).items()), list(views(values).items())[::-1]):
        content = collections.OrderedDict(items)
        if values.is_floating_point():
            content["parameter"] = torch.nn.Parameter(values[:6].reshape(2, 3))
        content._metadata = {"": {"version": 1}}
        options = {"_use_new_zipfile_serialization": is_zip, "pickle_protocol": protocol}
        torch.save(content, path, **options)
        assert_equal(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_with_everything_that_training_scripts_save(tmp_path, protocol, is_zip):
    path = tmp_path / "w.pth"
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    values = torch.ones(3)
    values.attribute = 1
    content = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict(),
        "args": argparse.Namespace(path=pathlib.Path("a"), device=torch.device("cpu")),
        "rng": (torch.get_rng_state(), np.random.get_state(), np.random.default_rng(0)),
        "others": [np.float64(1), np.array(["a", None], object), np.zeros(2, "m8[s]"), 1 + 2j],
        "keys": {(1, (2,)): 3, torch.float32: 4, frozenset([1]): 5},
        "tensors": [torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64).conj()],
        "classes": [torch.nn.Conv2d, torch.nn.functional.relu, network],
        "default": collections.defaultdict(list, a=[1]),
        "model": {**network.state_dict(), "with attribute": values},
    }
    options = {"_use_new_zipfile_serialization": is_zip, "pickle_protocol": protocol}
    torch.save(content, path, **options)
    assert_equal(path, content["model"])


def test_a_whole_module_is_named(tmp_path, is_zip):
    path, network = tmp_path / "w.pth", torch.nn.Linear(2, 3)
    torch.save(network, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"a whole module \(torch\.nn\.modules\.linear\.Linear\)"):
        load_arrays(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match="is a TorchScript program"):
        load_arrays(tmp_path / "w.pth")


def test_records_may_lack_a_checksum(tmp_path):
    path, content = tmp_path / "w.pth", {"a": torch.arange(3.0)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(path, content)


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"weights_only": False}])
def test_torch_load_reads_what_we_write(tmp_path, options):
    arrays = {
        "conv.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float16),
        "flag": np.array([True, False]),
        "ünïcode": np.uint8([255]),
    }
    save_arrays(tmp_path / "w.pth", arrays)
    loaded = torch.load(tmp_path / "w.pth", **options)
    assert list(loaded) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value, strict=True)
        assert loaded[name].is_contiguous()
