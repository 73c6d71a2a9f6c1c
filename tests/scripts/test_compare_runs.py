"""The comparison of two runs: fields that differ, and the second's AP minus the first's."""

import json
import pathlib
import shutil

import pytest

from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.config import default_config
from retinanet_jax.data.sources.coco import CocoAnnotations

pytest.importorskip("hotcoco")
SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "compare_runs.py"
BOX = [10, 20, 30, 40]


@pytest.fixture
def script(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def make_run(script, tmp_path):
    """`make_run(name, detected, ...)`: a run that detects the objects of these images of four."""

    def make_run(name, detected, *, box=BOX, config=None):
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 99, "height": 99} for i in range(4)]
        fields = {"bbox": box, "area": 1200, "category_id": 1, "iscrowd": 0}
        annotations = [{"id": i, "image_id": i, **fields} for i in range(4)]
        categories = [{"id": 1, "name": "cat"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        results = [
            {"image_id": i, "category_id": 1, "bbox": BOX, "score": 0.9 - i / 10} for i in detected
        ]
        evaluated = evaluate_detections(CocoAnnotations(path), results)
        return script.Run(name, config or default_config(), 40, evaluated)

    return make_run


def rows(text, first_cell):
    """Return the cells of the lines of tables that begin with a cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [line for line in lines if line and line[0] == first_cell]


def test_the_fields_that_differ_and_no_others_are_listed(script, make_run):
    changed = default_config()
    changed.update(seed=7, total_steps=50)
    changed.optimizer.learning_rate = 0.5
    text = script.compare(make_run("a", [0]), make_run("b", [0], config=changed))
    fields, results = text.split("\n\n")
    assert fields.splitlines() == [
        "| config | a | b |",
        "| --- | --- | --- |",
        "| optimizer.learning_rate | 0.01 | 0.5 |",
        "| seed | 0 | 7 |",
        "| total_steps | 90000 | 50 |",
    ]
    assert rows(results, "step") == [["step", "40 of 90000", "40 of 50", ""]]


def test_the_difference_is_the_second_run_minus_the_first(script, make_run):
    """One of four objects detected is an AP of 26 of 101 recalls, and all four are 1."""
    text = script.compare(make_run("a", [0]), make_run("b", [0, 1, 2, 3]))
    assert text.startswith("The configs are equal.")
    ((_, first, second, difference),) = rows(text, "AP50")
    assert (first, second) == ("0.257", "1.000")
    assert difference.startswith("+0.743 [+")
    assert difference.endswith("], higher with probability 100%")


def test_a_run_does_not_differ_from_itself(script, make_run):
    text = script.compare(make_run("a", [0, 2]), make_run("a", [0, 2]))
    ((*_, difference),) = rows(text, "AP")
    assert difference == "+0.000 [+0.000, +0.000], higher with probability 50%"


def test_runs_on_different_datasets_are_an_error(script, make_run):
    with pytest.raises(ValueError, match="is not the same dataset as"):
        script.compare(make_run("a", [0]), make_run("b", [0], box=[10, 20, 30, 41]))


@pytest.mark.slow
def test_a_finished_run_is_read_and_one_that_is_not_evaluated_refused(
    script, tiny_run, tmp_path, monkeypatch, capsys
):
    workdir = tiny_run.workdir
    monkeypatch.setattr("sys.argv", ["compare_runs.py", str(workdir), str(workdir)])
    script.main()
    evaluation = json.loads((workdir / "eval/8.json").read_text())
    ((_, first, second, _),) = rows(capsys.readouterr().out, "AP")
    assert first == second == f"{evaluation['AP']:.3f}"
    ignored = shutil.ignore_patterns("compilation_cache", "8.json")
    other = shutil.copytree(workdir, tmp_path / "run", ignore=ignored)
    monkeypatch.setattr("sys.argv", ["compare_runs.py", str(workdir), str(other)])
    with pytest.raises(SystemExit, match=r"^error: .*checkpoints/8 is not evaluated; run `retina"):
        script.main()
