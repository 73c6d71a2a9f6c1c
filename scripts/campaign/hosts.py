"""Two processes, of which one has an error, a signal, or a read that stalls."""

import os
import pathlib
import shutil
from collections.abc import Callable, Container, Iterator
from typing import Any

from scripts.campaign import runs
from scripts.campaign.runs import Ended, Process

HOST_TIMEOUT, STALL_SECONDS = 10, 5
FLAGS = (f"--host_timeout={HOST_TIMEOUT}", f"--stall_seconds={STALL_SECONDS}")
# More steps than the others, so that the trouble comes in the middle.
STEPS = ("--config.total_steps=2000", "--config.checkpoint_every=500", "--mode=train")
MAX_SECONDS = {"lost": HOST_TIMEOUT + 20, "other": 10}


def truncate_image(images: list[pathlib.Path]) -> None:
    """Make an image unreadable."""
    os.truncate(images[0], 10)


def stall_image(images: list[pathlib.Path]) -> None:
    """Replace an image by a pipe of which nothing can be read, like a file on a dead server."""
    images[0].unlink()
    os.mkfifo(images[0])


def wait_for_step(processes: list[Process]) -> None:
    """Wait until training has begun."""
    processes[0].wait_until(lambda: "step 3/" in processes[0].stdout)


def send(number: int, index: int) -> Callable[[list[Process]], None]:
    """Return a function that sends a signal to one process in the middle of training."""

    def send_to_one(processes: list[Process]) -> None:
        wait_for_step(processes)
        processes[index].send(number)

    return send_to_one


def stop_stalled(processes: list[Process]) -> None:
    """Wait for the message about a read that stalls, and press Ctrl-C."""
    for process in processes:
        if process.wait_until(lambda: any("waiting for" in p.output for p in processes)):
            break
    processes[0].send(runs.SIGNALS["SIGINT"])


# The trouble, what is done to the images before the start, what is done after it, and the statuses
# of the processes.
CASES: dict[str, tuple[Callable | None, Callable | None, tuple[set[int], set[int]]]] = {
    "one image cannot be read": (truncate_image, None, ({1}, {1})),
    "SIGTERM to host 0": (None, send(runs.SIGNALS["SIGTERM"], 0), ({143}, {143})),
    "SIGTERM to host 1": (None, send(runs.SIGNALS["SIGTERM"], 1), ({143}, {143})),
    "SIGINT to host 0": (None, send(runs.SIGNALS["SIGINT"], 0), ({130}, {130})),
    "SIGKILL of host 0": (None, send(runs.SIGNALS["SIGKILL"], 0), ({-9}, {1})),
    "SIGKILL of host 1": (None, send(runs.SIGNALS["SIGKILL"], 1), ({1}, {-9})),
    "a read stalls, then Ctrl-C at host 0": (stall_image, stop_stalled, ({130}, {130})),
}


def run(folder: pathlib.Path, chosen: Container[str] | None = None) -> Iterator[dict[str, Any]]:
    """Run each case, or those of the names in `chosen`, and yield their records."""
    first = runs.make_workdir(folder / "hosts", folder / "cache")
    data = first / "data"  # the synthetic images, which later runs copy
    runs.finish(first, *STEPS[2:], "--config.total_steps=1", processes=2)
    for name in CASES:
        if chosen is None or name in chosen:
            yield run_case(folder, data, name)


def run_case(folder: pathlib.Path, data: pathlib.Path, name: str) -> dict[str, Any]:
    """Run one case, and return its record."""
    before, after, _ = CASES[name]
    workdir = folder / "hosts-case"
    shutil.rmtree(workdir, ignore_errors=True)
    runs.make_workdir(workdir, folder / "cache")
    shutil.copytree(data, workdir / "data")
    if before:
        before(sorted((workdir / "data" / "shapes-1").rglob("*.jpg"))[3:])
    processes = runs.start(workdir, *STEPS, *FLAGS, processes=2)
    if after:
        after(processes)
    ended = [process.end() for process in processes]
    first_end = min(process.ended for process in processes)
    began = max(process.started for process in processes) if after else first_end
    seconds = [round(process.ended - began, 1) for process in processes]
    problems = problems_of_case(name, ended, seconds)
    lines = [(host.error.splitlines() or [""])[-1] for host in ended]
    return {
        "name": name,
        "statuses": [host.status for host in ended],
        "seconds": seconds,
        "messages": [line.replace(str(workdir), "WORKDIR")[:400] for line in lines],
        "last_steps": [host.last_step for host in ended],
        "problems": problems,
    }


def problems_of_case(name: str, ended: list[Ended], seconds: list[float]) -> list[str]:
    """Return what was wrong with how the processes ended."""
    problems = []
    for index, (host, statuses) in enumerate(zip(ended, CASES[name][2], strict=True)):
        num_lines = len(host.error.splitlines())
        if host.status not in statuses:
            problems.append(f"host {index}: status {host.status}")
        if num_lines > 1 or "Traceback" in host.error:
            problems.append(f"host {index}: {num_lines} lines on stderr")
    if max(seconds) > MAX_SECONDS["lost" if "SIGKILL" in name else "other"]:
        problems.append(f"{max(seconds)} s to the end")
    return problems


def table(records: list[dict[str, Any]]) -> str:
    """Return the cases as a table in Markdown."""
    lines = [
        "| trouble | statuses | seconds | stderr of host 0 | stderr of host 1 | as expected |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        first, second = (message.replace("|", "\\|") for message in record["messages"])
        right = "yes" if not record["problems"] else "; ".join(record["problems"])
        statuses, seconds = (", ".join(map(str, record[key])) for key in ("statuses", "seconds"))
        lines.append(
            f"| {record['name']} | {statuses} | {seconds} | {first} | {second} | {right} |"
        )
    return "\n".join(lines)
