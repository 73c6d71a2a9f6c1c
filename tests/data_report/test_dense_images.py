"""Images with more objects than COCO's AP or the config's detections can match are named."""

import numpy as np
import pytest

from retinanet_jax import datasets
from retinanet_jax.data_report.annotation_checks import read_boxes
from retinanet_jax.data_report.dense_images import check_dense_images


@pytest.fixture(scope="module")
def dense(tmp_path_factory, make_dataset, make_config):
    """The training data: an image of 101 cats and 20 dogs, one of 60 of both, one of 100 cats."""
    tmp_path = tmp_path_factory.mktemp("dense")
    dataset = make_dataset(tmp_path / "train")
    for cats, dogs in ((101, 20), (60, 60), (100, 0), (0, 0)):
        image_id = dataset.add_image()
        for k in range(cats + dogs):
            box = [k % 12 * 10, k // 12 * 8, 8, 7]
            dataset.add_box(image_id, box, "cat" if k < cats else "dog")
    for _ in range(150):  # crowd regions are no objects
        dataset.add_box(4, [0, 0, 50, 50], iscrowd=1)
    source = datasets.open_training(make_config(dataset.write(), {}), tmp_path)
    return source, read_boxes(source)


def test_images_with_more_than_a_hundred_of_a_category_are_named(dense):
    finding = check_dense_images(*dense, max_detections=100)
    assert finding.severity == "warning"
    assert "1 of 4 images have more than 100 of a category (at most 101)" in finding.message
    assert finding.message.startswith("an image has at most 121 objects")
    assert finding.advice.startswith("give --config.detections.max_detections=121 or more")
    assert finding.examples == ("1.png: 101 of cat",)


def test_enough_detections_leave_the_limit_of_cocos_ap(dense):
    finding = check_dense_images(*dense, max_detections=200)
    assert finding.severity == "warning"
    assert "in addition to COCO's" in finding.advice
    assert "--config" not in finding.advice


def test_images_of_few_objects_are_no_problem(dense):
    source, boxes = dense
    few = boxes._replace(crowd_mask=boxes.crowd_mask | (np.arange(len(boxes.ids)) >= 100))
    finding = check_dense_images(source, few, max_detections=100)
    assert (finding.severity, finding.advice) == ("info", "")
    assert finding.message == "an image has at most 100 objects"
    nothing = boxes._replace(crowd_mask=np.ones(len(boxes.ids), bool))
    assert check_dense_images(source, nothing, max_detections=100).severity == "info"
