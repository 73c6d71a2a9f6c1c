"""The metrics that a run writes, and which of them a resumed run removes."""

import json
import time
import types

import numpy as np
import pytest

from retinanet_jax.training import metrics

METRICS = {
    "loss": 3.0,
    "loss/classification": 1.0,
    "loss/box": 2.0,
    "learning_rate": 0.01,
    "num_foreground": 7.0,
    "gradient_norm": 5.0,
}


def open_writer(workdir, start_step=0, writes=True):
    return metrics.MetricWriter(workdir, start_step=start_step, total_steps=20, writes=writes)


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_logged_step_is_one_json_object(tmp_path, capsys):
    with open_writer(tmp_path) as writer:
        writer.write_step(10, METRICS, batch_size=4)
        writer.write_image(10, "comparison", np.zeros((8, 8, 3), np.uint8))
    (line,) = read_lines(tmp_path)
    assert line == {
        "step": 10,
        **METRICS,
        "images_per_second": line["images_per_second"],
        "data_wait": 0.0,
    }
    assert line["images_per_second"] > 0
    printed = capsys.readouterr().out
    assert "step 10/20 (50%)  loss 3.0000 = classification 1.0000 + box 2.0000  lr 0.01" in printed
    assert "images/s" in printed
    assert printed.rstrip().endswith("left")
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/classification" in events.read_bytes()
    assert b"comparison" in events.read_bytes()


def test_speed_is_images_over_the_seconds_since_the_last_line(tmp_path, monkeypatch):
    seconds = iter([100.0, 110.0, 120.0, 130.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(metrics, "time", clock)
    with open_writer(tmp_path) as writer:
        writer.write_step(5, METRICS, batch_size=4)  # 5 steps of 4 images in 10 s
        writer.restart_clock(6)  # at 120 s
        writer.write_step(8, METRICS, batch_size=4)  # 2 steps in 10 s
    assert [line["images_per_second"] for line in read_lines(tmp_path)] == [2.0, 0.8]


class SlowResult:
    """The result of a step that takes a while."""

    def __init__(self, seconds):
        self.seconds = seconds

    def block_until_ready(self):
        time.sleep(self.seconds)


@pytest.mark.parametrize(
    ("step_seconds", "data_seconds", "data_wait"),
    [(0.0, 0.2, 1.0), (0.2, 0.1, 0.0), (0.1, 0.2, 0.5)],
    ids=["only data", "a step that takes longer than its data", "half hidden"],
)
def test_data_wait_is_the_fraction_of_time_without_a_running_step(
    tmp_path, step_seconds, data_seconds, data_wait
):
    def slow_batches():
        yield "first"
        for _ in range(3):
            time.sleep(data_seconds)
            yield "later"

    with open_writer(tmp_path) as writer:
        for batch in writer.measure_idle_time(slow_batches()):
            if batch == "first":
                writer.restart_clock(0)
            writer.watch_step(SlowResult(step_seconds))
        writer.write_step(3, METRICS, batch_size=1)
    (line,) = read_lines(tmp_path)
    assert line["data_wait"] == pytest.approx(data_wait, abs=0.24)


def test_a_resumed_run_removes_the_lines_after_its_start(tmp_path):
    with open_writer(tmp_path) as writer:
        for step in (2, 4, 6):
            writer.write_step(step, METRICS, batch_size=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while it wrote
    with open_writer(tmp_path, start_step=4) as writer:
        writer.write_step(6, METRICS, batch_size=4)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 4, 6]


def test_an_incomplete_line_is_removed_and_complete_ones_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    metrics.remove_lines_after(path, 9)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    metrics.remove_lines_after(path, 1)
    assert path.read_text() == '{"step": 1}\n'
    metrics.remove_lines_after(tmp_path / "absent", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_other_hosts_are_silent(tmp_path, capsys):
    with open_writer(tmp_path, writes=False) as writer:
        writer.write_step(1, METRICS, batch_size=4)
        writer.write_scalars(1, {"a": 1.0})
        writer.write_image(1, "comparison", np.zeros((8, 8, 3), np.uint8))
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out
