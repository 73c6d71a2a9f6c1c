"""A process that waits for others that never start ends in one line."""

import socket
import subprocess
import sys

import pytest

JOIN = """
from retinanet_jax.hosts import joining
joining.JOIN_SECONDS = 1
joining.join("localhost:{port}", 2, {index}, timeout=10)
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_the_only_one_to_start_ends_in_one_line(index):
    """It would be aborted by jax, with a stack dump of C++."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        code = JOIN.format(port=free.getsockname()[1], index=index)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --distributed: not all processes have joined within 1 s; start")
