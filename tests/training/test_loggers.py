"""Loggers besides TensorBoard: each step is there once, and their errors never end a run."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest
from test_metrics import METRICS, observe

from retinanet_jax.config import default_config
from retinanet_jax.stored_config import config_from_json, config_to_json
from retinanet_jax.training import loggers
from retinanet_jax.training.metrics import MetricWriter

IMAGE = np.zeros((8, 8, 3), np.uint8)
TABLE = "AP by category\n  <cat>  0.500"


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


class Service:
    """A service that records what it gets; `error` is raised, and `waits` waited for, instead."""

    run_id, address = "run 1", "somewhere"

    def __init__(self, error: Exception | None = None) -> None:
        self.written: list[tuple[object, ...]] = []
        self.error, self.waits = error, threading.Event()
        self.waits.set()

    def _write(self, *what):
        assert self.waits.wait(30)
        if self.error:
            raise self.error
        self.written.append(what)

    def write_scalars(self, step, values):
        self._write(step, values)

    def write_image(self, step, name, image):
        self._write(step, name, image.shape)

    def write_text(self, step, name, text):
        self._write(step, name, text)

    def close(self, *, failed):
        self._write("failed" if failed else "finished")


def open_background(service, folder, *, continues=False):
    record = loggers.Record(folder / "record.json", continues=continues)
    if record.run_id is None:
        record.begin("run 1")
    return loggers.BackgroundLogger("service", service, record)


def test_all_that_a_run_logs_arrives_in_order(tmp_path):
    service = Service()
    logger = open_background(service, tmp_path)
    logger.write_scalars(10, {"loss": 2.0, "loss/box": 1.0})
    logger.write_scalars(8, {"eval/AP": 0.25})  # it is known when later steps have been logged
    logger.write_text(8, "table", "a b")
    logger.write_image(8, "table", IMAGE)
    logger.write_scalars(12, {})
    logger.close(failed=False)
    assert service.written == [
        (10, {"loss": 2.0, "loss/box": 1.0}),
        (8, {"eval/AP": 0.25}),
        (8, "table", "a b"),
        (8, "table", (8, 8, 3)),
        ("finished",),
    ]


def test_a_run_that_resumes_writes_only_what_was_not_written(tmp_path):
    first, second = Service(), Service()
    logger = open_background(first, tmp_path)
    for step in (2, 4, 6):
        logger.write_scalars(step, {"loss": 1.0})
    logger.write_scalars(4, {"eval/AP": 0.5})
    logger.close(failed=True)
    assert first.written[-1] == ("failed",)
    logger = open_background(second, tmp_path, continues=True)  # from step 2
    for step in (4, 6, 8):
        logger.write_scalars(step, {"loss": 1.0})
    for step in (4, 8):
        logger.write_scalars(step, {"eval/AP": 0.5})
    logger.close(failed=False)
    assert second.written[:-1] == [(8, {"loss": 1.0}), (8, {"eval/AP": 0.5})]


def test_a_run_that_starts_again_from_its_beginning_is_another_run(tmp_path):
    file = tmp_path / "record.json"
    loggers.Record(file, continues=False).begin("run 1")
    assert loggers.Record(file, continues=True).run_id == "run 1"
    assert loggers.Record(file, continues=False).run_id is None
    file.write_text('{"run_id": "run 1"')
    with pytest.raises(ValueError, match=r"record\.json is damaged; remove it to log to a new run"):
        loggers.Record(file, continues=True)


def test_an_error_of_a_service_is_one_warning_and_the_run_goes_on(tmp_path, capsys):
    service = Service(ConnectionError("no\nroute " + "x" * 1000))
    logger = open_background(service, tmp_path)
    for step in (2, 4):
        logger.write_scalars(step, {"loss": 1.0})
    futures.wait(logger._pending, 30)
    service.error = None  # the network is back
    logger.write_scalars(6, {"loss": 1.0})
    logger.close(failed=False)
    assert service.written == [(6, {"loss": 1.0}), ("finished",)]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: service lacks some of this run (ConnectionError: no route xx")
    assert line.endswith("; metrics.jsonl and TensorBoard have all of it")
    assert len(line) < 320


def test_a_service_that_does_not_answer_slows_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "MAX_PENDING", 3)
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("retinanet_jax.utils.threads.CLOSE_SECONDS", 0.1)
    service = Service()
    service.waits.clear()
    logger = open_background(service, tmp_path)
    start = time.monotonic()
    for step in range(50):
        logger.write_scalars(step, {"loss": 1.0})
    assert len(logger._pending) == 3
    logger.close(failed=False)
    assert time.monotonic() - start < 5
    service.waits.set()
    (line,) = capsys.readouterr().out.splitlines()
    assert "lacks some of this run (it does not answer)" in line


def test_a_service_that_hangs_at_the_end_is_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("retinanet_jax.utils.threads.CLOSE_SECONDS", 0.1)
    service = Service()
    service.waits.clear()
    open_background(service, tmp_path).close(failed=False)
    service.waits.set()
    assert "(not all was written within 0 seconds)" in capsys.readouterr().out


@pytest.fixture
def services(monkeypatch):
    """Let "wandb" be what a test puts into this dict."""
    services = {}
    monkeypatch.setattr(loggers, "SERVICES", services)
    return services


def open_all(folder, start_step):
    config = default_config()
    config.loggers = ("wandb", "wandb")
    return loggers.open_loggers(config, folder, folder, start_step)


def test_a_service_is_opened_once_and_gets_its_run_back(tmp_path, services, capsys):
    opened = []
    services["wandb"] = lambda config, workdir, run_id: opened.append(run_id) or Service()
    for start_step in (0, 4, 0):
        (logger,) = open_all(tmp_path, start_step)
        logger.close(failed=False)
    assert opened == [None, "run 1", None]
    assert capsys.readouterr().out == "logging to wandb: somewhere\n" * 3


def test_a_service_that_cannot_start_is_an_error_and_later_a_warning(tmp_path, services, capsys):
    """A run that is started again at night continues without it."""

    def fail(*_):
        raise ConnectionError("no route")

    services["wandb"] = fail
    message = r"config\.loggers has wandb, which cannot start \(ConnectionError: no route\); run `w"
    with pytest.raises(ValueError, match=message):
        open_all(tmp_path, 0)
    with pytest.raises(ValueError, match=message):
        open_all(tmp_path, 4)  # with this logger for the first time
    loggers.Record(tmp_path / "wandb_run.json", continues=False).begin("run 1")
    assert open_all(tmp_path, 4) == []
    line = "warning: wandb cannot continue its run (ConnectionError: no route)\n"
    assert capsys.readouterr().out == line


def test_only_the_host_that_writes_opens_loggers(tmp_path):
    def fail(*_):
        raise AssertionError

    options = {"start_step": 0, "total_steps": 20, "open_loggers": fail}
    with MetricWriter(tmp_path, observe(), **options, writes=False) as writer:
        writer.write_scalars(1, {"a": 1.0})


def test_an_error_that_ends_the_run_is_passed_on(tmp_path):
    service = Service()
    options = {"start_step": 0, "total_steps": 20, "writes": True}
    options["open_loggers"] = lambda folder, step: [open_background(service, folder)]
    with pytest.raises(OSError, match="gone"), MetricWriter(tmp_path, observe(), **options):
        raise OSError("gone")
    assert service.written == [("failed",)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_absent_package_is_an_error_before_the_run(error_line, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    line = error_line(
        "train",
        "--config=configs/shapes.py:tiny",
        f"--workdir={tmp_path}",
        f"--config.loggers={name}",
    )
    assert f"config.loggers={name} requires {name}, which cannot be imported" in line
    assert line.endswith(f'run `pip install "retinanet-jax[{name}]"`, or leave it out.')
    assert not (tmp_path / "shapes").exists()  # nothing was generated yet


def test_an_unknown_logger_is_an_error():
    with pytest.raises(ValueError, match="loggers='wandbb' must be one of mlflow, wandb"):
        loggers.check_loggers(("wandbb",))


def test_a_config_of_an_earlier_version_has_no_further_loggers():
    stored = config_to_json(default_config())
    assert stored.pop("loggers") == []
    assert config_from_json({**stored, "config_version": 5}).loggers == ()
    with pytest.raises(ValueError, match=r"config\.loggers is missing"):
        config_from_json(stored)


def log_a_run(workdir: pathlib.Path, name: str, start_step: int, last_step: int) -> None:
    """Log as a run does, and wait until a killed run would lose nothing."""
    config = default_config()
    config.loggers = (name,)
    options = {"start_step": start_step, "total_steps": 10, "writes": True}
    opener = functools.partial(loggers.open_loggers, config, workdir)
    with MetricWriter(workdir, observe(), **options, open_loggers=opener) as writer:
        for step in range(start_step + 1, last_step + 1):
            writer.write_step(step, {**METRICS, "loss": float(step)}, batch_size=4)
            if step % 4 == 0:
                writer.write_scalars(step - 1, {"eval/AP": step / 100, "AP_by_category/a b": 0.5})
                writer.write_text(step - 1, "AP_by_category", TABLE)
                writer.write_image(step - 1, "images", IMAGE)
        if last_step < 10:
            time.sleep(1.5)
            os._exit(9)


def killed_and_resumed(workdir, name, environment):
    """Log steps 1 to 7, as a run that is then killed, and 5 to 10, as it resumes from step 4."""
    for start_step, last_step in ((0, 7), (4, 10)):
        code = (
            "import pathlib, test_loggers\n"
            f"workdir = pathlib.Path({str(workdir)!r})\n"
            f"test_loggers.log_a_run(workdir, {name!r}, {start_step}, {last_step})"
        )
        path = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, **environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == (9 if last_step < 10 else 0), done.stderr
        assert done.stderr == ""
        assert done.stdout.startswith(f"logging to {name}: ")
        assert "warning" not in done.stdout
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
    return json.loads((workdir / f"{name}_run.json").read_text())["run_id"]


def wandb_records(file):
    """Yield the records of a file of wandb, which has LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        in_block = 32768 - position % 32768
        if in_block < 7:  # the rest of a block, which is too short for a header
            position += in_block
            continue
        length, part_type = (
            int.from_bytes(content[position + 4 : position + 6], "little"),
            content[position + 6],
        )
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if part_type in (1, 4):  # a full record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@pytest.mark.slow
@needs("wandb")
def test_wandb_has_each_step_of_a_killed_and_resumed_run_once(tmp_path):
    workdir = tmp_path / "my run"
    workdir.mkdir()
    environment = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    run_id = killed_and_resumed(workdir, "wandb", environment)
    files = sorted((workdir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    runs, rows = [], []
    for record in (record for file in files for record in wandb_records(file)):
        if record.WhichOneof("record_type") == "run":
            runs.append(record.run)
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            )
    assert [(run.run_id, run.project) for run in runs] == [(run_id, "retinanet_jax")] * 2
    assert [run.display_name for run in runs] == ["my run", ""]  # it keeps its name
    stored = {entry.key: entry.value_json for entry in runs[0].config.update}
    assert json.loads(stored["optimizer"])["learning_rate"] == 0.01
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(str(step), str(step)) for step in range(1, 11)]
    aps = [(row["step"], row["AP_by_category/a b"]) for row in rows if "eval/AP" in row]
    assert aps == [("3", "0.5"), ("7", "0.5")]
    for name in ("AP_by_category", "images"):
        assert [row["step"] for row in rows if name in row] == ["3", "7"]
    pages = sorted((workdir / "wandb").glob("*/files/media/html/*.html"))
    assert {page.read_text() for page in pages} == {
        "<pre>AP by category\n  &lt;cat&gt;  0.500</pre>"
    }


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_has_each_step_of_a_killed_and_resumed_run_once(tmp_path, monkeypatch):
    workdir = tmp_path / "my run"
    workdir.mkdir()
    environment = {
        "MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    run_id = killed_and_resumed(workdir, "mlflow", environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    import mlflow

    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("my run", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "retinanet_jax"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert run.data.params["optimizer.learning_rate"] == "0.01"

    def history(name):
        return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]

    assert history("loss/total") == [(step, step) for step in range(1, 11)]
    assert [step for step, _ in history("loss/box")] == list(range(1, 11))
    assert history("eval/AP") == [(3, 0.04), (7, 0.08)]
    assert history("AP_by_category/a b") == [(3, 0.5), (7, 0.5)]
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/AP_by_category/7.txt") == TABLE
    images = [artifact.path for artifact in client.list_artifacts(run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 2
