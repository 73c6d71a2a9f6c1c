"""Evaluations during training: training continues while AP is computed, and no AP is lost."""

import json
import shutil
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from retinanet_jax import checkpoint
from retinanet_jax.checkpoint import CheckpointManager, integrity, saved_ap
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation import coco_metrics
from retinanet_jax.evaluation.evaluator import Evaluation
from retinanet_jax.stopping import Stopped, Stopping
from retinanet_jax.training import evaluations
from retinanet_jax.utils.files import write_json

STATE = {"params": {"kernel": jnp.ones(3)}}, {"step": jnp.int32(1)}


class Ap:
    """Replaces `write_evaluation`: the AP of a step is known when the test has set it."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.aps: dict[int, float | Exception] = {}

    def write_evaluation(self, results, source, step, folder, config, description):
        self.started.append(step)
        deadline = time.monotonic() + 30
        while step not in self.aps:
            time.sleep(0.001)
            assert time.monotonic() < deadline
        if isinstance(self.aps[step], Exception):
            raise self.aps[step]
        metrics = dict.fromkeys(coco_metrics.METRICS, self.aps[step]) | {"APl": None}
        row = {**dict.fromkeys(("AP", "AP50", "AR"), self.aps[step]), "objects": 3, "images": 2}
        metrics["categories"] = {"dog": row}
        write_json(folder / f"{step}.json", {**metrics, **description})
        return Evaluation(metrics, f"summary of {step}", Image.new("RGB", (4, 4)))


class Writer:
    """Records what is logged, as (step, name, value)."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, str, float]] = []

    def write_scalars(self, step, values):
        self.logged += [(step, name, value) for name, value in values.items()]

    def write_image(self, step, name, image):
        self.logged.append((step, name, image.shape))

    def write_text(self, step, name, text):
        self.logged.append((step, name, text))


@pytest.fixture
def ap(monkeypatch) -> Ap:
    ap = Ap()
    monkeypatch.setattr(evaluations, "write_evaluation", ap.write_evaluation)
    return ap


@pytest.fixture
def run(synthetic_dataset, config, tmp_path):
    """A run in `workdir`: `run.open()` opens its evaluations, `run.save` its checkpoints."""
    config.keep_checkpoints = 1
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    first = source.image_ids[0]
    evaluator = SimpleNamespace(
        source=source, run=lambda variables, step: [{"image_id": first, "score": step}]
    )
    with CheckpointManager(tmp_path, config, (Category(1, "dog"),)) as checkpoints:
        writer = Writer()

        def save(step, *, awaits_ap=False):
            checkpoints.save(step, *STATE, awaits_ap=awaits_ap)
            checkpoints.confirm(step)

        def open_evaluations():
            return evaluations.TrainingEvaluations(
                config, evaluator, tmp_path, checkpoints, writer, Stopping()
            )

        def steps():
            checkpoints._wait()
            return sorted(int(f.name) for f in checkpoint.step_folders(tmp_path / "checkpoints"))

        yield SimpleNamespace(
            open=open_evaluations,
            save=save,
            steps=steps,
            writer=writer,
            workdir=tmp_path,
            config=config,
            source=source,
            ap_of=lambda step: saved_ap(tmp_path / "checkpoints" / str(step)),
        )


def report_until(training_evaluations, condition):
    """Report after each step of a training that continues, until something has happened."""
    deadline = time.monotonic() + 30
    while not condition():
        training_evaluations.report()
        time.sleep(0.001)
        assert time.monotonic() < deadline


def test_training_continues_while_ap_is_computed_and_it_still_decides_the_best(run, ap):
    with run.open() as training_evaluations:
        training_evaluations.evaluate({}, 10)  # it returns, though the AP is not known
        run.save(10, awaits_ap=True)
        for step in (11, 12, 13):
            training_evaluations.report()
            run.save(step)
        assert run.writer.logged == []
        assert run.steps() == [10, 13]  # the one that awaits its AP is kept
        ap.aps[10] = 0.5
        report_until(training_evaluations, lambda: run.writer.logged)
        assert run.ap_of(10) == 0.5
        assert (10, "eval/AP", 0.5) in run.writer.logged
        assert {step for step, *_ in run.writer.logged} == {10}
        assert "eval/APl" not in {name for _, name, _ in run.writer.logged}  # it is undefined
        training_evaluations.evaluate({}, 20)
        run.save(20, awaits_ap=True)
        run.save(21)
        assert run.steps() == [10, 20, 21]
        ap.aps[20] = 0.4
    # Leaving waited for the AP of 20, which is not the best and not the newest.
    assert run.ap_of(10) == 0.5
    assert run.steps() == [10, 21]
    assert checkpoint.find(run.workdir).name == "10"


def test_a_later_ap_that_is_higher_makes_its_checkpoint_the_best(run, ap):
    ap.aps.update({10: 0.5, 20: 0.6})
    with run.open() as training_evaluations:
        for step in (10, 20):
            training_evaluations.evaluate({}, step)
            run.save(step, awaits_ap=True)
        run.save(21)
    assert run.steps() == [20, 21]
    assert checkpoint.find(run.workdir).name == "20"


def test_the_best_checkpoint_so_far_is_named(run, ap, capsys):
    ap.aps.update({10: 0.5, 20: 0.25, 30: 0.75})
    with run.open() as training_evaluations:
        for step in (10, 20, 30):
            training_evaluations.evaluate({}, step)
            run.save(step, awaits_ap=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "best" in line]
    assert lines == [
        "best so far: step 10, AP 0.500",
        "best so far: step 10, AP 0.500",
        "best so far: step 30, AP 0.750",
    ]


def test_ap_by_category_is_logged_as_scalars_and_as_a_table(run, ap):
    ap.aps[10] = 0.5
    with run.open() as training_evaluations:
        training_evaluations.evaluate({}, 10)
        run.save(10, awaits_ap=True)
    logged = {name: value for _, name, value in run.writer.logged}
    assert logged["AP_by_category/dog"] == 0.5
    assert logged["AP_by_category"].splitlines()[-1].split() == ["dog", *["0.500"] * 3, "3", "2"]


def test_a_second_evaluation_waits_for_the_first(run, ap):
    """At most one evaluation's detections are in memory."""
    with run.open() as training_evaluations:
        training_evaluations.evaluate({}, 10)
        run.save(10, awaits_ap=True)
        second = threading.Thread(target=training_evaluations.evaluate, args=({}, 20))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert ap.started == [10]
        ap.aps.update({10: 0.5, 20: 0.6})
        second.join(30)
        run.save(20, awaits_ap=True)
    assert ap.started == [10, 20]
    assert {step for step, *_ in run.writer.logged} == {10, 20}


def test_an_undefined_ap_is_not_logged_and_the_newest_checkpoint_is_the_best(
    run, monkeypatch, capsys
):
    row = {**dict.fromkeys(("AP", "AP50", "AR")), "objects": 0, "images": 0}
    nothing = dict.fromkeys(coco_metrics.METRICS) | {"categories": {"dog": row}}
    undefined = Evaluation(nothing, "summary", Image.new("RGB", (4, 4)))
    monkeypatch.setattr(evaluations, "write_evaluation", lambda *_: undefined)
    with run.open() as training_evaluations:
        for step in (10, 20):
            training_evaluations.evaluate({}, step)
            run.save(step, awaits_ap=True)
    assert [run.ap_of(step) for step in run.steps()] == [checkpoint.NOT_MEASURED]
    assert checkpoint.find(run.workdir).name == "20"
    assert {name for _, name, _ in run.writer.logged} == {"ground_truth_and_detections"}
    assert "best so far" not in capsys.readouterr().out


def test_metrics_of_more_than_100_detections_are_logged(run):
    metrics = {"AP": 0.25, "AP_max500": 1.0, "APl": None, "categories": {}}
    evaluation = Evaluation(metrics, "summary", Image.new("RGB", (4, 4)))
    evaluations.log_evaluation(10, evaluation, run.writer)
    assert run.writer.logged[:-1] == [(10, "eval/AP", 0.25), (10, "eval/AP_max500", 1.0)]


def end_step(run, patience, steps=(10, 20, 30, 40)):
    """The step after which a run ends, with evaluations after these steps."""
    run.config.update(patience=patience, total_steps=40)
    with run.open() as training_evaluations:
        for step in steps:
            training_evaluations.evaluate({}, step)
            run.save(step, awaits_ap=True)
            try:
                training_evaluations.check_patience(step)
            except Stopped:
                return step
    return None


@pytest.mark.parametrize(("patience", "end"), [(1, 20), (2, 30), (3, None), (0, None)])
def test_a_run_ends_early_and_names_its_best_checkpoint(run, ap, capsys, patience, end):
    """With a patience of 3 the last step is the end anyway."""
    ap.aps.update({10: 0.5, 20: 0.5, 30: 0.25, 40: 0.25})
    assert end_step(run, patience) == end
    lines = [line for line in capsys.readouterr().out.splitlines() if "ends early" in line]
    assert lines == [
        f"the run ends early: {patience} evaluation{'s' * (patience > 1)} without a better AP "
        f"(config.patience={patience}); the best checkpoint is that of step 20, AP 0.500"
    ] * bool(end)
    assert checkpoint.find(run.workdir).name == "20"  # of equal ones the newest
    assert run.writer.logged[-1][0] == (end or 40)  # the last AP is logged, too


def test_the_end_waits_for_ap_and_is_the_same_after_a_kill(run, ap):
    """Killed before the AP of step 20 was known, the run ends after it when it is started."""
    ap.aps.update({10: 0.5, 20: 0.4})
    assert end_step(run, 1) == 20
    forget_ap(run.workdir / "checkpoints/20")
    (run.workdir / "eval/20.json").unlink()
    with run.open() as training_evaluations, pytest.raises(Stopped):
        training_evaluations.check_patience(20)
    assert ap.started == [10, 20, 20]
    with run.open() as training_evaluations:  # resumed from an earlier checkpoint
        training_evaluations.check_patience(10)


def test_a_signal_leaves_the_end_to_the_next_start(run, ap, monkeypatch):
    ap.aps[10] = 0.5
    monkeypatch.setattr(Stopping, "drops_ap", lambda _: True)
    assert end_step(run, 1, (10, 20)) is None
    ap.aps[20] = 0.4  # the thread ends


def test_all_hosts_end_with_the_first(run, ap, monkeypatch):
    run.config.patience = 1
    monkeypatch.setattr(jax, "process_index", lambda *_: 1)
    monkeypatch.setattr(evaluations, "step_of_first_host", lambda _: 10)
    with run.open() as training_evaluations, pytest.raises(Stopped):
        training_evaluations.check_patience(20)


@pytest.mark.parametrize("when", ["report", "evaluate", "end"])
def test_an_error_while_ap_is_computed_ends_the_run(run, ap, when):
    ap.aps[10] = OSError("no space left")

    def train():
        with run.open() as training_evaluations:
            training_evaluations.evaluate({}, 10)
            run.save(10, awaits_ap=True)
            if when == "report":
                report_until(training_evaluations, lambda: False)
            if when == "evaluate":
                training_evaluations.evaluate({}, 20)

    with pytest.raises(OSError, match="no space left"):
        train()


def test_an_error_in_training_does_not_wait_for_ap(run, ap):
    def train():
        with run.open() as training_evaluations:
            training_evaluations.evaluate({}, 10)
            raise FloatingPointError("the loss became nan")

    with pytest.raises(FloatingPointError):
        train()
    ap.aps[10] = 0.5  # the thread ends


def forget_ap(folder):
    """Leave a checkpoint as if the run had been killed before its AP was known."""
    shutil.rmtree(folder / "metrics")
    digests = integrity.read_digests(folder)
    del digests["metrics/metrics"]
    integrity.write_digests(folder, digests)


def test_the_ap_that_a_killed_run_did_not_compute_is_computed_from_its_detections(run, ap):
    ap.aps[10] = 0.5
    with run.open() as training_evaluations:
        training_evaluations.evaluate({}, 10)
        run.save(10, awaits_ap=True)
    run.writer.logged.clear()
    forget_ap(run.workdir / "checkpoints/10")
    (computed,) = json.loads((run.workdir / "eval/10_detections.json").read_text())
    assert computed["score"] == 10
    with run.open():
        assert ap.started == [10, 10]
    assert run.ap_of(10) == 0.5
    assert (10, "eval/AP", 0.5) in run.writer.logged
    with run.open():  # and no second time
        assert ap.started == [10, 10]


@pytest.mark.parametrize("change", ["another file", "an image is removed"])
def test_detections_of_other_data_than_this_runs_have_no_ap(run, ap, change):
    ap.aps[10] = 0.5
    with run.open() as training_evaluations:
        training_evaluations.evaluate({}, 10)
        run.save(10, awaits_ap=True)
    forget_ap(run.workdir / "checkpoints/10")
    if change == "another file":
        run.config.data.eval.annotations = "another.json"
    else:
        run.source.image_ids[0] = -1
    with run.open():
        assert ap.started == [10]
    assert run.ap_of(10) == checkpoint.NOT_MEASURED


def test_only_the_first_host_computes_ap(run, ap, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda *_: 1)
    with run.open() as training_evaluations:
        training_evaluations.evaluate({}, 10)
        training_evaluations.report()
    assert ap.started == []
    assert not (run.workdir / "eval").exists()
