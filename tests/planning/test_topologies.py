"""The names of devices that are not here, and the errors where their compiler is missing."""

import pytest

from retinanet_jax.planning import topologies
from retinanet_jax.planning.topologies import GIB, find_topology, make_devices


@pytest.mark.parametrize(
    ("name", "num_devices", "shape"),
    [
        ("v5e-4", 4, "v5e:2x2"),
        ("v5e-256", 256, "v5e:16x16"),
        ("v6e-16", 16, "v6e:4x4"),
        ("v4-32", 16, "v4:2x2x4"),  # cores, of which a chip has two
        ("v5p-128", 64, "v5p:4x4x4"),
        ("v4-2048", 1024, "v4:8x8x16"),
        ("v5e:2x2", 4, "v5e:2x2"),
        ("v4:2x2x1", 4, "v4:2x2x1"),
    ],
)
def test_a_slice_is_known_by_its_name_or_by_its_chips(name, num_devices, shape):
    topology = find_topology(name)
    assert topology.num_devices == num_devices
    assert topology.arguments["topology_name"] == shape


def test_several_slices_are_connected_by_the_network():
    topology = find_topology("v5e-256x4")
    assert topology.num_devices == 1024
    assert topology.arguments["num_slices"] == 4


def test_the_two_cores_of_a_chip_are_one_device():
    assert find_topology("v4-8").arguments["chip_config_name"] == "megacore"
    assert "chip_config_name" not in find_topology("v5e-4").arguments


@pytest.mark.parametrize(
    ("name", "num_devices", "shape"),
    [("h100", 1, "1x1x1"), ("h100x8", 8, "1x1x8"), ("h200x64", 64, "1x8x8")],
)
def test_eight_gpus_are_in_a_host(name, num_devices, shape):
    topology = find_topology(name)
    assert topology.num_devices == num_devices
    assert topology.arguments["topology"] == shape


def test_a_gpu_is_described_by_its_published_figures():
    text = find_topology("h200").arguments["target_config"]
    for field in ("core_count: 132", "memory_bandwidth: 4800000000000", "major: 9 }"):
        assert field in text
    assert "core_count: 108" in find_topology("a100").arguments["target_config"]


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e-7", "v5e-0", "v5e:4x4x4", "v5e:0x2", "v3-8", "h100-8", "h100x3", "h100x0"],
)
def test_an_unknown_name_prints_the_list(error_line, name):
    line = error_line("plan", f"--topology={name} ")  # a space: an empty name is no name
    assert line.startswith(f"error: --topology={name} : unknown; the topologies are v4-8|16|32|")
    for known in ("v5p-8|", "v5e-1|4|8|16|", "v6e-1|", "a100, h100, h200;"):
        assert known in line


@pytest.mark.parametrize(("name", "extra"), [("v5e-4", "tpu"), ("h100", "cuda")])
def test_a_missing_compiler_is_an_error_with_what_to_install(error_line, monkeypatch, name, extra):
    monkeypatch.setattr(topologies, "has_compiler", lambda _: False)
    line = error_line("plan", "--config=configs/r50_fpn.py:tiny", f"--topology={name}")
    assert line == (
        f"error: --topology={name} requires the compiler for {extra.upper()} devices, but no such "
        f'device; run `pip install "retinanet-jax[{extra}]"`.'
    )


def test_devices_that_the_compiler_rejects_are_an_error():
    if not topologies.has_compiler("tpu"):
        pytest.skip("libtpu is not installed")
    with pytest.raises(ValueError, match=r"--topology=v5e:3x5: the compiler has no such devices"):
        make_devices(find_topology("v5e:3x5"))


def test_a_program_may_use_the_part_of_a_gpu_that_jax_reserves(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert find_topology("h100").usable_memory == pytest.approx(0.75 * 79.1 * GIB)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    assert find_topology("h100").usable_memory == pytest.approx(0.95 * 79.1 * GIB)
    assert find_topology("v5e-4").usable_memory == 15.75 * GIB
