"""Early stopping: after which evaluations a run ends, whatever has interrupted it before."""

import json

import pytest

from retinanet_jax.checkpoint import integrity
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation import records
from retinanet_jax.training import patience
from retinanet_jax.training.patience import check_patience_left, step_not_exceeded


@pytest.mark.parametrize(
    ("aps", "num_evaluations", "step"),
    [
        ({10: 0.5, 20: 0.4, 30: 0.3}, 2, 10),
        ({10: 0.5, 20: 0.4, 30: 0.3}, 3, None),
        ({30: 0.3, 20: 0.4, 10: 0.5}, 2, 10),  # in any order
        ({10: 0.5, 20: 0.4, 30: 0.6}, 1, None),
        ({10: 0.1, 20: 0.4, 30: 0.3, 40: 0.2}, 2, 20),
        ({10: 0.0, 20: 0.0}, 1, 10),  # equal is not better
        ({10: 0.5, 20: 0.4, 30: 0.5}, 2, 10),
        ({10: 0.5}, 1, None),
        ({}, 1, None),
    ],
)
def test_a_run_ends_after_that_many_evaluations_without_a_better_ap(aps, num_evaluations, step):
    assert step_not_exceeded(aps, num_evaluations) == step


@pytest.fixture
def evaluated(config, synthetic_dataset, tmp_path):
    """A function `(aps) -> source` that writes evaluations of a run, with a checkpoint at 30."""
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")

    def evaluated(aps, **others):
        description = {**records.describe(config, source), **others}
        (tmp_path / "eval").mkdir(exist_ok=True)
        for step, ap in aps.items():
            content = json.dumps({"AP": ap, **description})
            (tmp_path / "eval" / f"{step}.json").write_text(content)
        (tmp_path / "checkpoints" / "30").mkdir(parents=True, exist_ok=True)
        integrity.write_digests(tmp_path / "checkpoints" / "30", {})
        return source

    return evaluated


def test_a_run_that_has_ended_early_is_already_done(config, evaluated, tmp_path):
    source = evaluated({10: 0.5, 20: 0.4, 30: 0.3})
    config.patience = 2
    with pytest.raises(ValueError, match=r"^already done; .* has 2 evaluations without") as error:
        check_patience_left(config, tmp_path, source)
    line = str(error.value)
    assert "a better AP than that of step 10, and config.patience=2. Give a larger" in line
    assert "\n" not in line
    for more in (3, 0):
        config.patience = more
        check_patience_left(config, tmp_path, source)


@pytest.mark.parametrize(
    "others",
    [
        {"AP": None},  # undefined
        {"settings": {"dtype": "bfloat16"}},
        {"dataset": {"name": "other", "num_images": 20, "sha256": ""}},
    ],
)
def test_an_ap_that_cannot_be_compared_does_not_count(config, evaluated, tmp_path, others):
    config.patience = 1
    evaluated({30: 0.3}, **others)
    source = evaluated({10: 0.5})
    check_patience_left(config, tmp_path, source)
    evaluated({20: 0.4})
    with pytest.raises(ValueError, match="than that of step 10"):
        check_patience_left(config, tmp_path, source)


def test_an_ap_of_a_step_that_is_lost_does_not_count(config, evaluated, tmp_path):
    """The run that was killed after step 30 does this evaluation again."""
    config.patience = 1
    source = evaluated({30: 0.5, 40: 0.4})
    check_patience_left(config, tmp_path, source)


def test_without_patience_no_evaluation_is_read(config, evaluated, tmp_path, monkeypatch):
    source = evaluated({10: 0.5, 20: 0.4, 30: 0.3})
    monkeypatch.setattr(patience.records, "describe", lambda *_: pytest.fail("read"))
    check_patience_left(config, tmp_path, source)
