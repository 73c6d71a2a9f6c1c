"""Two processes, of which one has an error, a signal, or a read that stalls.

Only SIGKILL may lose steps. After an error of the data or a read that stalls, the image is
restored, and the same command must end bit-equal to a run without trouble.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

from retinanet_jax import checkpoint
from scripts.campaign import runs
from scripts.campaign.runs import Ended, Process

HOST_TIMEOUT, STALL_SECONDS = 10, 5
FLAGS = (f"--host_timeout={HOST_TIMEOUT}", f"--stall_seconds={STALL_SECONDS}")
# More steps than the other parts, so that the trouble comes in the middle.
TOTAL_STEPS = 100
STEPS = (f"--config.total_steps={TOTAL_STEPS}", "--config.checkpoint_every=50", "--mode=train")
WAITING = "waiting for data for"  # in a warning, which may be repeated
MAX_LINES = 3  # on stderr, besides these warnings
# (processes, training images) -> whether a signal was sent
Trouble = Callable[[list[Process], list[pathlib.Path]], bool]
MAX_SECONDS = {"lost": HOST_TIMEOUT + 20, "other": 10}


def wait_for_step(processes: list[Process]) -> None:
    """Wait until training has begun."""
    processes[0].wait_until(lambda: "step 3/" in processes[0].stdout)


def truncate_image(processes: list[Process], images: list[pathlib.Path]) -> bool:
    """Make an image unreadable in the middle of training; one of the hosts is to read it."""
    wait_for_step(processes)
    os.truncate(images[3], 10)
    return False


def stall_image(processes: list[Process], images: list[pathlib.Path]) -> bool:
    """Replace an image by a pipe from which nothing comes, and press Ctrl-C at the warning."""
    wait_for_step(processes)
    images[3].unlink()
    os.mkfifo(images[3])
    processes[0].wait_until(lambda: any(WAITING in process.stderr for process in processes))
    return processes[0].send(runs.SIGNALS["SIGINT"])


def sender(signal: str, index: int) -> Trouble:
    """Return a function that sends a signal to one process in the middle of training."""

    def send(processes: list[Process], _: list[pathlib.Path]) -> bool:
        wait_for_step(processes)
        return processes[index].send(runs.SIGNALS[signal])

    return send


# The trouble, what causes it, and the statuses of the processes.
CASES: dict[str, tuple[Trouble, tuple[int, int]]] = {
    "one image cannot be read": (truncate_image, (1, 1)),
    "SIGTERM to host 0": (sender("SIGTERM", 0), (143, 143)),
    "SIGTERM to host 1": (sender("SIGTERM", 1), (143, 143)),
    "SIGINT to host 0": (sender("SIGINT", 0), (130, 130)),
    "SIGKILL of host 0": (sender("SIGKILL", 0), (-9, 1)),
    "SIGKILL of host 1": (sender("SIGKILL", 1), (1, -9)),
    "a read stalls, then Ctrl-C at host 0": (stall_image, (130, 130)),
}


def run(folder: pathlib.Path, chosen: Container[str] | None = None) -> Iterator[dict[str, Any]]:
    """Run each case, or those of the names in `chosen`, and yield their records."""
    undisturbed = runs.make_workdir(folder / "hosts", folder / "cache")
    runs.finish(undisturbed, *STEPS, processes=2)
    for name in CASES:
        if chosen is None or name in chosen:
            yield run_case(folder, undisturbed, name)


def run_case(folder: pathlib.Path, undisturbed: pathlib.Path, name: str) -> dict[str, Any]:
    """Run one case, and return its record."""
    workdir = runs.make_workdir(folder / "hosts-case", folder / "cache")
    shutil.copytree(undisturbed / "data", workdir / "data")
    processes = runs.start(workdir, *STEPS, *FLAGS, processes=2)
    images = sorted((workdir / "data" / "shapes-1").rglob("*.jpg"))
    was_sent = CASES[name][0](processes, images)
    sent = time.monotonic()
    ended = [process.end() for process in processes]
    # From the signal; without one, from the end of the host that fails.
    began = sent if was_sent else min(process.ended for process in processes)
    seconds = [round(process.ended - began, 1) for process in processes]
    steps = max(host.last_step for host in ended), checkpoint.newest_step(workdir)
    problems = problems_of_case(name, ended, seconds, steps)
    if CASES[name][0] in (truncate_image, stall_image):
        problems += problems_of_next_run(workdir, undisturbed)
    if problems:
        outputs = [f"{host.stdout}\n{host.stderr}" for host in ended]
        (folder / f"{name}.txt").write_text("\n---\n".join([*problems, *outputs]))
    lines = ["; ".join(host.error.splitlines()) for host in ended]
    return {
        "name": name,
        "statuses": [host.status for host in ended],
        "seconds": seconds,
        "messages": [line.replace(str(workdir), "WORKDIR")[:400] for line in lines],
        "last_step": steps[0],
        "steps_lost": max(0, steps[0] - steps[1]),
        "problems": problems,
    }


def problems_of_case(
    name: str, ended: list[Ended], seconds: list[float], steps: tuple[int, int]
) -> list[str]:
    """Return what was wrong with how the processes ended; `steps` are the last and the saved."""
    problems = []
    for index, (host, status) in enumerate(zip(ended, CASES[name][1], strict=True)):
        lines = [line for line in host.error.splitlines() if WAITING not in line]
        if host.status != status:
            problems.append(f"host {index}: status {host.status}")
        if len(lines) > MAX_LINES or "Traceback" in host.error:
            problems.append(f"host {index}: {len(lines)} lines on stderr")
    if max(seconds) > MAX_SECONDS["lost" if "SIGKILL" in name else "other"]:
        problems.append(f"{max(seconds)} s to the end")
    if "SIGKILL" not in name and steps[0] > steps[1]:
        problems.append(f"stopped after step {steps[0]}, saved step {steps[1]}")
    return problems


def problems_of_next_run(workdir: pathlib.Path, undisturbed: pathlib.Path) -> list[str]:
    """Return how the next run, with the images restored, differs from one without trouble."""
    shutil.rmtree(workdir / "data")
    shutil.copytree(undisturbed / "data", workdir / "data")
    for host in runs.finish(workdir, *STEPS, processes=2):
        if host.status:
            return [f"the next run: status {host.status}: {host.error}"]
    last = f"checkpoints/{TOTAL_STEPS}"
    if not runs.same_arrays(runs.arrays(workdir / last), runs.arrays(undisturbed / last)):
        return ["the next run ends with other arrays"]
    return []


def table(records: list[dict[str, Any]]) -> str:
    """Return the cases as a table in Markdown."""
    lines = [
        "| trouble | statuses | seconds | steps lost | stderr of host 0 | stderr of host 1 "
        "| as expected |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        first, second = (message.replace("|", "\\|") for message in record["messages"])
        right = "yes" if not record["problems"] else "; ".join(record["problems"])
        statuses, seconds = (", ".join(map(str, record[key])) for key in ("statuses", "seconds"))
        lines.append(
            f"| {record['name']} | {statuses} | {seconds} | {record['steps_lost']} "
            f"| {first} | {second} | {right} |"
        )
    return "\n".join(lines)
