"""The metrics that a run writes, and which of them a resumed run removes."""

import json
import time
import types

import numpy as np
import pytest

from retinanet_jax.training import metrics
from retinanet_jax.utils import progress
from retinanet_jax.utils.progress import CLOCK

METRICS = {
    "loss": 3.0,
    "loss/classification": 1.0,
    "loss/box": 2.0,
    "learning_rate": 0.01,
    "num_foreground": 7.0,
    "gradient_norm": 5.0,
}


def open_writer(workdir, start_step=0, writes=True, evaluate_every=None):
    return metrics.MetricWriter(
        workdir,
        start_step=start_step,
        total_steps=20,
        evaluate_every=evaluate_every,
        writes=writes,
    )


@pytest.fixture
def clock(monkeypatch):
    """Return a replacement for the module `time`, with its time in `seconds`."""
    clock = types.SimpleNamespace(seconds=100.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


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


def last_line_end(capsys):
    """Return the end of the last progress line, after the wait for data."""
    return capsys.readouterr().out.splitlines()[-1].partition("waiting for data  ")[2]


def test_speed_is_images_over_the_seconds_since_the_last_line(tmp_path, clock):
    with open_writer(tmp_path, evaluate_every=6) as writer:
        clock.seconds += 10
        writer.write_step(5, METRICS, batch_size=4)  # 5 steps of 4 images in 10 s
        clock.seconds += 2
        with writer.measure_evaluation():
            clock.seconds += 40
        clock.seconds += 4
        with CLOCK.stopped():
            clock.seconds += 60  # compiling
        clock.seconds += 4
        writer.write_step(8, METRICS, batch_size=4)  # 3 steps in 10 s
    assert [line["images_per_second"] for line in read_lines(tmp_path)] == [2.0, 1.2]


def test_the_wait_for_the_first_batch_is_no_training_time(tmp_path, clock, capsys):
    def slow_batches():
        clock.seconds += 30  # the loader starts
        yield "first"
        yield "second"

    with open_writer(tmp_path, start_step=10) as writer:
        for step, _ in enumerate(writer.measure_idle_time(slow_batches()), 11):
            clock.seconds += 3
            writer.watch_step(SlowResult(0))
            writer.write_step(step, METRICS, batch_size=6)
            assert last_line_end(capsys) == f"0 min {3 * (20 - step)} s left"
    assert [line["images_per_second"] for line in read_lines(tmp_path)] == [2.0, 2.0]


def test_the_time_left_contains_the_remaining_evaluations(tmp_path, clock, capsys):
    """After steps 5, 10, 15 and 20; until one has been measured, their number is printed."""
    with open_writer(tmp_path, start_step=3, evaluate_every=5) as writer:
        clock.seconds += 4
        writer.write_step(5, METRICS, batch_size=4)  # 2 s per step
        assert last_line_end(capsys) == "0 min 30 s and 4 evaluations left"
        with writer.measure_evaluation():
            clock.seconds += 20
            with CLOCK.stopped():
                clock.seconds += 300  # compiling
        clock.seconds += 2
        writer.write_step(6, METRICS, batch_size=4)  # 14 * 2 + 3 * 20 s
        assert last_line_end(capsys) == "1 min 28 s left"
        clock.seconds += 28
        writer.write_step(20, METRICS, batch_size=4)  # the last evaluation follows its last step
        assert last_line_end(capsys) == "0 min 20 s left"


@pytest.mark.parametrize(("every", "text"), [(None, ""), (100, " and 1 evaluation")])
def test_a_run_may_have_one_evaluation_or_none(tmp_path, clock, capsys, every, text):
    with open_writer(tmp_path, evaluate_every=every) as writer:
        clock.seconds += 5
        writer.write_step(10, METRICS, batch_size=4)
    assert last_line_end(capsys) == f"0 min 05 s{text} left"


def test_the_time_left_is_that_of_the_latest_lines(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "NUM_INTERVALS", 2)
    with open_writer(tmp_path) as writer:
        for step, seconds in ((2, 100), (4, 4), (8, 14)):
            clock.seconds += seconds
            writer.write_step(step, METRICS, batch_size=4)
    assert last_line_end(capsys) == "0 min 36 s left"  # 18 s for 6 steps, and 12 more steps


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
        for _ in writer.measure_idle_time(slow_batches()):
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


@pytest.mark.parametrize("content", ["", '{"st', '{"step": 2, "loss": 1', None])
def test_a_run_may_write_to_the_metrics_of_a_run(tmp_path, content):
    """Also of one that was killed while it wrote the first line, or that has written nothing."""
    metrics.check_metrics(tmp_path)
    with open_writer(tmp_path) as writer:
        writer.write_step(2, METRICS, batch_size=4)
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    metrics.check_metrics(tmp_path)


@pytest.mark.parametrize("content", ["mine", "5\n", '{"step": 2, "loss": 1}\n', '{"a": 1}\n'])
def test_metrics_of_another_program_are_an_error(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(FileExistsError, match=r"a metrics\.jsonl that no run .* another folder"):
        metrics.check_metrics(tmp_path)


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
