"""The tiny run of the campaign: its command, its processes, and what its folder contains."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from retinanet_jax import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOTAL_STEPS, CHECKPOINT_EVERY, EVALUATE_EVERY = 12, 3, 6
# A start takes some seconds, most of them to trace the programs, which the cache does not spare.
ARGUMENTS = (
    "--config=configs/shapes.py:tiny",
    f"--config.total_steps={TOTAL_STEPS}",
    f"--config.checkpoint_every={CHECKPOINT_EVERY}",
    f"--config.evaluate_every={EVALUATE_EVERY}",
    "--config.keep_checkpoints=100",
    "--config.data.loader=numpy",  # TensorFlow takes seconds to import
    *(f"--config.data.{name}=64" for name in ("train.image_size", "eval.image_size")),
    *(f"--config.data.{name}=64" for name in ("eval_short_side", "long_side")),
    "--config.data.short_sides=(64,)",
    "--config.data.buckets=((64, 64),)",
    "--config.model.fpn_channels=16",
    "--config.anchors.max_level=5",
    "--config.anchors.scales=(1.0,)",
    "--config.detections.score_threshold=0.001",  # an untrained network passes it
)
TIMEOUT = 600  # seconds after which a process counts as hanging, even on a busy machine
LOADING = threading.Lock()  # the campaign reads one checkpoint at a time


class Ended(NamedTuple):
    """A process that has ended."""

    status: int  # negative: the signal that killed it
    stdout: str
    stderr: str
    seconds: float  # from the signal, or else from the start
    stdout_at_signal: str = ""

    @property
    def was_signaled_at_the_end(self) -> bool:
        """Whether the signal came after the last step."""
        return f"step {TOTAL_STEPS}/" in self.stdout_at_signal

    @property
    def first_step(self) -> int | None:
        """The step from which it trained; None if it did not come so far."""
        match = re.search(r"^training from step (\d+) to", self.stdout, re.MULTILINE)
        return int(match[1]) if match else None

    @property
    def last_step(self) -> int:
        """The last step that it printed; 0 if there is none."""
        lines = r"^(?:step (\d+)/|.*stopping after step (\d+))"
        steps = re.findall(lines, f"{self.stdout}\n{self.stderr}", re.MULTILINE)
        return max((int(first or second) for first, second in steps), default=0)

    @property
    def is_done(self) -> bool:
        """Whether the run has finished, now or earlier."""
        return self.status == 0 or "already done" in self.stderr

    @property
    def error(self) -> str:
        """The lines of stderr; those of the library of the collectives are left out."""
        return re.sub(r"\[Gloo\].*\n", "", self.stderr).strip()


class Process:
    """A running process of which the lines of output are read as they come."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.started = self.ended = time.monotonic()
        self.stdout_at_signal = ""
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.popen, name):
            self._lines[name].append(line)
        self.ended = time.monotonic()  # the end of the process closes its output

    @property
    def stdout(self) -> str:
        """The lines of stdout so far."""
        return "".join(self._lines["stdout"])

    @property
    def stderr(self) -> str:
        """The lines of stderr so far."""
        return "".join(self._lines["stderr"])

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Return whether `condition` became true before the process ended."""
        while self.popen.poll() is None and time.monotonic() - self.started < TIMEOUT:
            if condition():
                return True
            time.sleep(0.002)
        return False

    def send(self, number: int) -> bool:
        """Send a signal; return whether the process was still running."""
        self.started = time.monotonic()
        if self.popen.poll() is not None:
            return False
        self.popen.send_signal(number)
        return True

    def end(self) -> Ended:
        """Wait for the end of the process; kill it if it hangs."""
        try:
            status = self.popen.wait(max(0.0, TIMEOUT - (time.monotonic() - self.started)))
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
            self._lines["stderr"].append(f"HANGS: killed after {TIMEOUT} s\n")
        for reader in self._readers:
            reader.join()
        for name in self._lines:
            getattr(self.popen, name).close()
        seconds = self.ended - self.started
        return Ended(status, self.stdout, self.stderr, seconds, self.stdout_at_signal)


def environment(num_devices: int = 1) -> dict[str, str]:
    """Return the environment of a process with this number of CPU devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Otherwise the cache's path, which differs between runs, is part of every program's key.
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }


def make_workdir(workdir: pathlib.Path, cache: pathlib.Path | None) -> pathlib.Path:
    """Create the folder of a run, which finds its programs in `cache` if that is given.

    A folder that an earlier campaign left is removed.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    if cache:
        cache.mkdir(parents=True, exist_ok=True)
        (workdir / "compilation_cache").symlink_to(cache)
    return workdir


def start(workdir: pathlib.Path, *arguments: str, processes: int = 1) -> list[Process]:
    """Start the command on one device, or on two processes with a device each."""
    # A campaign that a shell runs in the background ignores SIGINT, and so would its processes.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "retinanet_jax", "train"]
    command += [*ARGUMENTS, *arguments]
    command.append(f"--workdir={workdir}")
    if processes == 1:
        return [Process(command, environment())]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = ["--distributed", f"--coordinator_address={address}", f"--num_processes={processes}"]
    return [
        Process([*command, *hosts, f"--process_id={index}"], environment())
        for index in range(processes)
    ]


def finish(workdir: pathlib.Path, *arguments: str, processes: int = 1) -> list[Ended]:
    """Start the command and wait for its end."""
    return [process.end() for process in start(workdir, *arguments, processes=processes)]


def checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Return the checkpoints that count, in the order of their steps."""
    return checkpoint.step_folders(workdir / checkpoint.FOLDER)


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint: the network's and the rest of the training state's."""
    with LOADING:
        tree: dict[str, Any] = {"variables": checkpoint.load(folder).variables}
        handler = ocp.PyTreeCheckpointHandler()
        item = epath.Path(folder / "training")
        shapes = handler.metadata(item).tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), shapes)
        tree["training"] = handler.restore(
            item, args=ocp.args.PyTreeRestore(restore_args=restore_args)
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def same_arrays(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Return whether all arrays are equal, bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


class Reference:
    """The run without damage: the arrays after each step, and the metrics of the evaluations.

    Args:
        workdir: The folder of the run, which is made if there is none.
        cache: Compiled programs.
        processes: The number of processes.
    """

    def __init__(self, workdir: pathlib.Path, cache: pathlib.Path, processes: int = 1) -> None:
        if not workdir.exists():
            make_workdir(workdir, cache)
            for ended in finish(workdir, "--config.checkpoint_every=1", processes=processes):
                if ended.status:
                    raise RuntimeError(f"the run without damage failed: {ended.stderr}")
        self.steps = {int(folder.name): arrays(folder) for folder in checkpoints(workdir)}
        self.evaluations = read_evaluations(workdir)

    def problems(self, workdir: pathlib.Path) -> list[str]:
        """Return how a finished run differs from this one; none if it does not."""
        problems = self.unequal_checkpoints(workdir)
        if TOTAL_STEPS not in {int(folder.name) for folder in checkpoints(workdir)}:
            problems.append("no checkpoint of the last step")
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        if steps != list(range(1, TOTAL_STEPS + 1)):
            problems.append(f"metrics.jsonl has the steps {steps}")
        evaluations = read_evaluations(workdir)
        for name, values in self.evaluations.items():
            if evaluations.get(name) != values:
                problems.append(f"eval/{name} {'differs' if name in evaluations else 'is missing'}")
        return problems

    def unequal_checkpoints(self, workdir: pathlib.Path) -> list[str]:
        """Return the checkpoints that cannot be read, or differ from those of this run."""
        problems = []
        for folder in checkpoints(workdir):
            try:
                if not same_arrays(arrays(folder), self.steps[int(folder.name)]):
                    problems.append(f"checkpoint {folder.name} differs")
            except Exception as error:
                problems.append(f"checkpoint {folder.name} is unreadable: {error}"[:300])
        return problems


def read_evaluations(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the metrics of the evaluations by file name, without those that measure time."""
    files = sorted(p for p in (workdir / "eval").glob("*.json") if p.stem.isdigit())
    return {file.name: json.loads(file.read_text())["AP"] for file in files}


SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
