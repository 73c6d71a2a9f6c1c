"""The report has a finding for every planted problem, and none for a dataset without problems."""

import collections
import contextlib
import io
import json
import pathlib
import shlex
import sys
from typing import NamedTuple

import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from retinanet_jax.data_report.findings import Finding
from retinanet_jax.data_report.report import make_report, sample_indices

NO_DATA = {"source": "coco", "annotations": "", "images": ""}


class Result(NamedTuple):
    """A finished report."""

    findings: dict[str, Finding]  # by subject
    output: pathlib.Path
    printed: str


def report_on(config, output, max_images=0) -> Result:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        findings = make_report(config, output, max_images)
    subjects = collections.Counter(finding.subject for finding in findings)
    assert max(subjects.values()) == 1
    return Result({f.subject: f for f in findings}, output, printed.getvalue())


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_dataset, make_config) -> Result:
    """The report on a dataset with every problem that it checks; compiling it takes seconds."""
    tmp_path = tmp_path_factory.mktemp("planted")
    train, evaluation = make_dataset(tmp_path / "train"), make_dataset(tmp_path / "eval")
    for _ in range(8):
        train.add_box(train.add_image(), [10, 20, 45, 40])
    train.add_box(1, [5, 5, 0, 40])  # annotation 109
    train.add_box(2, [130, 5, 10, 10])  # 110, outside of its image
    train.add_box(3, [10.1, 20, 45, 40])  # 111, as 103
    train.add_box(4, [10, 20, 45, 40], "dog")  # 112, as 104
    train.add_box(5, [0, 0, 100, 50], iscrowd=1)  # 113
    train.add_box(6, [100, 60, 50, 20])  # 114, 22 pixels of which are outside
    for image_id in range(1, 5):
        train.add_box(image_id, [80, 10, 4, 4], "ant")
        train.add_box(image_id, [5, 84, 110, 12], "snake")
    for _ in range(12):
        train.add_image(128, 96)  # empty
    duplicate = (train.path / "images" / "12.png").read_bytes()
    (train.path / "images" / "13.png").write_bytes(duplicate)

    for _ in range(12):
        evaluation.add_box(evaluation.add_image(), [10, 20, 45, 40], "newt")
    leaked = (train.path / "images" / "7.png").read_bytes()
    (evaluation.path / "images" / "5.png").write_bytes(leaked)
    broken = evaluation.path / "images" / "9.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    config = make_config(train.write(), evaluation.write(), buckets=((192, 192),))
    return report_on(config, tmp_path / "out")


def test_every_planted_problem_has_a_finding(planted):
    expected = {
        "train: categories": (
            "warning",
            "2 of 6 categories have no box, 3 have fewer than 10",
            "11 newt",
        ),
        "train: empty images": ("warning", "12 of 20 images (60.0%) have no object", "9.png"),
        "train: crowd regions": ("warning", "1 of 22 boxes (4.5%)", "5.png: annotation 113 (cat)"),
        "train: boxes without area": ("error", "2 of 22", "1.png: annotation 109 (cat)"),
        "train: boxes outside": ("error", "1 of 22", "6.png: annotation 114 (cat)"),
        "train: duplicate boxes": ("error", "1 of 22", "3.png: annotations 103 and 111 (cat)"),
        "train: boxes of two classes": (
            "error",
            "1 of 22",
            "4.png: annotations 104 and 112 (cat and dog)",
        ),
        "train: duplicate images": ("warning", "1 of 20", "12.png = 13.png"),
        "eval: images": ("error", "1 of 12 images cannot be read", "9.png: the image is"),
        "eval: categories": ("warning", "5 of 6 categories have no box, 0 have f", "3 cat"),
        "leak": ("error", "1 of 12 images of eval are also in train", "7.png = 5.png"),
        "untrained categories": (
            "error",
            "1 of 1 categories with boxes in eval have none",
            "newt",
        ),
        "coverage": ("error", "9 of 19 boxes (47.4%) have no anchor at IoU 0.5", ": ant, 3 high"),
        "buckets": ("warning", "85.2% of the computed pixels are padding, with 1 shape", ""),
    }
    problems = {name: f for name, f in planted.findings.items() if f.severity != "info"}
    assert set(problems) == set(expected)
    for subject, (severity, message, example) in expected.items():
        finding = problems[subject]
        assert finding.severity == severity, finding
        assert message in finding.message, finding
        assert finding.advice.endswith("."), finding
        assert "\n" not in finding.message + finding.advice
        assert any(example in name for name in finding.examples) or not example, finding


def test_the_advice_is_in_the_files_and_its_flags_work(planted, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    report = json.loads((planted.output / "report.json").read_text())
    assert [finding["severity"] for finding in report["findings"]] == sorted(
        (finding.severity for finding in planted.findings.values()),
        key=["error", "warning", "info"].index,
    )
    # Better anchors for the planted aspect ratios, and the flags that set them.
    configured, *suggested = report["anchors"].values()
    assert configured["covered"] < 0.6
    assert suggested
    assert len(suggested[0]["scales"]) == len(configured["scales"])
    assert len(suggested[0]["ratios"]) == len(configured["ratios"])
    assert suggested[0]["covered"] > 0.7
    assert suggested[0]["covered_by_category"]["snake"] == 1
    assert suggested[0]["covered_by_category"]["unicorn"] is None
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    buckets, more = planted.findings["buckets"].advice.split(" has ")
    assert "8 shapes, each compiled once, have 11.5%" in more
    config_flag = "--config=configs/r50_fpn.py"
    argv = ["program", config_flag, *shlex.split(suggested[0]["flags"]), *shlex.split(buckets)]
    monkeypatch.setattr(sys, "argv", argv)
    values(argv)
    assert list(values.config.anchors.scales) == suggested[0]["scales"]
    assert list(values.config.anchors.ratios) == suggested[0]["ratios"]
    # One shape is configured and one is suggested, for landscape and portrait images together.
    assert values.config.data.buckets == ((96, 96),)
    overheads = {name: table["padding_overhead"] for name, table in report["buckets"].items()}
    assert overheads["configured"] > overheads["one shape"] > overheads["2 suggested shapes"]
    assert report["suggested_buckets"] == [[96, 96]]
    assert planted.printed.index("error    ") < planted.printed.index("warning  ")
    assert (planted.output / "report.txt").read_text() in planted.printed
    assert not list(planted.output.glob("*.partial"))
    rows = {row["name"]: row for row in report["categories"]}
    ant = {"train": 4, "eval": 0, "sampled": 4, "no_anchor": 1.0}
    assert (
        rows["ant"]
        == {"id": 8, "name": "ant", "median_sides": pytest.approx([8 / 3] * 2, 0.01)} | ant
    )
    assert rows["unicorn"]["no_anchor"] is None
    assert rows["unicorn"]["median_sides"] is None


def test_a_dataset_without_problems_has_no_advice(tmp_path, make_dataset, make_config):
    parts = make_dataset(tmp_path / "train"), make_dataset(tmp_path / "evaluation")
    for part in parts:
        for index in range(12):
            image_id = part.add_image()
            for k, name in enumerate(part.categories):
                part.add_box(image_id, [6 * k, 2 * index, 45, 40 + 4 * k], name)
    result = report_on(make_config(*(part.write() for part in parts)), tmp_path / "out")
    assert {finding.severity for finding in result.findings.values()} == {"info"}
    assert not [f for f in result.findings.values() if f.advice or f.examples]


def test_unusable_buckets_are_an_error_and_the_rest_is_still_reported(
    tmp_path, make_dataset, make_config
):
    dataset = make_dataset(tmp_path / "train")
    for _ in range(4):
        dataset.add_box(dataset.add_image(), [10, 20, 45, 40])
    config = make_config(dataset.write(), NO_DATA, buckets=((64, 64),))
    result = report_on(config, tmp_path / "out")
    finding = result.findings["buckets"]
    assert finding.severity == "error"
    assert "is resized to (64, 85), which fits in no bucket of" in finding.message
    assert finding.advice == "give --config.data.buckets='((64, 96),)'."
    assert result.findings["coverage"].severity == "info"
    assert result.findings["eval"].severity == "warning"
    assert (result.output / "batches.png").exists()


def test_a_dataset_without_boxes_is_an_error(tmp_path, make_dataset, make_config):
    dataset = make_dataset(tmp_path / "train")
    dataset.add_image()
    result = report_on(make_config(dataset.write(), NO_DATA), tmp_path / "out")
    assert result.findings["train: content"].severity == "error"
    assert "coverage" not in result.findings
    json.loads((result.output / "report.json").read_text())


def test_only_files_of_earlier_reports_are_replaced(
    tmp_path, monkeypatch, make_dataset, make_config
):
    """Another file of such a name is an error before the dataset is read."""
    dataset = make_dataset(tmp_path / "train")
    dataset.add_image()
    config = make_config(dataset.write(), NO_DATA)
    output = report_on(config, tmp_path / "out").output
    report_on(config, output)

    def fail(*_):
        pytest.fail("the dataset is read")

    monkeypatch.setattr("retinanet_jax.data_report.report.open_parts", fail)
    for name in ("anchors.png", "augmentation.png", "batches.png", "report.json", "report.txt"):
        (output / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"/out/{name} is not replaced"):
            make_report(config, output, 0)
        assert (output / name).read_text() == "mine"
        (output / name).unlink()


def test_a_sample_depends_on_the_seed_and_is_reported(
    tmp_path, monkeypatch, make_dataset, make_config
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    dataset = make_dataset(tmp_path / "train")
    for _ in range(9):
        dataset.add_box(dataset.add_image(), [10, 20, 45, 40])
    fields = dataset.write()
    result = report_on(make_config(fields, fields), tmp_path / "out", max_images=5)
    report = json.loads((result.output / "report.json").read_text())
    assert report["sample"] == {"images": 5, "seed": 0}
    assert "matched on 5 images (seed 0)" in result.printed
    # Whatever the sample, every image's bytes are read.
    assert result.findings["leak"].message.startswith("9 of 9")
    # matplotlib is not required, and the report names the figure that is missing without it.
    (line,) = [x for x in result.printed.splitlines() if "was not written" in x]
    assert line.startswith("anchors.png was not written: this figure requires matplotlib, which ")
    assert line.endswith('; run `pip install "retinanet-jax[inspect]"`.')
    assert {path.name for path in result.output.glob("[!.]*")} == {
        "report.txt",
        "report.json",
        "batches.png",
        "augmentation.png",
    }
    indices = sample_indices(100, 5, 0)
    assert indices == sorted(set(indices)) == sample_indices(100, 5, 0)
    assert indices != sample_indices(100, 5, 1)
    assert sample_indices(4, 0, 0) == sample_indices(4, 9, 0) == [0, 1, 2, 3]


def test_histograms_are_plotted(planted):
    pytest.importorskip("matplotlib")
    with Image.open(planted.output / "anchors.png") as image:
        assert min(image.size) > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: give --config=FILE --output=DIR; --help explains them."),
        (("--config=configs/shpes.py", "--output={tmp}/o"), "configs/shpes.py"),
        (("--config=configs/r50_fpn.py", "--output={tmp}/o"), "data/coco/"),
        (("--config=configs/shapes.py:tiny", "--output={tmp}/file"), "{tmp}/file"),
        (
            ("--config=configs/shapes.py:tiny", "--output={tmp}/o", "--max_images=-1"),
            "--max_images=-1 must not be negative; 0 means all images.",
        ),
        (
            ("--config=configs/shapes.py:tiny", "--output={tmp}/o", "--config.data.sede=1"),
            "sede",
        ),
    ],
)
def test_an_invalid_flag_ends_the_command_with_one_line(program, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    status, _, stderr = program.run("inspect", *(a.format(tmp=tmp_path) for a in arguments))
    assert status == 1
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert message.format(tmp=tmp_path) in line
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_the_synthetic_dataset_has_no_error(program, tmp_path):
    status, stdout, stderr = program.run(
        "inspect", "--config=configs/shapes.py:tiny", f"--output={tmp_path}"
    )
    assert status == 0, stderr
    assert "error  " not in stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"report.json", "batches.png"}
