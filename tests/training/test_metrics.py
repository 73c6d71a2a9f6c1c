"""The metrics that a run writes, and which of them a resumed run removes."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from time_metrics import TIME_METRICS

from retinanet_jax.training import metrics
from retinanet_jax.training.observation import Observation
from retinanet_jax.training.profiling import Profiler
from retinanet_jax.utils.progress import CLOCK

METRICS = {
    "loss": 3.0,
    "loss/classification": 1.0,
    "loss/box": 2.0,
    "learning_rate": 0.01,
    "num_foreground": 7.0,
    "gradient_norm": 5.0,
}


def observe():
    return Observation(Profiler(pathlib.Path("unused"), None))


def open_writer(workdir, start_step=0, writes=True, evaluate_every=None, observation=None):
    return metrics.MetricWriter(
        workdir,
        observation or observe(),
        start_step=start_step,
        total_steps=20,
        evaluate_every=evaluate_every,
        writes=writes,
    )


@pytest.fixture
def observation(clock):
    """Return the observation of a run that has just begun to train."""
    observation = observe()
    batches = observation.batches(["first"])
    next(batches)
    yield observation
    batches.close()


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_logged_step_is_one_json_object(tmp_path, capsys):
    with open_writer(tmp_path) as writer:
        writer.write_step(10, METRICS, batch_size=4)
        writer.write_image(10, "comparison", np.zeros((8, 8, 3), np.uint8))
        writer.write_text(10, "table", "a\n  <b>")
    (line,) = read_lines(tmp_path)
    assert line.items() >= {"step": 10, **METRICS, "data_wait": 0.0}.items()
    assert {*line} - {"step", *METRICS} == TIME_METRICS
    printed = capsys.readouterr().out
    assert "step 10/20 (50%)  loss 3.0000 = classification 1.0000 + box 2.0000  lr 0.01" in printed
    assert "images/s" in printed
    assert printed.rstrip().endswith("left")
    start, scalars, image, text = read_events(tmp_path)
    assert (start.step, start.session_log.status) == (1, SessionLog.START)
    assert {value.tag: value.simple_value for value in scalars.summary.value} == pytest.approx(
        {name: value for name, value in line.items() if name != "step"}
    )
    assert image.summary.value[0].tag == "comparison"
    (text,) = text.summary.value
    assert text.metadata.plugin_data.plugin_name == "text"
    assert (text.tag, text.tensor.string_val) == ("table/text_summary", [b"    a\n      <b>"])


def read_events(workdir):
    """Return the events of the only file of TensorBoard after the first, which has its version."""
    (file,) = (workdir / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events[1:]


def test_a_killed_run_has_all_logged_lines_in_tensorboard(tmp_path):
    code = f"""
import os, pathlib
import test_metrics
writer = test_metrics.open_writer(pathlib.Path({str(tmp_path)!r}), start_step=6)
for step in (8, 10):
    writer.write_step(step, test_metrics.METRICS, batch_size=4)
os._exit(9)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 9, done.stderr
    # TensorBoard ignores what the files of earlier starts have about steps from 7.
    assert [event.step for event in read_events(tmp_path)] == [7, 8, 10]
    assert [line["step"] for line in read_lines(tmp_path)] == [8, 10]


def last_line_end(capsys):
    """Return the end of the last progress line, after the wait for data."""
    return capsys.readouterr().out.splitlines()[-1].partition("waiting for data  ")[2]


def test_speed_is_images_over_the_seconds_since_the_last_line(tmp_path, clock, observation):
    with open_writer(tmp_path, evaluate_every=6, observation=observation) as writer:
        clock.seconds += 10
        writer.write_step(5, METRICS, batch_size=4)  # 5 steps of 4 images in 10 s
        clock.seconds += 2
        with observation.measure("evaluation"):
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

    observation = observe()
    with open_writer(tmp_path, start_step=10, observation=observation) as writer:
        for step, _ in enumerate(observation.batches(slow_batches()), 11):
            clock.seconds += 3
            writer.write_step(step, METRICS, batch_size=6)
            assert last_line_end(capsys) == f"0 min {3 * (20 - step)} s left"
    assert [line["images_per_second"] for line in read_lines(tmp_path)] == [2.0, 2.0]


def test_the_time_left_contains_the_remaining_evaluations(tmp_path, clock, capsys, observation):
    """After steps 5, 10, 15 and 20; until one has been measured, their number is printed."""
    options = {"start_step": 3, "evaluate_every": 5, "observation": observation}
    with open_writer(tmp_path, **options) as writer:
        clock.seconds += 4
        writer.write_step(5, METRICS, batch_size=4)  # 2 s per step
        assert last_line_end(capsys) == "0 min 30 s and 4 evaluations left"
        with observation.measure("evaluation"):
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
def test_a_run_may_have_one_evaluation_or_none(tmp_path, clock, capsys, observation, every, text):
    with open_writer(tmp_path, evaluate_every=every, observation=observation) as writer:
        clock.seconds += 5
        writer.write_step(10, METRICS, batch_size=4)
    assert last_line_end(capsys) == f"0 min 05 s{text} left"


def test_the_time_left_is_that_of_the_latest_lines(
    tmp_path, clock, capsys, monkeypatch, observation
):
    monkeypatch.setattr(metrics, "NUM_INTERVALS", 2)
    with open_writer(tmp_path, observation=observation) as writer:
        for step, seconds in ((2, 100), (4, 4), (8, 14)):
            clock.seconds += seconds
            writer.write_step(step, METRICS, batch_size=4)
    assert last_line_end(capsys) == "0 min 36 s left"  # 18 s for 6 steps, and 12 more steps


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
        writer.write_text(1, "table", "a")
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out
