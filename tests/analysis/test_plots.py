"""The plots show the numbers of the analysis, in the colors of the page, for any names."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from analysis_examples import HOSTILE, empty_analysis, example_analysis

from retinanet_jax.analysis import plots

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawings():
    return plots.plots(example_analysis())


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bar_widths(svg):
    """Return the widths of the bars in a plot of horizontal bars, from the top."""
    paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    bars = [path.get("d") for path in paths if path.get("style") == "fill: var(--series-1)"]
    corners = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", bar)] for bar in bars]
    return [max(xs) - min(xs) for xs in corners]


def test_each_part_has_its_plot_and_undefined_parts_have_none(drawings):
    expected = {"errors", "curves", "threshold_curve", "calibration", "confusion", "categories"}
    assert set(drawings) == expected | {"missed_by_size", "missed_by_anchor_iou", "focal_loss"}
    assert plots.plots(empty_analysis()) == {}


def test_bars_are_as_long_as_their_numbers(drawings):
    widths = bar_widths(drawings["errors"])
    assert widths == pytest.approx([widths[-1] * i / 5 for i in range(6)], abs=0.01)
    names = ("class", "localization", "both", "duplicate", "background", "missed")
    expected = {*names, *(f"{0.02 * i:.3f} ({13 * i})" for i in range(6))}
    assert expected <= set(texts(drawings["errors"]))


def test_the_missed_objects_have_their_fractions(drawings):
    assert {"0.625 (25 of 40)", "0.120 (60 of 500)", "undefined (0 of 0)"} <= set(
        texts(drawings["missed_by_size"])
    )


def test_the_confusion_matrix_has_its_counts_and_the_fractions_of_its_rows():
    confusion = {"categories": ["a", "b"], "matrix": [[6, 1, 3], [0, 5, 0], [2, 0, 0]]}
    svg = plots.plots(empty_analysis() | {"confusion": confusion})["confusion"]
    assert [text for text in texts(svg) if text.isdigit()] == list("613050200")
    cells = [
        float((re.search(r"fill-opacity: ([\d.]+)", style) or [0, 1])[1])
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if (style := path.get("style", "")).startswith("fill: var(--series-1)")
    ]
    assert cells == pytest.approx([0.6, 0.1, 0.3, 1, 1], abs=0.01)  # 0 has no color


def test_the_worst_categories_have_names_among_many_curves():
    curves = [{"category": None, "recall": [0, 1], "precision": [1, 0.5]}]
    # matplotlib omits labels that begin with "_" from a legend.
    names = ["a", "_b", "c", "d", "e", "f", "g"]
    precisions = [0.9, 0.1, 0.8, 0.3, 0.2, 0.7, 0.4]
    curves += [
        {"category": name, "recall": [0, 1], "precision": [p, p]}
        for name, p in zip(names, precisions, strict=True)
    ]
    svg = plots.plots(empty_analysis() | {"curves": curves})["curves"]
    legend = [text.strip("\u200b") for text in texts(svg)]
    assert [name for name in [*names, "all categories"] if name in legend] == [
        *("_b", "d", "e", "g", "all categories")
    ]


def test_all_colors_and_fonts_are_those_of_the_page(drawings):
    for svg in drawings.values():
        assert not re.search(r"#[0-9a-f]{6}\b|DejaVu", svg)
        assert "var(--text)" in svg


def test_names_are_text_and_nothing_else():
    drawings = plots.plots(example_analysis(HOSTILE))
    for name, svg in drawings.items():
        root = ElementTree.fromstring(svg)  # it is well-formed
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= {"svg", "defs", "g", "path", "use", "text", "clipPath", "rect"}, name
    names = texts(drawings["categories"])
    assert "#000011 & #000001" in names  # not replaced as the colors of the plots are
    assert plots.short_name("$\\alpha$ {{ 7 * 7 }} {% raw %}") in names  # not a formula


def test_two_plots_on_a_page_have_no_id_in_common(drawings):
    ids = [name for svg in drawings.values() for name in re.findall(r' id="([^"]*)"', svg)]
    assert ids
    assert len(ids) == len(set(ids))


def test_a_threshold_curve_may_be_undefined_in_places(drawings):
    assert "best F1 at 0.42" in texts(drawings["threshold_curve"])
    (path,) = [
        path.get("d")
        for path in ElementTree.fromstring(drawings["threshold_curve"]).iter(f"{SVG}path")
        if "stroke: var(--series-2)" in path.get("style") and len(path.get("d")) > 100
    ]
    assert math.isfinite(sum(map(float, re.findall(r"[\d.]+", path))))
