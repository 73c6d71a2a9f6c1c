"""The benchmark of the input pipeline: its ratios by hand, and a small run."""

import json
import pathlib
import subprocess
import sys

import pytest

from scripts.benchmark import input_pipeline

ROOT = pathlib.Path(__file__).parents[2]


def test_ratios_are_taken_within_a_round():
    """The machine was twice as slow in the second round, and busy with others in the third."""

    def rates(*speeds):
        return [input_pipeline.Rate(speed, 1000 / speed) for speed in speeds]

    measured = {
        input_pipeline.RESIZE: rates(100, 50, 10),
        input_pipeline.BARE: rates(50, 25, 20),
        "ours": rates(90, 45, 40),
    }
    ours = input_pipeline.summarize(measured)["ours"]
    assert ours["images_per_second"] == 45
    assert ours["of_resize"] == pytest.approx(0.9)
    assert ours["of_bare"] == pytest.approx(1.8)
    assert ours["cpu_ms"] == pytest.approx(1000 / 45)


def test_the_warm_up_does_not_count(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(input_pipeline.time, "perf_counter", lambda: next(clock))
    counts = (8 for _ in range(6))
    rate = input_pipeline.measure_stage(lambda: counts, warm_up=16, seconds=4.0)
    assert rate.images_per_second == 16 / 5
    assert list(counts) == []  # closed


def test_generated_images_are_like_those_of_coco(tmp_path):
    input_pipeline.generate_images(tmp_path, 2)
    source = input_pipeline.open_images(tmp_path, tmp_path / "instances.json")
    assert source.sizes.tolist() == [[480, 640]] * 2
    assert len(source.annotations(1).boxes) == 7
    assert all(120_000 < len(source.read(index)) < 200_000 for index in range(2))


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path):
    sizes = ("--short_side=48", "--long_side=64", "--batch=2", "--num_generated=3")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts" / "benchmark", "--what=input_pipeline", *sizes),
            *("--repeat=1", "--seconds=0.1", f"--json={tmp_path}/b.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "b.json").read_text())["input_pipeline"]
    assert figures["images"] == 3
    assert len(figures["stages"]) == 7
    assert all(stage["images_per_second"] > 0 for stage in figures["stages"].values())
    assert len(done.stdout.splitlines()) == 1 + 1 + 1 + 7 + 1
