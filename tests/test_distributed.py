"""Several hosts: two processes train and evaluate like one with as many devices.

They stop together, whatever happens to the data of one of them.
"""

import functools
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import pytest

from retinanet_jax import checkpoint
from scripts.campaign import runs

ARGUMENTS = (
    "--config=configs/shapes.py:tiny",
    "--config.total_steps=2",
    "--config.checkpoint_every=1",
    "--config.evaluate_every=2",
    "--config.model.backbone=toy",
    "--config.anchors.max_level=5",
    "--config.anchors.scales=(1.0,)",
    "--config.detections.score_threshold=0.001",
)
SPLIT = "--config.shard_optimizer=True"
# The metrics that are not times.
COMPUTED = (
    "loss",
    "loss/box",
    "loss/classification",
    "gradient_norm",
    "learning_rate",
    "num_foreground",
    "dropped_boxes",
)
PREAMBLE = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={devices}"
os.environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
from retinanet_jax.models import resnet
resnet.ARCHITECTURES["toy"] = {{"stage_sizes": (1, 1, 1, 1), "bottleneck": False}}
import jax
from retinanet_jax.evaluation import evaluator
coco_metrics = evaluator.coco_metrics
def coco_metrics_of_the_first_host(*arguments, **options):
    assert jax.process_index() == 0
    return coco_metrics(*arguments, **options)
evaluator.coco_metrics = coco_metrics_of_the_first_host
"""


def run_processes(
    program,
    workdir: pathlib.Path,
    *arguments: str,
    own: Sequence[Sequence[str]],
    preamble: str = "",
    meanwhile: Callable[[list[subprocess.Popen]], None] = lambda _: None,
) -> list[tuple[int, str, str]]:
    """Run the processes with two devices in total; return the status and the output of each.

    Args:
        program: The fixture.
        workdir: The folder of the run.
        arguments: Arguments of all processes.
        own: Arguments of each process.
        preamble: Python code that each process runs first.
        meanwhile: Called with the processes.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    try:
        for process_id, more in enumerate(own):
            hosts = (
                "--distributed",
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={len(own)}",
                f"--process_id={process_id}",
            )
            started.append(
                program.start(
                    "main",
                    *(*ARGUMENTS, *arguments, *more, f"--workdir={workdir}"),
                    *(hosts if len(own) > 1 else ()),
                    preamble=PREAMBLE.format(devices=2 // len(own)) + preamble,
                )
            )
        meanwhile(started)
        outputs = [process.communicate(timeout=1200) for process in started]
    finally:
        for process in started:
            process.kill()
    # The library of the collectives prints a line of its own.
    return [
        (process.returncode, re.sub(r"\[Gloo\].*\n", "", stdout), stderr)
        for process, (stdout, stderr) in zip(started, outputs, strict=True)
    ]


def run(program, workdir: pathlib.Path, *arguments: str, processes: int) -> list[str]:
    """Run the processes without an error; return what each of them prints."""
    finished = run_processes(program, workdir, *arguments, own=[()] * processes)
    for status, _, stderr in finished:
        assert status == 0, stderr
    return [stdout for _, stdout, _ in finished]


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def assert_same_run(first: pathlib.Path, second: pathlib.Path) -> None:
    """Up to float32's rounding: another library adds the hosts' sums, in another order."""
    first_lines, second_lines = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (first, second)
    )
    assert [line["step"] for line in first_lines] == [1, 2]
    for line, other in zip(first_lines, second_lines, strict=True):
        for name in COMPUTED:
            assert line[name] == pytest.approx(other[name], rel=1e-5), name
    first_scores, second_scores = (
        sorted((d["image_id"], d["score"]) for d in read(workdir / "eval/2_detections.json"))
        for workdir in (first, second)
    )
    assert len({image_id for image_id, _ in first_scores}) == 8
    np.testing.assert_allclose(first_scores, second_scores, rtol=1e-4)
    metrics, other = (read(workdir / "eval/2.json") for workdir in (first, second))
    assert metrics["AP"] == pytest.approx(other["AP"], abs=1e-3)
    assert metrics["AR100"] == pytest.approx(other["AR100"], abs=1e-2)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_train_like_one(program, tmp_path):
    single, double = tmp_path / "single", tmp_path / "double"
    for workdir in (single, double):
        workdir.mkdir()
        program.use_shared_cache(workdir)
    (printed,) = run(program, single, processes=1)
    first, second = run(program, double, SPLIT, processes=2)
    assert "2 x 1 devices" in printed
    assert "2 x 1 devices" in first
    assert "step 2/2" in first
    assert first.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 1
    assert second == ""  # only the first host prints
    assert_same_run(double, single)
    assert len(list((double / "tensorboard").iterdir())) == 1

    # The checkpoints are complete, and a single process with other devices can read them.
    assert sorted(p.name for p in (double / "checkpoints").iterdir()) == ["1", "2"]
    for step in (1, 2):
        of_double, of_single = (
            checkpoint.load(workdir / f"checkpoints/{step}").variables
            for workdir in (double, single)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), of_double, of_single)

    # Both processes resume from the same checkpoint, to which each has written its part of the
    # optimizer's state, also if that is not split any more; and they evaluate it.
    for arguments in ((), (SPLIT,)):
        shutil.rmtree(double / "checkpoints/2")
        first, _ = run(program, double, *arguments, processes=2)
        assert "training from step 1 to 2" in first
        assert_same_run(double, single)
    before = read(double / "eval/2.json")
    first, second = run(program, double, "--mode=evaluate", processes=2)
    assert "Average Precision" in first
    assert second == ""
    assert read(double / "eval/2.json") == before


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_end_early_together_and_are_already_done(program, tmp_path):
    """Only the first knows AP, which never changes, because the learning rate is 0."""
    program.use_shared_cache(tmp_path)
    arguments = (
        *("--config.total_steps=6", "--config.evaluate_every=2", "--config.patience=1"),
        *("--config.optimizer.learning_rate=0", "--config.optimizer.ema_decay=0.9", SPLIT),
    )
    first, second = run(program, tmp_path, *arguments, processes=2)
    assert "the run ends early: 1 evaluation without a better AP" in first
    assert second == ""
    assert [path.stem for path in sorted(tmp_path.glob("eval/?.json"))] == ["2", "4"]
    for status, _, stderr in run_processes(program, tmp_path, *arguments, own=[()] * 2):
        assert status == 1
        assert stderr.startswith("error: already done; ")
        assert "than that of step 2, and config.patience=1." in stderr


@pytest.mark.slow
def test_hosts_with_other_configs_end_with_the_difference(program, tmp_path):
    program.use_shared_cache(tmp_path)
    ended = run_processes(program, tmp_path, own=[(), ("--config.loss.gamma=1.5",)])
    line = (
        "error: the hosts differ: config.loss.gamma is 2.0 on host 0 and 1.5 on host 1. Start the "
        "same command on each host, with the same data and versions.\n"
    )
    assert [(status, stderr) for status, _, stderr in ended] == [(1, line)] * 2
    assert not list(tmp_path.glob("checkpoints/*"))


# ---- a host without data

LONGER = (
    "--config.total_steps=6",
    "--config.evaluate_every=4",
    "--config.data.eval_batch_size=2",
    "--config.keep_checkpoints=100",
    "--config.data.loader=numpy",  # TensorFlow takes seconds to import
    "--stall_seconds=600",  # a busy machine may be slow
)
# Host 1 has an error in one batch of a plan, or waits for it for ever.
WITHOUT_DATA = """
import sys, time
from retinanet_jax import input_pipeline
from retinanet_jax.data.plan import EvalPlan
batches = input_pipeline.batches
def batches_of_host_1(source, plan, **options):
    for index, batch in enumerate(batches(source, plan, **options)):
        is_last = index == {index} and isinstance(plan, EvalPlan) == {in_evaluation}
        if is_last and jax.process_index():
            print("no data", file=sys.stderr, flush=True)
            time.sleep(1000 * {stalls})
            raise OSError("17.jpg is truncated")
        yield batch
input_pipeline.batches = batches_of_host_1
"""


class WithoutData(NamedTuple):
    """Where host 1 has no data, and what ends the run."""

    index: int  # of the batch
    saved: int  # the step that must be saved
    in_evaluation: bool = False
    number: int = 0  # the signal for host 0; 0: the data has an error

    @property
    def mode(self) -> str:
        """The mode of the run; the programs of evaluations take a while to compile."""
        return "--mode=train_and_evaluate" if self.in_evaluation else "--mode=train"


@pytest.fixture(scope="module")
def undisturbed(program, tmp_path_factory):
    """Return a function of the mode: a run of two processes with a checkpoint of each step."""

    @functools.cache
    def undisturbed(mode):
        workdir = tmp_path_factory.mktemp("undisturbed")
        program.use_shared_cache(workdir)
        run(program, workdir, *LONGER, mode, processes=2)
        return workdir

    return undisturbed


def assert_equal_checkpoints(first: pathlib.Path, second: pathlib.Path, step: int) -> None:
    first_arrays, second_arrays = (runs.arrays(w / f"checkpoints/{step}") for w in (first, second))
    assert runs.same_arrays(first_arrays, second_arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        WithoutData(index=2, saved=2),
        *(
            pytest.param(case, marks=pytest.mark.exhaustive)
            for case in (
                WithoutData(index=2, saved=2, number=signal.SIGINT),
                WithoutData(index=2, saved=4, in_evaluation=True),
                WithoutData(index=1, saved=4, in_evaluation=True, number=signal.SIGTERM),
            )
        ),
    ],
)
def test_all_hosts_save_the_last_step_for_which_each_had_data(program, tmp_path, undisturbed, case):
    """The others have started further steps by then, which count for nothing."""
    program.use_shared_cache(tmp_path)
    whole = undisturbed(case.mode)
    arguments = (*LONGER, "--config.checkpoint_every=100", case.mode)
    stalls = bool(case.number)

    def send_signal(processes):
        if stalls:
            next(line for line in processes[0].stdout if line.startswith(f"step {case.saved}/"))
            next(line for line in processes[1].stderr if line == "no data\n")
            time.sleep(1)  # host 0 has started what it may, and waits
            processes[0].send_signal(case.number)

    ended = run_processes(
        program,
        tmp_path,
        *arguments,
        own=[(), ()],
        preamble=WITHOUT_DATA.format(
            index=case.index, in_evaluation=case.in_evaluation, stalls=stalls
        ),
        meanwhile=send_signal,
    )
    errors = [stderr.splitlines() for _, _, stderr in ended]
    assert [status for status, _, _ in ended] == [128 + case.number if stalls else 1] * 2, errors
    if stalls:
        name = signal.Signals(case.number).name
        assert errors[0][-3:] == [
            f"received {name}: stopping all hosts after the same step",
            f"stopping after step {case.saved}, saving",
            "stopped; the same command resumes from the newest checkpoint",
        ]
    else:
        assert errors[1][-1] == "error: 17.jpg is truncated"
        assert re.fullmatch(r"error: host 1 \(.*\) failed: 17.jpg is truncated", errors[0][-1])
    assert checkpoint.newest_step(tmp_path) == case.saved
    assert_equal_checkpoints(tmp_path, whole, case.saved)
    if case != WithoutData(2, 2):  # as after any stop, which other tests have
        run(program, tmp_path, *arguments, processes=2)
        assert_equal_checkpoints(tmp_path, whole, 6)
        for file in (whole / "eval").glob("*.json"):
            assert read(tmp_path / "eval" / file.name) == read(file)
