"""Many hosts: two processes train and evaluate as one process does on as many devices."""

import json
import pathlib
import re
import socket

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
PREAMBLE = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={devices}"
os.environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
from retinanet_jax.models import resnet
resnet.ARCHITECTURES["toy"] = {{"stage_sizes": (1, 1, 1, 1), "bottleneck": False}}
"""


def run(program, workdir: pathlib.Path, *arguments: str, processes: int) -> list[str]:
    """Two devices, shared by the processes; what each process prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    try:
        for process_id in range(processes):
            hosts = (
                "--distributed",
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={processes}",
                f"--process_id={process_id}",
            )
            started.append(
                program.start(
                    "main",
                    *(*ARGUMENTS, *arguments, f"--workdir={workdir}"),
                    *(hosts if processes > 1 else ()),
                    preamble=PREAMBLE.format(devices=2 // processes),
                )
            )
        told = [process.communicate(timeout=1200) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, stderr) in zip(started, told, strict=True):
        assert process.returncode == 0, stderr
    # The collectives' library has a line of its own.
    return [re.sub(r"\[Gloo\].*\n", "", stdout) for stdout, _ in told]


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """To float32's rounding: the hosts' sums are added by another library."""
    lines, others = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (one, other)
    )
    assert [line["step"] for line in lines] == [1, 2]
    for line, its_other in zip(lines, others, strict=True):
        for name in set(line) - {"images_per_second", "data_wait"}:
            assert line[name] == pytest.approx(its_other[name], rel=1e-5), name
    found, found_too = (
        sorted((d["image_id"], d["score"]) for d in read(workdir / "eval/2_detections.json"))
        for workdir in (one, other)
    )
    assert len({image_id for image_id, _ in found}) == 8
    np.testing.assert_allclose(found, found_too, rtol=1e-4)
    metrics, its_other = (read(workdir / "eval/2.json") for workdir in (one, other))
    assert metrics["AP"] == pytest.approx(its_other["AP"], abs=1e-3)
    assert metrics["AR100"] == pytest.approx(its_other["AR100"], abs=1e-2)


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(program, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir in (one, two):
        workdir.mkdir()
        program.share_compiled(workdir)
    (said,) = run(program, one, processes=1)
    first, second = run(program, two, processes=2)
    assert "2 x 1 devices" in said
    assert "2 x 1 devices" in first
    assert "step 2/2" in first
    assert first.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 1
    assert second == ""  # the first one speaks for both
    assert_same_run(two, one)
    assert len(list((two / "tensorboard").iterdir())) == 1

    # CheckpointManager are whole, and can be read by a single process of other devices.
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["1", "2"]
    for step in (1, 2):
        ours, theirs = (
            checkpoint.load(workdir / f"checkpoints/{step}").variables for workdir in (two, one)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)

    # Both go on from the same one, and evaluate it.
    (two / "checkpoints/2").rename(tmp_path / "away")
    first, _ = run(program, two, processes=2)
    assert "steps 1 to 2" in first
    assert_same_run(two, one)
    before = read(two / "eval/2.json")
    first, second = run(program, two, "--mode=evaluate", processes=2)
    assert "Average Precision" in first
    assert second == ""
    assert read(two / "eval/2.json") == before
