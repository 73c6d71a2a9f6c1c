"""Several hosts: two processes train and evaluate like one with as many devices."""

import json
import pathlib
import re
import shutil
import socket
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from retinanet_jax import checkpoint

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
    program, workdir: pathlib.Path, *arguments: str, own: Sequence[Sequence[str]]
) -> list[tuple[int, str, str]]:
    """Run the processes with two devices in total; return the status and the output of each.

    Args:
        program: The fixture.
        workdir: The folder of the run.
        arguments: Arguments of all processes.
        own: Arguments of each process.
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
                    preamble=PREAMBLE.format(devices=2 // len(own)),
                )
            )
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
def test_hosts_with_other_configs_end_with_the_difference(program, tmp_path):
    program.use_shared_cache(tmp_path)
    ended = run_processes(program, tmp_path, own=[(), ("--config.loss.gamma=1.5",)])
    line = (
        "error: the hosts differ: config.loss.gamma is 2.0 on host 0 and 1.5 on host 1. Start the "
        "same command on each host, with the same data and versions.\n"
    )
    assert [(status, stderr) for status, _, stderr in ended] == [(1, line)] * 2
    assert not list(tmp_path.glob("checkpoints/*"))
