"""Fixtures for all tests: toy configs, a synthetic dataset, the commands, and a finished run.

The tests run on eight virtual devices, with a compilation cache in the project's folder.
"""

import importlib
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import types
from typing import NamedTuple

# Before jax starts its backend: sharding is tested on CPU.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Unoptimized programs are as exact, and compiled in half the time; set it to 0 to test the others.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
from ml_collections import ConfigDict
from object_store import Objects, use_object_store

from retinanet_jax import sharding
from retinanet_jax.__main__ import COMMANDS
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import default_config, load_config
from retinanet_jax.data import tf_transforms
from retinanet_jax.data.sources import synthetic
from retinanet_jax.models import resnet
from retinanet_jax.utils import progress

ROOT = pathlib.Path(__file__).parent.parent
# Most of the suite's time is compilation; a second run of the suite reads the compiled programs.
CACHE = ROOT / ".cache" / "jax"
# Commands in processes of their own have one device, and therefore other compiled programs.
PROGRAM_CACHE = ROOT / ".cache" / "runs"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# A shell lets what it runs in the background ignore SIGINT, which the tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run the exhaustive tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the exhaustive tests, which take many minutes, without --exhaustive."""
    if config.getoption("exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Return the folder of the development data; tests that need it skip without it."""
    folder = os.environ.get("RETINANET_JAX_TEST_DATA")
    if not folder:
        pytest.skip("RETINANET_JAX_TEST_DATA names no folder")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def load_script():
    """Return `load_script(path)`, which imports a file of scripts/ as a module."""

    def load(path: pathlib.Path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def config() -> ConfigDict:
    """Return the paper's config, unlocked, so that a test can change fields."""
    return default_config()


@pytest.fixture
def toy_config(monkeypatch) -> ConfigDict:
    """Return the config of a detector of 64 x 64 images with the fewest residual blocks."""
    toy = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
    monkeypatch.setitem(resnet.ARCHITECTURES, "toy", toy)
    toy_config = load_config("configs/r50_fpn.py:tiny").unlock()
    toy_config.model.update(backbone="toy", fpn_channels=16)
    toy_config.data.update(buckets=((64, 64),), short_sides=(64,), eval_short_side=64, long_side=64)
    return toy_config


@pytest.fixture
def one_device(monkeypatch):
    """Make training and evaluation in this process use one of the virtual devices."""
    devices = jax.devices()[:1]
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(
        sharding, "make_mesh", lambda space, _=None: make_mesh(space, devices=devices)
    )


@pytest.fixture
def object_store(tmp_path, monkeypatch) -> Objects:
    """Let gs:// be a folder of this test, and return the objects in it; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return use_object_store(tmp_path / "objects")


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory) -> pathlib.Path:
    """Return a folder with 20 synthetic images of 64 x 64 and their COCO JSON."""
    folder = tmp_path_factory.mktemp("synthetic") / "shapes"
    return synthetic.write_shapes(folder, seed=5, num_images=20, image_size=64)


@pytest.fixture
def clock(monkeypatch):
    """Return a replacement for the module `time` of progress lines, with its time in `seconds`."""
    clock = types.SimpleNamespace(seconds=100.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Program:
    """Runs commands, each in a process of its own with one device."""

    def use_shared_cache(self, workdir: pathlib.Path) -> None:
        """Let runs in `workdir` find what earlier runs of the suite have compiled."""
        PROGRAM_CACHE.mkdir(parents=True, exist_ok=True)
        (workdir / "compilation_cache").symlink_to(PROGRAM_CACHE)

    def environment(self) -> dict[str, str]:
        """Return the environment of a process with one device and the shared cache."""
        own = ("XLA_FLAGS", *tf_transforms.ENVIRONMENT)  # what this process has set
        environment = {k: v for k, v in os.environ.items() if k not in own}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # Otherwise the cache's path, which differs between runs, is part of every program's key.
        environment["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
        return environment

    def start(self, command: str, *arguments: object, preamble: str = "") -> subprocess.Popen:
        """Start a command, or "main" (`python -m retinanet_jax.main`).

        `preamble` is Python code that runs first.
        """
        module = "retinanet_jax.main" if command == "main" else "retinanet_jax"
        argv = [module, *([] if command == "main" else [command]), *map(str, arguments)]
        code = (
            f"import runpy, sys\n{preamble}\nsys.argv = {argv}\n"
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *arguments: object, preamble: str = "") -> tuple[int, str, str]:
        """Return the exit status, stdout and stderr of a command."""
        process = self.start(command, *arguments, preamble=preamble)
        stdout, stderr = process.communicate(timeout=1200)
        if process.returncode == 0:
            assert stderr == ""  # neither a library's messages nor warnings
        return process.returncode, stdout, stderr


@pytest.fixture(scope="session")
def program() -> Program:
    return Program()


@pytest.fixture
def error_line():
    """Return a function `(command, *arguments) -> error message` for input that is an error.

    The command runs in this process. The message must be a single line.
    """

    def error_line(name: str, *arguments: object) -> str:
        module = importlib.import_module(f"retinanet_jax.cli.{COMMANDS[name][0]}")
        with pytest.raises(SystemExit) as stopped:
            run_command(module.COMMAND, ["program", *map(str, arguments)])
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
        line = stopped.value.code  # a string: Python prints it and exits with status 1
        assert isinstance(line, str), line
        assert line.startswith("error: ")
        assert "\n" not in line
        return line

    return error_line


class Run(NamedTuple):
    """A finished run of the program."""

    workdir: pathlib.Path
    arguments: tuple[str, ...]  # without --workdir
    stdout: str


@pytest.fixture(scope="session")
def tiny_run(program, tmp_path_factory) -> Run:
    """Run `main` on shapes:tiny: 8 steps, evaluations and checkpoints after 4 and 8."""
    workdir = tmp_path_factory.mktemp("tiny_run")
    program.use_shared_cache(workdir)
    arguments = (
        "--config=configs/shapes.py:tiny",
        # One image at a time, as in prediction, and a threshold that an untrained network passes.
        "--config.data.eval_batch_size=1",
        "--config.detections.score_threshold=0.001",
    )
    patience = "--stall_seconds=600"  # a busy machine may be slow
    status, stdout, stderr = program.run("main", *arguments, patience, f"--workdir={workdir}")
    assert status == 0, stderr
    return Run(workdir, arguments, stdout)
