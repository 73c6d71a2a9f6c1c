"""An installed package works outside of the checkout and inside, with the configs of its own."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from retinanet_jax.config import CONFIGS, config_files

ROOT = pathlib.Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def packages() -> list[str]:
    """The packages of a wheel, as setup.cfg lists them."""
    return SETUP["options"]["packages"].split()


def source_of(package: str) -> pathlib.Path:
    """The folder of the checkout that a package of the wheel is made from."""
    folders = dict(
        map(str.strip, line.split("="))
        for line in SETUP["options"]["package_dir"].strip().splitlines()
    )
    parent, _, last = package.rpartition(".")
    return ROOT / folders[package] if package in folders else source_of(parent) / last


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A folder of installed packages, with the files that setup.cfg puts into a wheel."""
    site = tmp_path_factory.mktemp("site")
    for package in packages():
        folder = site / package.replace(".", "/")
        folder.mkdir(parents=True)
        for path in source_of(package).glob("*.py"):
            shutil.copy(path, folder)
    return site


def run(installed: pathlib.Path, cwd: pathlib.Path, code: str) -> str:
    """Run Python code in `cwd` with the installed package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_package():
    folders = {path.parent for path in (ROOT / "retinanet_jax").rglob("*.py")} | {CONFIGS}
    assert {source_of(package) for package in packages()} == folders


def test_configs_load_outside_of_the_checkout(installed, tmp_path):
    code = (
        "import retinanet_jax\nfrom retinanet_jax.config import load_config\n"
        "from retinanet_jax.configs import r50_fpn\n"
        "print(retinanet_jax.__file__, r50_fpn.__file__)\n"
        "print(load_config('configs/finetune.py:torchvision_v2,tiny').total_steps)"
    )
    package = installed / "retinanet_jax"
    paths, total_steps = run(installed, tmp_path, code).splitlines()
    assert paths == f"{package}/__init__.py {package}/configs/r50_fpn.py"
    assert total_steps == "8"
    names = [path.name for path in config_files()]
    listing = run(
        installed, tmp_path, "import sys, retinanet_jax.__main__ as m; m.main(['r', 'configs'])"
    )
    assert [line[8:] for line in listing.splitlines() if line.startswith("configs/")] == names


def test_the_checkout_s_configs_are_used_inside_of_it(installed):
    """There `import retinanet_jax` finds the checkout's package, however it is installed."""
    code = "from retinanet_jax.configs import shapes\nprint(shapes.__file__)"
    assert run(installed, ROOT, code).strip() == str(ROOT / "configs" / "shapes.py")


@pytest.mark.parametrize("folder", ["core", "data", "data/sources", "utils", "cli"])
def test_python_starts_in_every_folder_of_the_package(installed, folder):
    code = "import csv, inspect, types\nimport retinanet_jax.core"
    run(installed, ROOT / "retinanet_jax" / folder, code)
