"""The command `analyze`: its files, its summary, comparisons, stored thresholds and mistakes."""

import json
import shutil
import sys

import pytest
from PIL import Image

from retinanet_jax import checkpoint
from retinanet_jax.__main__ import main
from retinanet_jax.cli import analyze as command
from retinanet_jax.detector import Detector

pytest.importorskip("hotcoco")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

IMAGE_IDS = (900, 41, 2**40)


@pytest.fixture
def dataset(tmp_path):
    """A folder with three images of 100 x 80 pixels with a dog each, and a cat in the first."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index, image_id in enumerate(IMAGE_IDS):
        Image.new("RGB", (100, 80), (90, 40 * index, 50)).save(folder / f"images/{index}.png")
        images.append({"id": image_id, "file_name": f"{index}.png", "width": 100, "height": 80})
        annotations.append(annotation(index, image_id, 7, [10, 20, 30, 40]))
    annotations.append(annotation(9, IMAGE_IDS[0], 2, [50, 30, 30, 40]))
    categories = [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def annotation(number, image_id, category_id, box):
    fields = {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": 0}
    return {"id": number, "area": box[2] * box[3], **fields}


@pytest.fixture
def results_file(tmp_path):
    """`results_file(name, found)`: detections of the dogs in these images, and none of the cat."""

    def write(name, images):
        entry = {"category_id": 7, "bbox": [10, 20, 30, 40], "score": 0.5}
        path = tmp_path / name
        path.write_text(json.dumps([{"image_id": image_id, **entry} for image_id in images]))
        return path

    return write


def analyze(*arguments):
    assert main(["retinanet-jax", "analyze", *map(str, arguments)]) == 0


def test_a_file_of_detections_is_analyzed_and_compared(dataset, results_file, tmp_path, capsys):
    """All dogs are found, and one of three: their AP is 1 and 1/3 (34 of 101 recalls)."""
    file, other = results_file("a.json", IMAGE_IDS), results_file("b.json", IMAGE_IDS[:1])
    output = tmp_path / "out"
    flags = (f"--detections={file}", f"--data={dataset}", f"--output={output}")
    analyze(*flags, f"--compare={other}")
    lines = capsys.readouterr().out.splitlines()
    assert f"{file}: 3 detections of 1 of the 2 categories in 3 of the 3 images" in lines
    assert "3 images, 4 objects, 3 detections" in lines
    assert lines[-1] == f"written to {output / 'index.html'}"
    start = lines.index("3 images, 4 objects, 3 detections")
    assert len(lines[start:]) <= 40
    assert lines[start + 1].startswith("AP 0.500")
    analysis = json.loads((output / "analysis.json").read_text())
    assert analysis["comparison"]["other"] == str(other)
    difference = analysis["comparison"]["metrics"]["AP"]["difference"]
    assert difference == pytest.approx((1 - 34 / 101) / 2)
    provenance = analysis["provenance"]
    assert provenance["detections"] == str(file)
    assert provenance["command"].startswith("retinanet-jax analyze --")
    for flag in (*flags, f"--compare={other}"):
        assert flag in provenance["command"].split()
    assert analysis["focal_loss"] is None
    assert (output / "index.html").read_bytes().startswith(b"<!DOCTYPE html>")
    analyze(*flags)  # replaces its own files
    assert json.loads((output / "analysis.json").read_text())["comparison"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "give --workdir=DIR of a run, or --detections=FILE --data=FOLDER_OR_FILE --output=DIR",
        ),
        (("--workdir=x", "--detections=y"), "give --workdir=DIR of a run, or --detections=FILE"),
        (("--detections={tmp}/a.json", "--data={tmp}/mine"), "no --output: give a folder on a loc"),
        (("--workdir=gs://bucket/run",), "no --output: give a folder on a local disk for the page"),
        (("--workdir={tmp}",), "no checkpoint here; give the working directory of a training run"),
        (
            ("--detections={tmp}/a.json", "--output={tmp}/out"),
            "give --data=FOLDER_OR_FILE, the dataset that they were computed from",
        ),
        (
            ("--detections={tmp}/a.json", "--data={tmp}/mine", "--store_thresholds", "--output=o"),
            "--store_thresholds requires the checkpoint of a --workdir; leave it out.",
        ),
        (
            ("--detections={tmp}/a.json", "--data={tmp}/mine", "--output={tmp}/a.json"),
            "a.json",
        ),
        (
            (
                "--detections={tmp}/a.json",
                "--data={tmp}/mine",
                "--output={tmp}/out",
                "--compare={tmp}/none",
            ),
            "none: no checkpoint here",
        ),
        (
            (
                "--detections={tmp}/a.json",
                "--data={tmp}/mine",
                "--output={tmp}/out",
                "--compare={tmp}/other.json",
            ),
            "other.json: entry 0 (the first one is 0) has image_id=5, which is not in",
        ),
    ],
)
def test_mistakes_are_errors_of_one_line(
    error_line, dataset, results_file, tmp_path, arguments, message
):
    results_file("a.json", IMAGE_IDS)
    results_file("other.json", (5,))
    line = error_line("analyze", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert message in line
    assert not (tmp_path / "out/index.html").exists()


@pytest.mark.parametrize("missing", ["hotcoco", "jinja2"])
def test_a_missing_package_is_named_before_anything_is_computed(
    error_line, dataset, results_file, tmp_path, monkeypatch, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delattr(command, "evaluate_detections")
    file = results_file("a.json", IMAGE_IDS)
    line = error_line(
        "analyze", f"--detections={file}", f"--data={dataset}", f"--output={tmp_path / 'out'}"
    )
    assert missing in line
    assert 'pip install "retinanet-jax[analyze]"' in line


def test_detections_of_different_datasets_are_not_compared(
    error_line, dataset, results_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "open_run", lambda values, workdir: other)
    file = results_file("a.json", IMAGE_IDS)
    described = {"name": "theirs.json", "num_images": 5, "sha256": "0"}
    other = command.Detected(None, [], command.report.Origin(described))
    flags = (f"--detections={file}", f"--data={dataset}", f"--output={tmp_path / 'out'}")
    assert error_line("analyze", *flags, f"--compare={tmp_path}") == (
        f"error: --compare={tmp_path} is of theirs.json (5 images), and not of mine/instances.json "
        "(3 images); give --data=FOLDER_OR_FILE to evaluate both on the same dataset."
    )


# ---- a run


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    """A copy of a finished run, without what it has compiled."""
    monkeypatch.setattr(command, "use_run_cache", lambda workdir: None)
    return shutil.copytree(
        tiny_run.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("compilation_cache")
    )


@pytest.mark.slow
def test_a_run_is_analyzed_from_its_stored_detections(run, monkeypatch, capsys):
    """And compared with itself."""
    monkeypatch.delattr(command, "train_or_evaluate")
    analyze(f"--workdir={run}", f"--compare={run}")
    printed = capsys.readouterr().out
    assert f"{run / 'eval/8_detections.json'}: " in printed
    analysis = json.loads((run / "analysis/8/analysis.json").read_text())
    evaluation = json.loads((run / "eval/8.json").read_text())
    assert analysis["summary"]["metrics"]["AP"] == pytest.approx(evaluation["AP"], abs=1e-12)
    assert analysis["comparison"]["metrics"]["AP"]["difference"] == 0
    assert analysis["provenance"]["step"] == 8
    assert analysis["provenance"]["settings"] == evaluation["settings"]
    assert analysis["missed"]["by_anchor_iou"]  # which requires the config
    assert analysis["focal_loss"]["images"] == 8
    assert checkpoint.load(run).thresholds is None


@pytest.mark.slow
def test_thresholds_are_stored_for_predict(run, capsys):
    analyze(f"--workdir={run}", "--store_thresholds", f"--output={run / 'page'}")
    stored = checkpoint.load(run).thresholds
    assert f"stored in {run / 'checkpoints/8'}: the score thresholds of " in capsys.readouterr().out
    analysis = json.loads((run / "page/analysis.json").read_text())
    assert stored.overall == pytest.approx(analysis["summary"]["threshold"], abs=1e-6)
    assert stored.overall < analysis["summary"]["threshold"]
    defined = {
        row["name"]: row["threshold"]
        for row in analysis["categories"]
        if row["threshold"] is not None
    }
    assert dict(stored.categories) == pytest.approx(defined, abs=1e-6)
    assert Detector.load(run).checkpoint.score_thresholds == stored.by_class(
        checkpoint.load(run).categories
    )


@pytest.mark.slow
def test_a_run_is_evaluated_first_with_other_settings(tiny_run, program):
    """In a folder of its own, as the evaluation."""
    workdir, setting = tiny_run.workdir, "--config.detections.iou_threshold=0.6"
    for is_evaluated in (False, True):
        status, stdout, stderr = program.run("analyze", f"--workdir={workdir}", setting)
        assert status == 0, stderr
        assert ("is not evaluated yet on " in stdout) != is_evaluated
    (page,) = (workdir / "analysis").glob("shapes-2-instances-*/8/index.html")
    folder = page.parent.parent.name
    assert (workdir / "eval" / folder / "8.json").exists()
    assert not (workdir / "analysis/8").exists()
