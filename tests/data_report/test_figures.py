"""The histograms are plotted for any boxes and any names."""

import io

import numpy as np
import pytest

from retinanet_jax.configs import r50_fpn
from retinanet_jax.data_report import figures
from retinanet_jax.data_report.anchor_choice import AnchorChoice, ClassCounts, EpochBoxes


class Named:
    """The categories of a dataset."""

    def __init__(self, *names):
        self.categories = [Category(name) for name in names]


class Category:
    def __init__(self, name):
        self.name = name


def choice(sides, classes, covered, num_classes):
    classes, covered = np.array(classes), np.array(covered)
    counts = [np.bincount(k, minlength=num_classes) for k in (classes, classes[~covered])]
    ious = np.where(covered, 0.9, 0.0).astype(np.float32)
    boxes = EpochBoxes(np.zeros(len(classes), int), classes, np.array(sides), ious, covered)
    return AnchorChoice("configured", {}, boxes, ClassCounts(*counts), 1000.0)


def test_categories_are_plotted_with_the_worst_at_the_top():
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    axis = matplotlib_figure.Figure().subplots()
    # Class 1 has no box, class 2 the largest fraction of uncovered boxes.
    classes = [0] * 40 + [2] * 20 + [3] * 60
    covered = [True] * 30 + [False] * 10 + [True] * 5 + [False] * 15 + [True] * 60
    boxes = choice(np.full((120, 2), 9.0), classes, covered, num_classes=4)
    figures._plot_categories(axis, Named("rbc", "none", "platelets", "wbc"), boxes)
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["wbc (60)", "rbc (40)", "platelets (20)"]  # from the bottom up
    fractions = [bar.get_width() for bar in axis.patches]
    assert fractions == [1, 0.75, 0.25, 0, 0.25, 0.75]


@pytest.mark.parametrize(
    "names", [("$a_{$", "<b>&amp;"), ("mèche", "猫"), ("x" * 300, "a\nb"), ("\ud800", "%s{}")]
)
def test_any_name_is_plotted(names):
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    figure = matplotlib_figure.Figure()
    boxes = choice([[8.0, 8.0], [9.0, 3.0]], [0, 1], [True, False], num_classes=2)
    figures._plot_categories(figure.subplots(), Named(*names), boxes)
    figure.savefig(io.BytesIO())


@pytest.mark.slow
@pytest.mark.parametrize("side", [1e-30, 1.0, 32.0, 1e6])
def test_boxes_of_one_size_are_plotted(side):
    """Also those of the size of an anchor, and those far from all."""
    pytest.importorskip("matplotlib")
    boxes = choice([[side, side]] * 3, [0] * 3, [side == 32] * 3, num_classes=1)
    png = figures.histograms(r50_fpn.get_config("tiny"), Named("cat"), boxes)
    assert png.startswith(b"\x89PNG")
