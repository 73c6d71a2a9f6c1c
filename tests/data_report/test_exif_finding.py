"""The report states how images with an EXIF orientation were annotated, and what shows it."""

import pytest

from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.exif import ExifDecision
from retinanet_jax.data_report.findings import INFO, WARNING
from retinanet_jax.data_report.image_checks import check_exif


@pytest.fixture
def check(synthetic_dataset):
    """Return `check(*decisions)`, the findings about a source with these decisions."""
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")

    def check(*decisions: ExifDecision):
        source.exif_decisions = decisions
        return check_exif(source)

    return check


def test_images_that_contradict_each_other_are_a_warning(check):
    (finding,) = check(ExifDecision("ignored", 1, 2, 3, 9))
    assert finding.severity == WARNING
    assert finding.message == (
        "boxes are read as drawn on images without their EXIF orientation: 1 images show that it "
        "was applied, 2 that it was not, and 3 with an orientation do not show it (of 9 examined)"
    )
    assert "--config.data.exif" in finding.advice


def test_each_decision_is_reported(check):
    applied, none = check(ExifDecision("applied", 2, 0, 1, 3), ExifDecision("applied", 0, 0, 0, 7))
    assert (applied.severity, applied.advice) == (INFO, "")
    assert "drawn on images with their EXIF orientation: 2 images" in applied.message
    assert none.message == "none of 7 examined images has an EXIF orientation"
    assert check() == []
