"""What will limit AP is logged before a run: no object, dense images, boxes without an area."""

import json
import types

import pytest

from retinanet_jax import datasets
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.packed import PackedSource, write_packed
from retinanet_jax.evaluation import evaluator
from retinanet_jax.training import loop


@pytest.fixture
def dataset(synthetic_dataset, tmp_path, caplog):
    """Return a function from annotations to the file of a dataset with these in 20 images."""
    caplog.set_level("WARNING", logger="absl")
    content = json.loads((synthetic_dataset / "instances.json").read_text())

    def write(boxes_of_images, **fields):
        annotations = [
            {
                "id": 1_000 * index + k,
                "image_id": content["images"][index]["id"],
                "category_id": content["categories"][k % 2]["id"],
                "bbox": box,
                **fields,
            }
            for index, boxes in enumerate(boxes_of_images)
            for k, box in enumerate(boxes)
        ]
        path = tmp_path / "changed.json"
        path.write_text(json.dumps({**content, "annotations": annotations}))
        return path

    return write


@pytest.fixture
def check(dataset, synthetic_dataset, caplog):
    """Return a function from annotations to what is logged before a run, after the file's name."""

    def check_dataset(boxes_of_images, max_detections=100, **fields):
        path = dataset(boxes_of_images, **fields)
        source = CocoSource(path, synthetic_dataset / "images")
        datasets.check_evaluation_data(source, max_detections=max_detections)
        return [message.removeprefix(f"{path}: ") for message in caplog.messages]

    return check_dataset


BOX, EMPTY = [4.0, 4.0, 20.0, 20.0], [0.0, 0.0, 0.0, 0.0]


def test_data_with_objects_has_no_warning(check):
    assert check([[BOX] * 100, [BOX]]) == []


def test_ap_without_an_object_is_undefined(check):
    assert check([]) == [
        "none of its 20 images has a box, so that AP will be undefined; give evaluation data with "
        "objects."
    ]


def test_ap_with_crowd_regions_only_is_undefined(check):
    (message,) = check([[BOX, BOX]], iscrowd=1)
    assert message.startswith("all of its 2 boxes are crowd regions")
    assert "AP will be undefined" in message


def test_ap_with_empty_boxes_only_is_0(check):
    empty, no_object = check([[EMPTY], [EMPTY]])
    assert empty.startswith("2 boxes have no area inside their image")
    assert "AP counts each as missed" in empty
    assert "AP will be 0" in no_object


def test_images_with_more_objects_than_are_counted_are_named(check):
    """Of the first image's 230 objects, 115 are of each category."""
    (message,) = check([[BOX] * 230, [BOX] * 130], max_detections=100)
    assert message == (
        "1 of 20 images have more than 100 objects of a category (at most 115), but COCO's AP "
        "counts 100 detections of a category in an image; 2 of 20 images have more than 100 "
        "objects (at most 230), but 100 objects of an image are detected; give "
        "--config.detections.max_detections=230 or more, with which AP of all detections is given "
        "next to COCO's (first: 000000.jpg: 115 of ellipse)."
    )


def test_with_enough_detections_the_metric_of_all_is_named(check):
    (message,) = check([[BOX] * 230], max_detections=300)
    assert "; AP of all detections, AP_max300, is given next to COCO's (first: " in message
    assert "are detected" not in message


def test_empty_boxes_of_packed_data_are_named_too(dataset, synthetic_dataset, tmp_path, caplog):
    source = CocoSource(dataset([[BOX, EMPTY]]), synthetic_dataset / "images")
    sides = {"short_side": 64, "long_side": 64, "resize": "bilinear"}
    write_packed(source, tmp_path / "packed", **sides, progress=lambda _: None)
    caplog.clear()
    PackedSource(tmp_path / "packed")
    (message,) = caplog.messages
    assert "packed: 1 boxes have no area inside their image" in message
    assert "AP counts each as missed" in message


@pytest.fixture
def dense_config(toy_config, dataset, synthetic_dataset):
    """A config of which the evaluation data is dense."""
    images = str(synthetic_dataset / "images")
    toy_config.data.train.update(
        source="coco", annotations=str(synthetic_dataset / "instances.json"), images=images
    )
    dense = str(dataset([[BOX] * 230]))
    toy_config.data.eval.update(source="coco", annotations=dense, images=images)
    toy_config.detections.max_detections = 229
    return toy_config


def test_training_checks_its_evaluation_data(dense_config, tmp_path, caplog):
    loop.open_data(dense_config, tmp_path, evaluates=True)
    assert "give --config.detections.max_detections=230 or more" in caplog.text
    caplog.clear()
    loop.open_data(dense_config, tmp_path, evaluates=False)
    assert caplog.text == ""


def test_evaluate_checks_its_data_before_it_starts(dense_config, tmp_path, caplog, monkeypatch):
    def start(_):
        assert "give --config.detections.max_detections=230 or more" in caplog.text
        raise KeyboardInterrupt

    categories = datasets.open_evaluation(dense_config, tmp_path).categories
    trained = types.SimpleNamespace(
        config=dense_config, categories=categories, folder=tmp_path, step=1
    )
    monkeypatch.setattr(evaluator.checkpoint, "load", lambda _: trained)
    monkeypatch.setattr(evaluator.sharding, "make_mesh", start)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(dense_config, tmp_path)
