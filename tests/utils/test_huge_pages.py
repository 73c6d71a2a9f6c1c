"""A command of this package, and nothing else, starts again with huge pages where it must ask."""

import os
import pathlib
import subprocess
import sys

import pytest

from retinanet_jax.utils import huge_pages

WRITE_START = """
import os
with open(os.environ["STARTS"], "a") as file:
    print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), file=file)
"""
COUNT_PAGES = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(b"1") * 2**28
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_huge_pages = pytest.mark.skipif(
    not huge_pages.must_ask(), reason="this machine has no huge pages for programs that ask"
)


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (
            "python -m retinanet_jax train --seed=1",
            "/p/retinanet_jax/__main__.py train --seed=1",
            True,
        ),
        ("python -X dev -m retinanet_jax.main", "/p/retinanet_jax/main.py", True),
        ("/v/bin/python /v/bin/retinanet-jax plan", "/v/bin/retinanet-jax plan", True),
        ("python -m pytest tests", "/p/pytest/__main__.py tests", False),
        ("python -m retinanet_jaxes train", "/p/retinanet_jaxes/__main__.py train", False),
        # A notebook, in a folder of this name, runs `%run -m retinanet_jax train`.
        (
            "/retinanet_jax/python -m ipykernel -f k.json",
            "/p/retinanet_jax/__main__.py train",
            False,
        ),
        ("python -m retinanet_jax train", "/p/retinanet_jax/__main__.py evaluate", False),
        ("retinanet-jax", "retinanet-jax", False),
    ],
)
def test_only_commands_of_this_package_start_again(command, arguments, expected):
    assert huge_pages.starts_this_package(command.split(), arguments.split()) is expected


@pytest.mark.parametrize(
    ("modes", "library", "expected"),
    [
        ("always [madvise] never\n", "glibc 2.35", True),
        ("always [madvise] never\n", "glibc 2.34", False),
        ("always [madvise] never\n", "musl 3.0", False),
        ("always [madvise] never\n", None, False),
        ("[always] madvise never\n", "glibc 2.39", False),
        ("always madvise [never]\n", "glibc 2.39", False),
        (None, "glibc 2.39", False),
    ],
)
def test_it_asks_where_that_makes_a_difference(monkeypatch, tmp_path, modes, library, expected):
    file = tmp_path / "enabled"
    if modes is not None:
        file.write_text(modes)
    monkeypatch.setattr(huge_pages, "MODES", file)
    monkeypatch.setattr(os, "confstr", lambda name: library)
    assert huge_pages.must_ask() is expected


def starts(tmp_path: pathlib.Path, **variables: str) -> list[list[str]]:
    """Return the process id and the setting of each start of Python that a command makes."""
    (tmp_path / "sitecustomize.py").write_text(WRITE_START)
    environment = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
    environment |= {
        "PYTHONPATH": f"{tmp_path}:{pathlib.Path.cwd()}",
        "STARTS": str(tmp_path / "log"),
    }
    subprocess.run(
        [sys.executable, "-m", "retinanet_jax", "--help"],
        env=environment | variables,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [line.split() for line in (tmp_path / "log").read_text().splitlines()]


@needs_huge_pages
def test_a_command_starts_again_once_in_the_same_process(tmp_path):
    first, second = starts(tmp_path)
    assert first[0] == second[0]
    assert [first[1], second[1]] == ["None", huge_pages.SETTING]


def test_a_value_of_the_variable_is_respected(tmp_path):
    assert len(starts(tmp_path, GLIBC_TUNABLES="")) == 1


@needs_huge_pages
def test_the_setting_makes_memory_arrive_in_huge_pages():
    def num_pages(setting: str) -> int:
        environment = os.environ | {huge_pages.VARIABLE: setting}
        return int(subprocess.check_output([sys.executable, "-c", COUNT_PAGES], env=environment))

    assert num_pages("") > 60_000  # 256 MiB in pages of 4 KiB are 65,536
    # Memory may be too fragmented for some huge pages.
    assert num_pages(huge_pages.SETTING) < 30_000
