"""The ablation: its rows differ only in the loss, and finished rows are not run again."""

import json
import pathlib

import jax
import pytest

from retinanet_jax.config import flatten
from retinanet_jax.configs import ablations

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "ablation.py"


@pytest.fixture
def script(load_script):
    return load_script(SCRIPT)


class Runs:
    """A replacement for training that records the runs and returns a given outcome."""

    def __init__(self):
        self.started = []
        self.outcome = lambda name: {"AP": 0.5, "AP50": 0.75, "diverged": ""}

    def __call__(self, config, workdir):
        self.started.append((workdir.name, config.seed))
        return self.outcome(workdir.name)


@pytest.fixture
def runs(script, monkeypatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(script, "run_row", runs)
    return runs


def test_rows_differ_only_in_loss_and_prior(script, tmp_path):
    """The images, seed, steps, optimizer and network are the same."""
    first, *others = [
        dict(flatten(script.row_config(row, seed=3, steps=40, output=tmp_path)))
        for row in script.ROWS
    ]
    for other in others:
        changed = {name for name in first if first[name] != other[name]}
        assert changed
        assert changed <= {
            "loss.classification",
            "loss.alpha",
            "loss.gamma",
            "model.prior_probability",
        }


def test_the_rows_are_the_papers(script):
    assert set(script.ROWS) <= set(ablations.ROWS)
    assert {"ce", "ce-prior", "alpha=.75", "gamma=2"} <= set(script.ROWS)


def test_only_rows_without_a_result_are_run(script, runs, tmp_path):
    script.run_all(tmp_path, ["ce", "gamma=2"], [0], 40)
    assert runs.started == [("ce-seed0-40", 0), ("gamma=2-seed0-40", 0)]
    runs.started.clear()
    results = script.run_all(tmp_path, ["ce", "gamma=2"], [0, 1], 40)
    assert runs.started == [("ce-seed1-40", 1), ("gamma=2-seed1-40", 1)]
    assert [(x["row"], x["seed"]) for x in results] == [
        ("ce", 0),
        ("gamma=2", 0),
        ("ce", 1),
        ("gamma=2", 1),
    ]


def test_a_result_belongs_to_its_number_of_steps(script, runs, tmp_path):
    script.run_all(tmp_path, ["ce"], [0], 40)
    runs.outcome = lambda name: {"AP": 0.1, "AP50": 0.2, "diverged": ""}
    assert script.run_all(tmp_path, ["ce"], [0], 80)[0]["AP"] == 0.1
    assert script.run_all(tmp_path, ["ce"], [0], 40)[0]["AP"] == 0.5
    assert len(json.loads((tmp_path / "ablation.json").read_text())) == 2


def test_results_before_an_interruption_are_saved(script, runs, tmp_path):
    def interrupted(name):
        if name.startswith("gamma"):
            raise KeyboardInterrupt
        return {"AP": 0.5, "AP50": 0.75, "diverged": ""}

    runs.outcome = interrupted
    with pytest.raises(KeyboardInterrupt):
        script.run_all(tmp_path, ["ce", "gamma=2"], [0], 40)
    assert [x["row"] for x in json.loads((tmp_path / "ablation.json").read_text())] == ["ce"]


def test_a_run_that_diverges_is_a_result(script, monkeypatch, tmp_path):
    def diverges(*_):
        raise FloatingPointError("the loss became nan within steps 1..50")

    monkeypatch.setattr(script.train_command, "train_or_evaluate", diverges)
    config = script.row_config("ce", seed=0, steps=40, output=tmp_path)
    result = script.run_row(config, tmp_path / "ce")
    assert result == {
        "AP": None,
        "AP50": None,
        "diverged": "the loss became nan within steps 1..50",
    }


def test_the_table_by_hand(script):
    results = [
        {"row": "ce", "seed": 0, "AP": None},
        {"row": "gamma=2", "seed": 0, "AP": 0.25},
        {"row": "ce", "seed": 1, "AP": 0.01},
        {"row": "gamma=2", "seed": 1, "AP": 0.35},
    ]
    assert script.table(results).splitlines() == [
        "| row | seed 0 | seed 1 | mean | the paper's, on COCO |",
        "| --- | --- | --- | --- | --- |",
        "| ce | diverges | 1.0 | diverges | diverges |",
        "| gamma=2 | 25.0 | 35.0 | 30.0 | 34.0 |",
    ]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_row_trains(script, one_device, monkeypatch, tmp_path):
    """The actual config, with fewer and smaller images."""
    row_config = script.row_config

    def small(row, **setting):
        config = row_config(row, **setting).unlock()
        for part in (config.data.train, config.data.eval):
            part.update(count=8, image_size=64)
        config.data.update(buckets=((64, 64),), short_sides=(64,), eval_short_side=64, long_side=64)
        config.model.update(backbone_width=8, fpn_channels=32, head_depth=1)
        return config

    monkeypatch.setattr(script, "row_config", small)
    # The command changes the compilation cache; later tests need that of the suite.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    (result,) = script.run_all(tmp_path, ["ce-prior"], [0], 2)
    assert 0 <= result["AP"] < 0.2
    assert json.loads((tmp_path / "ablation.json").read_text()) == [result]
    assert script.table([result]).endswith("| 30.2 |")
