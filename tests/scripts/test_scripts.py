"""The shell script that the README runs commands with."""

import os
import pathlib
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("extras", "requirement"), [("", f"{ROOT}"), ("test", f"{ROOT}[test]"), ("dev", f"{ROOT}[dev]")]
)
def test_with_venv_installs_the_extras_and_runs_the_command(tmp_path, extras, requirement):
    """With a replacement for the environment's python, which prints what it would install."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nfor last; do :; done\necho "installs $last"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "with_venv.sh", extras, "sh", "-c", "command -v python"],
        env={**os.environ, "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"installs {requirement}", str(python)]


def test_with_venv_refuses_an_old_python(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "with_venv.sh", "", "true"],
        env={**os.environ, "PYTHON": str(old), "VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()
