"""Each category is judged: a rare one is not hidden behind the covered boxes of the others."""

import numpy as np
import pytest

from retinanet_jax.configs import r50_fpn
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.data_report.anchor_choice import AnchorChoice, ClassCounts, EpochBoxes
from retinanet_jax.data_report.anchor_fit import AnchorFit, check_any_box, check_coverage
from retinanet_jax.data_report.summary import MAX_LINE
from retinanet_jax.data_report.views import View


class Categories(Source):
    """A dataset of one image without boxes, and of some categories."""

    def __init__(self, names):
        super().__init__(
            "categories",
            image_ids=[1],
            file_names=["i.png"],
            sizes=np.array([[90, 90]], np.int32),
            categories=[Category(k, name) for k, name in enumerate(names)],
            objects=ObjectList().to_objects(),
        )

    def read(self, index):
        raise AssertionError("no image is read")


def choice(boxes, uncovered, **fields):
    """Return a choice with these numbers of boxes of each class, squares of 10 pixels."""
    classes = np.repeat(np.arange(len(boxes)), boxes)
    covered = np.concatenate([np.arange(n) >= m for n, m in zip(boxes, uncovered, strict=True)])
    count = len(classes)
    return AnchorChoice(
        "choice",
        fields,
        EpochBoxes(
            image_index=np.zeros(count, int),
            classes=classes,
            sides=np.full((count, 2), 10.0),
            ious=np.where(covered, 0.9, 0.1).astype(np.float32),
            covered=covered,
        ),
        ClassCounts(np.array(boxes), np.array(uncovered)),
        1000.0,
    )


def finding(configured, *proposals, names=None):
    fit = AnchorFit(configured, proposals, np.ones((1, 3), int), np.array([1]))
    names = names or [f"c{k}" for k in range(len(configured.classes.boxes))]
    return check_coverage(r50_fpn.get_config("tiny"), Categories(names), fit)


@pytest.mark.parametrize(
    ("boxes", "uncovered", "severity"),
    [
        ((1000, 1000), (50, 50), "info"),
        ((1000,), (51,), "warning"),
        ((1000,), (250,), "warning"),
        ((1000,), (251,), "error"),
        ((1400, 100), (0, 64), "error"),  # 4.3 % of all boxes
        ((1400, 100), (0, 50), "warning"),
        ((1400, 100), (0, 25), "info"),
        # A few boxes prove little: they are judged as if there were ten.
        ((1400, 1), (0, 1), "info"),
        ((1400, 2), (0, 2), "info"),
        ((1400, 3), (0, 3), "warning"),
        ((1400, 5), (0, 5), "warning"),
        ((1400, 6), (0, 6), "error"),
        ((1400, 0, 100), (0, 0, 64), "error"),  # a category without boxes
    ],
)
def test_the_worst_category_decides(boxes, uncovered, severity):
    assert finding(choice(boxes, uncovered)).severity == severity


def test_the_message_names_the_worst_categories_first():
    configured = choice((5000, 100, 40, 9, 20), (10, 60, 40, 9, 6))
    names = ["rbc", "platelets", "speck", "rare", "almost"]
    result = finding(configured, names=names)
    assert "125 of 5169 boxes (2.4%) have no anchor at IoU 0.5" in result.message
    listed = (
        "speck 40 of 40 (100.0%), rare 9 of 9 (100.0%), platelets 60 of 100 (60.0%), and 1 more"
    )
    assert f"of {listed}:" in result.message
    assert "100% of these are smaller than the smallest anchor" in result.message
    assert "no other anchors and no other image size were found" in result.advice
    # The examples are of these categories, and not of the boxes that are as badly covered.
    assert not any("rbc" in example for example in result.examples)


def test_the_advice_is_the_first_proposal_with_what_it_gives_each_category():
    configured = choice((1400, 100), (0, 64))
    proposals = [
        choice((1400, 100), (3, 2), **{"anchors.base_scale": 2.0}),
        choice((1400, 100), (0, 9), **{"data.short_sides": (1200,)}),
    ]
    assert finding(configured, *proposals, names=["rbc", "platelets"]).advice == (
        "--config.anchors.base_scale=2.0 leaves 0.3%, of platelets 2 of 100 (2.0%); "
        "other choices are in the table of anchors below."
    )


def test_a_thousand_categories_with_long_names_are_a_short_message():
    configured = choice([10] * 1000, [10] * 1000)
    result = finding(configured, names=["猫" * 200 + str(k) for k in range(1000)])
    assert "and 997 more" in result.message
    assert len(result.message) < 500
    assert all(len(example) < MAX_LINE for example in result.examples)


@pytest.mark.parametrize(("dropped", "advice"), [(0, "max_images"), (3, "crop_size")])
def test_a_sample_without_a_box_is_a_warning_with_the_reason(dropped, advice):
    empty = np.zeros((0, 4), np.float32)
    view = View(0, (64, 64), (60, 60), empty, np.zeros(0, np.int32), empty, dropped)
    result = check_any_box([view])
    assert (result.severity, result.subject) == ("warning", "coverage")
    assert advice in result.advice
