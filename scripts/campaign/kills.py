"""Runs that are killed at random moments, and started again until they are done."""

import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from retinanet_jax.checkpoint import FOLDER
from scripts.campaign import runs
from scripts.campaign.runs import Ended, Process, Reference

# What the output contains when a moment begins, and the longest random delay after that in seconds.
MOMENTS = {
    "start": (r"", 2.0),
    "compilation": (r"^compiling training", 2.0),
    "step": (r"^step \d+/", 0.1),
    "save": (r"^step \d+/", 0.2),  # and a checkpoint is being written
    "evaluation": (r"^compiling evaluation|^evaluating step|^computing AP", 0.6),
}
STATUSES = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130, -2}}
MAX_STARTS = 12
MAX_LINES = 3  # on stderr: which signal was received, the host that received it, how to resume
# With two processes, one is killed in every fifth run; a host is lost after this number of seconds.
TWO_PROCESSES_EVERY = 5
HOST_TIMEOUT = "--host_timeout=10"


class Kill(NamedTuple):
    """A signal, and the moment at which it is sent."""

    signal: str
    moment: str
    occurrence: int  # of the beginning of the moment within a start, from 1
    delay: float  # seconds
    process: int  # that receives the signal


def num_processes(number: int) -> int:
    """Return the number of processes of a run."""
    return 2 if number % TWO_PROCESSES_EVERY == TWO_PROCESSES_EVERY - 1 else 1


def plan_kills(seed: int, number: int) -> list[Kill]:
    """Return the kills of a run, of which each belongs to one start."""
    random = np.random.default_rng([seed, number])
    kills = []
    for _ in range(random.integers(1, 4)):
        moment = str(random.choice(list(MOMENTS)))
        kills.append(
            Kill(
                signal=str(random.choice(list(runs.SIGNALS))),
                moment=moment,
                occurrence=int(random.integers(1, 7)) if moment in ("step", "save") else 1,
                delay=float(random.uniform(0, MOMENTS[moment][1])),
                process=int(random.integers(0, 2)),
            )
        )
    return kills


def is_moment(kill: Kill, output: str, workdir: pathlib.Path) -> bool:
    """Return whether the moment of a kill has begun."""
    if len(re.findall(MOMENTS[kill.moment][0], output, re.MULTILINE)) < kill.occurrence:
        return False
    return kill.moment != "save" or any((workdir / FOLDER).glob("*tmp*"))


def kill_at_moment(kill: Kill, processes: list[Process], workdir: pathlib.Path) -> bool:
    """Send the signal at its moment; return whether the process was still running."""
    first = processes[0]
    if first.wait_until(lambda: is_moment(kill, first.stdout, workdir)):
        time.sleep(kill.delay)
    was_running = processes[kill.process % len(processes)].send(runs.SIGNALS[kill.signal])
    for process in processes:
        process.started, process.stdout_at_signal = time.monotonic(), process.stdout
    return was_running


def problems_of_kill(kill: Kill, ended: list[Ended]) -> list[str]:
    """Return what was wrong with the end of a start that received a signal."""
    victim = ended[kill.process % len(ended)]
    problems = []
    # A signal after the last step may leave nothing undone.
    expected = STATUSES[kill.signal] | ({0} if ended[0].was_signaled_at_the_end else set())
    if victim.status not in expected:
        problems.append(f"status {victim.status} after {kill.signal}")
    for process in ended:
        if "Traceback" in process.stderr or "HANGS" in process.stderr:
            problems.append("a traceback or a hang")
        elif len(process.error.splitlines()) > MAX_LINES:
            problems.append(f"{len(process.error.splitlines())} lines on stderr")
        if process.status in (-6, -11):
            problems.append(f"ended by signal {-process.status}")
    return problems


class KilledRun:
    """A run that is killed at moments, and started again until it is done.

    Args:
        folder: The campaign's folder.
        number: The number of the run.
        seed: The campaign's seed.
        references: The run without damage, by number of processes.
    """

    def __init__(
        self, folder: pathlib.Path, number: int, seed: int, references: dict[int, Reference]
    ) -> None:
        self._processes = num_processes(number)
        self._reference = references[self._processes]
        self._workdir = runs.make_workdir(folder / f"killed-{number}", folder / "cache")
        self._log = folder / f"killed-{number}.txt"
        self._plan = plan_kills(seed, number)
        self._kills: list[dict[str, Any]] = []
        self._pending: dict[str, Any] | None = None  # the kill of which the lost steps are unknown
        self._problems: list[str] = []
        self._outputs: list[str] = []

    def run(self, number: int) -> dict[str, Any]:
        """Run until done, and return the record; the folder is kept if there were problems."""
        starts = 0
        is_done = False
        while not is_done and starts < MAX_STARTS:
            is_done = self._start(self._plan[starts] if starts < len(self._plan) else None)
            starts += 1
        unequal = self._reference.problems(self._workdir) if is_done else ["it did not finish"]
        self._problems += unequal
        for kill in self._kills:
            if kill["signal"] != "SIGKILL" and kill.get("lost", 0) > 0:
                self._problems.append(f"{kill['lost']} steps lost by {kill['signal']}")
        if self._problems:
            self._log.write_text("\n".join([*self._problems, *self._outputs]))
        else:
            shutil.rmtree(self._workdir)
        return {
            "name": f"run {number}: {', '.join(kill['signal'] for kill in self._kills)}",
            "processes": self._processes,
            "starts": starts,
            "kills": self._kills,
            "is_equal": not unequal,
            "problems": self._problems,
        }

    def _start(self, kill: Kill | None) -> bool:
        """Start the run, kill it or wait for its end, and return whether it is done."""
        arguments = [HOST_TIMEOUT] if self._processes > 1 else []
        processes = runs.start(self._workdir, *arguments, processes=self._processes)
        was_killed = kill is not None and kill_at_moment(kill, processes, self._workdir)
        ended = [process.end() for process in processes]
        self._outputs += [f"--- {kill}\n{host.stdout}\n{host.stderr}" for host in ended]
        first_step = ended[0].first_step
        if self._pending and first_step is not None:
            self._pending["lost"] = self._pending["after_step"] - first_step
            self._pending = None
        if kill and was_killed:
            self._problems += problems_of_kill(kill, ended)
            unequal = self._reference.unequal_checkpoints(self._workdir)
            self._problems += unequal
            self._kills.append({**describe(kill, ended), "unequal": len(unequal)})
            self._pending = self._kills[-1] if first_step is not None else self._pending
        elif not all(host.is_done for host in ended):
            statuses = [(host.status, host.error[-300:]) for host in ended]
            self._problems.append(f"a start without a kill failed: {statuses}")
        return all(host.is_done for host in ended)


def run(
    folder: pathlib.Path, references: dict[int, Reference], count: int, seed: int, jobs: int
) -> Iterator[dict[str, Any]]:
    """Run `count` runs that are killed, `jobs` at a time, and yield their records."""
    with futures.ThreadPoolExecutor(jobs) as threads:
        started = [
            threads.submit(KilledRun(folder, number, seed, references).run, number)
            for number in range(count)
        ]
        for done in futures.as_completed(started):
            yield done.result()


def describe(kill: Kill, ended: list[Ended]) -> dict[str, Any]:
    """Return the record of a kill."""
    return {
        **kill._asdict(),
        "after_step": max(ended[0].last_step, ended[0].first_step or 0),
        "statuses": [e.status for e in ended],
        "seconds": round(max(e.seconds for e in ended), 2),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Return the counts of all runs as a table in Markdown."""
    lines = [
        "| signal | sent | at the start, in compilation, step, save, evaluation | median, longest "
        "seconds to the end | most steps lost | unreadable or unequal checkpoints |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    kills = [kill for record in records for kill in record["kills"]]
    for name in runs.SIGNALS:
        chosen = [kill for kill in kills if kill["signal"] == name]
        counts = ", ".join(str(sum(k["moment"] == m for k in chosen)) for m in MOMENTS)
        seconds = sorted(kill["seconds"] for kill in chosen) or [0.0]
        lost = max((kill.get("lost", 0) for kill in chosen), default=0)
        unequal = sum(kill["unequal"] for kill in chosen)
        lines.append(
            f"| {name} | {len(chosen)} | {counts} | {seconds[len(seconds) // 2]:.1f}, "
            f"{seconds[-1]:.1f} | {lost} | {unequal} |"
        )
    equal = sum(record["is_equal"] for record in records)
    right = sum(not record["problems"] for record in records)
    two = sum(record["processes"] == 2 for record in records)
    starts = sum(record["starts"] for record in records)
    lines.append(
        f"\n{len(records)} runs ({two} of them of two processes), {starts} starts, {len(kills)} "
        f"kills: {equal} runs ended bit-equal to the run without kills, {right} of them without "
        "any other problem."
    )
    return "\n".join(lines)
