"""The benchmark of the input pipeline: its ratios by hand, and that it runs."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "bench_pipeline.py"


@pytest.fixture(scope="module")
def bench_pipeline(load_script):
    return load_script(SCRIPT)


def test_ratios_are_taken_within_a_turn(bench_pipeline):
    """The machine was twice as slow in the second turn, and busy with others in the third."""

    def turns(*speeds):
        return [bench_pipeline.Turn(speed, 1000 / speed) for speed in speeds]

    measured = {
        bench_pipeline.RESIZE: turns(100, 50, 10),
        bench_pipeline.BARE: turns(50, 25, 20),
        "ours": turns(90, 45, 40),
    }
    ours = bench_pipeline.summary(measured)["ours"]
    assert ours["images_per_second"] == 45
    assert ours["of_resize"] == pytest.approx(0.9)
    assert ours["of_bare"] == pytest.approx(1.8)
    assert ours["cpu_ms"] == pytest.approx(1000 / 45)


def test_a_turn_counts_nothing_of_its_warm_up(bench_pipeline, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(bench_pipeline.time, "perf_counter", lambda: next(clock))
    given = (8 for _ in range(6))
    turn = bench_pipeline.take_turn(lambda: given, warm_up=16, seconds=4.0)
    assert turn.images_per_second == 16 / 5
    assert list(given) == []  # closed


def test_drawn_pictures_are_like_those_of_coco(bench_pipeline, tmp_path):
    bench_pipeline.draw_pictures(tmp_path, 2)
    source = bench_pipeline.open_pictures(tmp_path, tmp_path / "instances.json")
    assert source.sizes.tolist() == [[480, 640]] * 2
    assert len(source.annotations(1).boxes) == 7
    assert all(120_000 < len(source.read(index)) < 200_000 for index in range(2))


@pytest.mark.slow
def test_it_runs_and_writes_its_figures(tmp_path):
    sizes = ("--short_side=48", "--long_side=64", "--batch_size=2", "--count=3")
    done = subprocess.run(
        [sys.executable, SCRIPT, *sizes, "--turns=1", "--seconds=0.1", f"--json={tmp_path}/b.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "b.json").read_text())["stages"]
    assert len(stages) == 7
    assert all(one["images_per_second"] > 0 for one in stages.values())
    assert len(done.stdout.splitlines()) == 1 + 1 + 7 + 1
