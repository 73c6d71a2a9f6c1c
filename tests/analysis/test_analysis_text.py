"""The summary of an analysis in the terminal."""

from analysis_examples import HOSTILE, empty_analysis, example_analysis

from retinanet_jax.analysis.text import summarize


def test_the_summary_has_the_numbers_of_the_analysis():
    lines = summarize(example_analysis()).splitlines()
    assert lines[:12] == [
        "120 images, 900 objects, 4300 detections",
        "AP 0.610 [0.583, 0.637], AP50 0.610 [0.810, 0.850], AP75 0.610 (intervals of 95%)",
        "F1 0.710 at the score 0.420: precision 0.780, recall 0.650",
        "compared with circle:",
        "  AP +0.012 [-0.003, +0.020], higher with probability 90%",
        "errors by type, and the AP50 that they cost:",
        "  class               0   +0.000",
        "  localization       13   +0.020",
        "  both               26   +0.040",
        "  duplicate          39   +0.060",
        "  background         52   +0.080",
        "  missed             65   +0.100",
    ]
    advice = (
        "circle is never detected: None of the 40 objects of circle is detected: check its labels."
    )
    assert lines[12:] == [
        "lowest AP (2 of 3 categories have objects):",
        f"  {'circle':<30} AP 0.100, 0 of 1 objects missed, mostly class",
        f"  {'triangle':<30} AP 0.633, 2 of 75 objects missed, mostly both",
        "what to try:",
        *(f"  {severity}: {advice}" for severity in ("error", "warning", "info")),
    ]


def test_the_summary_of_any_dataset_is_at_most_40_printable_lines():
    names = [f"{name}{k}" for k in range(100) for name in HOSTILE]
    analysis = example_analysis(names)
    analysis["advice"] = [
        {"title": "t " * 200, "text": "w " * 5_000, "number": 1, "severity": "error"}
    ] * 30
    lines = summarize(analysis).split("\n")
    assert len(lines) <= 40
    assert all(len(line) <= 100 and line.isprintable() for line in lines)
    assert lines[-1] == "  25 more on the page"


def test_what_is_undefined_is_named():
    text = summarize(empty_analysis())
    assert text.splitlines()[:4] == [
        "0 images, 0 objects, 0 detections",
        "AP undefined, AP50 undefined, AP75 undefined",
        "errors by type, and the AP50 that they cost:",
        "  class               0",
    ]
    assert "lowest AP" not in text
    analysis = example_analysis()
    values = {"difference": 0.5, "low": None, "high": None, "probability": None}
    analysis["comparison"] = {"other": "y", "metrics": {"AP": values}, "categories": []}
    assert "compared with y:\n  AP +0.500\n" in summarize(analysis)
    analysis["comparison"]["metrics"]["AP"] = dict.fromkeys(values)
    assert "compared with y:\n  AP undefined\n" in summarize(analysis)
