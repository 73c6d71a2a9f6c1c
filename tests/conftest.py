"""What every test shares: eight virtual devices, the compilation cache, the development data,
toy configs, and one finished run of the program.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

# Before jax starts its backend: sharding is tested on CPU.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.cli import common
from retinanet_jax.configs import r50_fpn
from retinanet_jax.data.sources import synthetic
from retinanet_jax.models import resnet

ROOT = pathlib.Path(__file__).parent.parent
# Compiling is what is slow in this suite; the second run finds it done.
CACHE = ROOT / ".cache" / "jax"
# The program's own runs have one device and so programs of their own.
CACHE_OF_RUNS = ROOT / ".cache" / "runs"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The development data's folder; tests that need it skip where it is not given."""
    folder = os.environ.get("RETINANET_JAX_TEST_DATA")
    if not folder:
        pytest.skip("RETINANET_JAX_TEST_DATA names no folder")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def load_script():
    """`load_script(path)`: a file of scripts/ as a module of its own."""

    def load(path: pathlib.Path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def config() -> ConfigDict:
    """The paper's config, unlocked: change what the test is about."""
    return r50_fpn.get_config().unlock()


@pytest.fixture
def toy_config(monkeypatch) -> ConfigDict:
    """A detector of 64 x 64 pictures with four residual blocks: what compiles fastest."""
    toy = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
    monkeypatch.setitem(resnet.ARCHITECTURES, "toy", toy)
    toy_config = r50_fpn.get_config("tiny").unlock()
    toy_config.model.update(backbone="toy", fpn_channels=16)
    toy_config.data.update(buckets=((64, 64),), short_sides=(64,), eval_short_side=64, long_side=64)
    return toy_config


@pytest.fixture
def one_device(monkeypatch):
    """Training and evaluation in this process use one of the virtual devices."""
    one = jax.devices()[:1]
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda space: make_mesh(space, devices=one))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> pathlib.Path:
    """A folder with 20 drawn pictures of 64 x 64 and their COCO JSON."""
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    return synthetic.write_shapes(folder, seed=5, images=20, image_size=64)


class Program:
    """`python -m retinanet_jax.MODULE`, in a process of its own on one device."""

    def share_compiled(self, workdir: pathlib.Path) -> None:
        """Runs in `workdir` will find what earlier runs of the suite have compiled."""
        CACHE_OF_RUNS.mkdir(parents=True, exist_ok=True)
        (workdir / "compilation_cache").symlink_to(CACHE_OF_RUNS)

    def environment(self) -> dict[str, str]:
        """Of a process with one device, where what earlier runs have compiled is found."""
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # Otherwise the cache's path, which is each run's own, is part of every program's key.
        environment["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
        return environment

    def start(self, module: str, *arguments: object, preamble: str = "") -> subprocess.Popen:
        """`preamble` is Python that runs before the module."""
        code = (
            f"import runpy, sys\n{preamble}\n"
            f"sys.argv = {[module, *map(str, arguments)]}\n"
            f"runpy.run_module('retinanet_jax.{module}', run_name='__main__', alter_sys=True)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *arguments: object, preamble: str = "") -> tuple[int, str, str]:
        """(exit status, stdout, stderr)."""
        process = self.start(module, *arguments, preamble=preamble)
        stdout, stderr = process.communicate(timeout=1200)
        return process.returncode, stdout, stderr


@pytest.fixture(scope="session")
def program() -> Program:
    return Program()


@pytest.fixture
def refusal(monkeypatch):
    """`refusal(module, *arguments)`: the line with which a program refuses, run in this process."""

    def refusal(module, *arguments: object) -> str:
        argv = ["program", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
            module.main(common.parse_flags_and_words(argv))
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
        line = stopped.value.code  # a string: Python prints it and exits with status 1
        assert isinstance(line, str), line
        assert line.startswith("error: ")
        assert "\n" not in line
        return line

    return refusal


class Run(NamedTuple):
    """A finished run of the program."""

    workdir: pathlib.Path
    arguments: tuple[str, ...]  # without --workdir
    stdout: str


@pytest.fixture(scope="session")
def tiny_run(program, tmp_path_factory) -> Run:
    """`main` on shapes:tiny: 8 steps, evaluations and checkpoints after 4 and 8."""
    workdir = tmp_path_factory.mktemp("tiny_run")
    program.share_compiled(workdir)
    arguments = (
        "--config=configs/shapes.py:tiny",
        # One picture at a time, as prediction has them; and detections, though hardly trained.
        "--config.data.eval_batch_size=1",
        "--config.detections.score_threshold=0.001",
    )
    status, stdout, stderr = program.run("main", *arguments, f"--workdir={workdir}")
    assert status == 0, stderr
    return Run(workdir, arguments, stdout)
