"""The devices that `plan` compiles for: their names, their figures, and how to compile for them.

Neither a device nor its driver is needed: libtpu and XLA's CUDA plugin compile for a description.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from retinanet_jax.utils.packages import not_installed

GIB = 2**30


class Chip(NamedTuple):
    """A generation of TPUs or GPUs, with the figures that its vendor publishes for one chip."""

    platform: str  # of jax: "tpu" or "cuda"
    memory: float  # GiB that one program may use
    tflops: float  # peak in bfloat16, dense
    memory_bandwidth: float  # GB/s
    link_bandwidth: float  # GB/s to other chips (ICI, NVLink), both directions together
    target: str = ""  # cuda: the fields of GpuDeviceInfoProto in which GPUs differ


# TPUs: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e; the memory is what libtpu 0.0.42.1
# allows. v4's links: https://arxiv.org/abs/2304.01433, 6 of 50 GB/s in each direction.
# GPUs: the data sheets of the SXM modules; the memory is what the driver reports. Bytes of shared
# memory and registers: CUDA C++ Programming Guide, table "Technical Specifications".
HOPPER = (
    "cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 "
    "l2_cache_size: 52428800 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448"
)
AMPERE = (
    "cuda_compute_capability { major: 8 } core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41 "
    "l2_cache_size: 41943040 shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912"
)
CHIPS = {
    "v4": Chip("tpu", 30.75, 275, 1200, 600),
    "v5e": Chip("tpu", 15.75, 197, 819, 400),
    "v5p": Chip("tpu", 95.74, 459, 2765, 1200),
    "v6e": Chip("tpu", 31.25, 918, 1638, 800),
    "a100": Chip("cuda", 79.1, 312, 2039, 600, AMPERE),
    "h100": Chip("cuda", 79.1, 989, 3350, 900, HOPPER),
    "h200": Chip("cuda", 140.9, 989, 4800, 900, HOPPER),
}
# The slices that can be rented, by the number in their names. It counts the chips of v5e and v6e,
# but the cores of v4 and v5p, of which a chip has two.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    8: "2x2x1",
    16: "2x2x2",
    32: "2x2x4",
    64: "2x4x4",
    128: "4x4x4",
    256: "4x4x8",
    512: "4x8x8",
    1024: "8x8x8",
    2048: "8x8x16",
    4096: "8x16x16",
}
SLICES = {"v4": CUBES, "v5p": CUBES, "v5e": FLAT, "v6e": FLAT}
GPUS_PER_HOST = 8
# jax reserves this fraction of a GPU's memory for its programs, unless this variable names another.
GPU_FRACTION, GPU_FRACTION_VARIABLE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"
# Without these, libtpu asks Google Cloud's metadata server which TPU this machine has, prints that
# it has none, and refuses to be loaded by two processes at once.
TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# What all of these GPUs have in common, and the versions of the libraries that the plugin brings.
GPU_TARGET = """
gpu_device_info {{
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_address_bits: 64
  device_memory_size: {memory} memory_bandwidth: {bandwidth}
  {target}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""


class Topology(NamedTuple):
    """Devices that are not here.

    Attributes:
        name: The name that the user gave.
        chip: The generation of the devices; a TPU chip is one device.
        num_devices: The number of devices.
        arguments: Keyword arguments of `jax.experimental.topologies.get_topology_desc`.
    """

    name: str
    chip: Chip
    num_devices: int
    arguments: dict[str, Any]

    @property
    def usable_memory(self) -> int:
        """The bytes of a device's memory that a program may use."""
        fraction = 1.0
        if self.chip.platform == "cuda":
            fraction = float(os.environ.get(GPU_FRACTION_VARIABLE) or GPU_FRACTION)
        return int(self.chip.memory * GIB * fraction)

    @property
    def compiler_options(self) -> dict[str, Any]:
        """The options with which a program is compiled without the devices."""
        # A GPU's compiler would time its kernels on the device.
        return {"xla_gpu_autotune_level": 0} if self.chip.platform == "cuda" else {}


def find_topology(name: str) -> Topology:
    """Return the topology of a name.

    Examples:
        >>> find_topology("v5e-256").arguments["topology_name"]
        'v5e:16x16'
        >>> find_topology("v4-32").num_devices  # 32 cores
        16

    Args:
        name: A TPU slice as Google Cloud names it ("v5e-16", "v5e-256x4" for four slices) or by
            its chips ("v5e:4x4"), or GPUs ("h100", "h100x8").

    Raises:
        ValueError: If there is no such topology; the message lists the names.
    """
    match = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))?(?:x(\d+))?", name)
    chip = CHIPS.get(match[1]) if match else None
    if not match or chip is None:
        raise unknown_topology(name)
    generation, number, shape = match[1], match[2], match[3]
    copies = int(match[4] or 1)
    if chip.platform == "cuda":
        if number or shape or not is_number_of_gpus(copies):
            raise unknown_topology(name)
        return gpu_topology(name, generation, copies)
    shape = shape or SLICES[generation].get(int(number or 0))
    sides = [int(side) for side in shape.split("x")] if shape else []
    if copies < 1 or len(sides) != SLICES[generation][8].count("x") + 1 or 0 in sides:
        raise unknown_topology(name)
    return tpu_topology(name, generation, sides, copies)


def is_number_of_gpus(number: int) -> bool:
    """Return whether there are hosts with this number of GPUs: a part of one, or several whole."""
    return number in (1, 2, 4) or (number > 0 and number % GPUS_PER_HOST == 0)


def tpu_topology(name: str, generation: str, sides: list[int], num_slices: int) -> Topology:
    """Return the topology of TPU slices.

    Args:
        name: The name that the user gave.
        generation: A key of CHIPS.
        sides: The number of chips in each dimension of a slice.
        num_slices: The number of slices.
    """
    arguments: dict[str, Any] = {
        "platform": "tpu",
        "topology_name": f"{generation}:{'x'.join(map(str, sides))}",
    }
    if num_slices > 1:
        arguments["num_slices"] = num_slices
    if math.prod(sides) == 1:  # fewer chips than a host has
        arguments["chips_per_host_bounds"] = [1, 1, 1]
    if SLICES[generation] is CUBES:
        # The two cores of a chip are one device, as they are where such chips are rented.
        arguments["chip_config_name"] = "megacore"
    return Topology(name, CHIPS[generation], math.prod(sides) * num_slices, arguments)


def gpu_topology(name: str, generation: str, num_gpus: int) -> Topology:
    """Return the topology of GPUs, of which eight are in a host.

    Args:
        name: The name that the user gave.
        generation: A key of CHIPS.
        num_gpus: The number of GPUs.
    """
    chip = CHIPS[generation]
    per_host = min(num_gpus, GPUS_PER_HOST)
    target = GPU_TARGET.format(
        name=generation,
        memory=int(chip.memory * GIB),
        bandwidth=int(chip.memory_bandwidth * 1e9),
        target=chip.target,
    )
    arguments = {
        "platform": "cuda",
        "topology_name": generation,
        "topology": f"1x{num_gpus // per_host}x{per_host}",  # partitions, hosts, GPUs of a host
        "target_config": target,
    }
    return Topology(name, chip, num_gpus, arguments)


def unknown_topology(name: str) -> ValueError:
    """Return the error for a name that is no topology, with the list of names."""
    slices = {
        generation: f"{generation}-{'|'.join(map(str, table))}"
        for generation, table in SLICES.items()
    }
    gpus = ", ".join(name for name, chip in CHIPS.items() if chip.platform == "cuda")
    return ValueError(
        f"--topology={name}: unknown; the topologies are {', '.join(slices.values())}, {gpus}; "
        "v5e-256x4 is four slices, v5e:4x4 a slice by its chips, and h100x8 eight GPUs (1, 2, 4 or "
        "a multiple of 8)."
    )


def make_devices(topology: Topology) -> list[Any]:
    """Return the devices of a topology, for which programs can be compiled but not run.

    Args:
        topology: From `find_topology`.

    Raises:
        ValueError: If the extra of the platform is not installed, or the compiler rejects the
            topology.
    """
    platform = topology.chip.platform
    if not has_compiler(platform):
        what = f"the compiler for {platform.upper()} devices, but no such device"
        raise not_installed(f"--topology={topology.name}", what, f"retinanet-jax[{platform}]")
    os.environ.update(TPU_ENVIRONMENT if platform == "tpu" else {})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA prints that it compiles slowly
    jax.config.update("jax_platforms", "cpu")  # whatever devices this machine has
    try:
        return list(topologies.get_topology_desc(**topology.arguments).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology.name}: the compiler has no such devices ({error})."
        ) from None


def has_compiler(platform: str) -> bool:
    """Return whether the compiler of a platform, "tpu" or "cuda", is installed."""
    if platform == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    try:
        plugins = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
        return any(importlib.util.find_spec(plugin) for plugin in plugins)
    except ModuleNotFoundError:  # jax_plugins itself
        return False
