"""The analysis has all of its parts, and its files replace only those of earlier analyses."""

import json

import pytest
from analysis_examples import HOSTILE, example_analysis
from memory_source import MemorySource, random_case, results, truth

import retinanet_jax
from retinanet_jax.analysis import report
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.evaluation import records
from retinanet_jax.utils.output_folder import OutputFolder

COMMAND = "retinanet-jax analyze --detections=results.json"


def analyze(content, detections):
    source = MemorySource(content)
    origin = report.Origin(records.describe_dataset(source), COMMAND)
    return report.analyze(evaluate_detections(source, detections), origin)


def keys(part):
    """Return the keys of a part, or of its first entry; none if it is undefined or empty."""
    entry = part[0] if isinstance(part, list) and part else part
    return set(entry or ())


@pytest.fixture(scope="module")
def analysis():
    content, detections = random_case(0)
    return analyze(content, detections)


def test_the_parts_are_those_of_the_page(analysis):
    """The tests of the page use a hand-made analysis, which has to have the same keys."""
    example = example_analysis(["category 1", "category 2", "category 3"])
    assert set(analysis) == set(example)
    undefined = {"comparison", "focal_loss"}
    assert {part for part in example if not analysis[part]} == undefined
    for part in set(example) - undefined:
        assert keys(analysis[part]) == keys(example[part]), part
    assert keys(analysis["missed"]["by_size"]) == keys(example["missed"]["by_size"])
    assert keys(analysis["calibration"]["bins"]) == keys(example["calibration"]["bins"])


def test_the_provenance_is_that_of_the_run(analysis):
    content, detections = random_case(0)
    provenance = analysis["provenance"]
    source = MemorySource(content)
    assert provenance["retinanet_jax"] == retinanet_jax.__version__
    assert provenance["command"] == COMMAND
    assert provenance["checkpoint"] is None
    digest = records.describe_dataset(source)["sha256"]  # as in the files of an evaluation
    assert provenance["dataset"] == {
        **{"name": "memory", "images": 12, "objects": len(content["annotations"])},
        **{"categories": 3, "sha256": digest},
    }
    crowds = sum(annotation["iscrowd"] for annotation in content["annotations"])
    summary = analysis["summary"]
    assert summary["images"] == 12
    assert summary["objects"] == len(content["annotations"]) - crowds
    assert summary["detections"] == len(detections)


def test_files_are_replaced_only_if_an_analysis_wrote_them(analysis, tmp_path):
    for _ in range(2):
        folder = OutputFolder(tmp_path)
        report.prepare(folder)
        report.write(analysis, folder)
    assert json.loads((tmp_path / "analysis.json").read_text()) == analysis
    (tmp_path / "index.html").write_text("my own page")
    with pytest.raises(FileExistsError, match=r"index\.html is not replaced"):
        report.prepare(OutputFolder(tmp_path))
    assert (tmp_path / "index.html").read_text() == "my own page"


@pytest.mark.parametrize(
    ("content", "detections"),
    [
        (truth(), []),
        (truth(crowds=[(1, 1, [0, 0, 50, 50])]), []),
        (truth((1, 1, [0, 0, 50, 50])), []),
        (truth(), results((1, 1, [0, 0, 50, 50], 0.9))),
        (truth((1, 3, [0, 0, 50, 50]), names=HOSTILE[:-1]), results((1, 2, [0, 0, 50, 50], 0.9))),
        (truth((1, 1, [0, 0, 50, 50]), names=list(map(str, range(1000)))), []),
    ],
    ids=["nothing", "a crowd region", "no detections", "no objects", "any names", "1,000 names"],
)
def test_any_dataset_has_an_analysis(content, detections, tmp_path):
    analysis = analyze(content, detections)
    report.write(analysis, OutputFolder(tmp_path))
    assert (tmp_path / "index.html").read_text().endswith("</html>\n")


def test_two_detectors_are_compared_on_the_page(tmp_path):
    content, detections = random_case(1, num_images=4)
    source = MemorySource(content)
    evaluated = evaluate_detections(source, detections)
    worse = evaluate_detections(source, detections[::2])
    origin = report.Origin(records.describe_dataset(source), COMMAND)
    analysis = report.analyze(evaluated, origin, other=("runs/<other>", worse))
    report.write(analysis, OutputFolder(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "Compared with runs/&lt;other&gt;" in page
    assert f"{analysis['comparison']['metrics']['AP']['difference']:+.3f}" in page
