"""The detections of one image in the forms of other programs."""

import json
import sys

import numpy as np
import pytest

from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections

LARGE = 2**70
CATEGORIES = (Category(3, "dog"), Category(LARGE, "cat <b>\n"))


def detections(count: int) -> Detections:
    """Return the first of two detections in an image of 40 x 60 pixels."""
    return Detections(
        image=np.zeros((40, 60, 3), np.uint8),
        boxes=np.float32([[3, 2, 30.5, 20], [0, 0, 5, 9]])[:count],
        scores=np.float32([0.75, 0.25])[:count],
        classes=np.array([1, 0])[:count],
        categories=CATEGORIES,
    )


def test_the_dict_has_corners_scores_names_and_ids():
    expected = {
        "width": 60,
        "height": 40,
        "detections": [
            {
                "box": [3.0, 2.0, 30.5, 20.0],
                "score": 0.75,
                "class_name": "cat <b>\n",
                "category_id": LARGE,
            },
            {"box": [0.0, 0.0, 5.0, 9.0], "score": 0.25, "class_name": "dog", "category_id": 3},
        ],
    }
    assert detections(2).to_dict() == expected
    assert json.loads(json.dumps(detections(2).to_dict())) == expected


def test_the_dict_of_no_detection_has_the_size_of_the_image():
    assert detections(0).to_dict() == {"width": 60, "height": 40, "detections": []}


def test_without_supervision_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match=r'run `pip install "retinanet-jax\[supervision\]"`\.$'):
        detections(1).to_supervision()


# It warns if OpenCV, which it does not require, is missing.
@pytest.mark.filterwarnings("ignore:OpenCV")
@pytest.mark.parametrize("count", [0, 2])
def test_supervision_has_the_same_boxes_scores_and_names(count):
    supervision = pytest.importorskip("supervision")
    taken = detections(count).to_supervision()
    assert isinstance(taken, supervision.Detections)
    np.testing.assert_array_equal(taken.xyxy, np.float32([[3, 2, 30.5, 20], [0, 0, 5, 9]])[:count])
    assert taken.confidence.tolist() == [0.75, 0.25][:count]
    assert taken.class_id.tolist() == [1, 0][:count]
    assert taken.data["class_name"].tolist() == ["cat <b>\n", "dog"][:count]
    assert taken.data["category_id"].tolist() == [LARGE, 3][:count]


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_selects_and_draws_them():
    supervision = pytest.importorskip("supervision")
    taken = detections(2).to_supervision()
    selected = taken[taken.confidence > 0.5]
    assert selected.data["class_name"].tolist() == ["cat <b>\n"]
    image = supervision.BoxAnnotator().annotate(np.zeros((40, 60, 3), np.uint8), selected)
    assert image[2, 3].any()
    assert not image[30:].any()
