"""A process that waits for others that never start, or have ended, ends in one line."""

import socket
import subprocess
import sys

import pytest

JOIN = """
from retinanet_jax.hosts import joining
joining.JOIN_SECONDS = 1
joining.join("localhost:{port}", 2, {index}, timeout=10)
"""

# Process 1 ends after it has joined; process 0 does not wait two minutes for its devices, as jax
# would.
LEAVE = """
import jax, os, time
from retinanet_jax.hosts import joining

def no_devices():
    time.sleep(3)  # until the other one has joined: it also waits for what this one answers
    raise RuntimeError("GetKeyValue() timed out\\nwith key: cpu:local_topology/cpu/1")

jax.process_count = no_devices if {index} == 0 else lambda: os._exit(0)
joining.join("localhost:{port}", 2, {index}, timeout=10)
"""


# Process 0, which holds what all have exchanged, ends after both have joined.
LEAVE_FIRST = """
import jax, os
from retinanet_jax.hosts import joining

joining.JOIN_SECONDS = 6
if {index} == 0:
    jax.process_count = lambda: os._exit(0)
joining.join("localhost:{port}", 2, {index}, timeout=10)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_the_only_one_to_start_ends_in_one_line(index):
    """It would be aborted by jax, with a stack dump of C++."""
    code = JOIN.format(port=free_port(), index=index)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --distributed: not all processes have joined within 1 s; start")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "waiting", "message"),
    [
        (LEAVE, 0, "another process has ended while all were starting"),
        (LEAVE_FIRST, 1, "not all processes have joined within 6 s"),
    ],
)
def test_a_process_ends_in_one_line_if_another_has_ended_after_it_joined(code, waiting, message):
    """It would wait for minutes or without an end, and be aborted with a stack dump of C++."""
    port = free_port()
    commands = [[sys.executable, "-c", code.format(port=port, index=index)] for index in range(2)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    _, errors = processes[waiting].communicate(timeout=60)
    processes[1 - waiting].communicate(timeout=60)
    assert (processes[waiting].returncode, processes[1 - waiting].returncode) == (1, 0)
    [line] = [line for line in errors.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: --distributed: {message}")
    assert "Traceback" not in errors
