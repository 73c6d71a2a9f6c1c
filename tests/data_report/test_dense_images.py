"""Images with more objects than COCO's AP counts, or the detector returns, are named."""

import pytest

from retinanet_jax import datasets
from retinanet_jax.data_report.dense_images import check_dense_images


@pytest.fixture(scope="module")
def open_dataset(tmp_path_factory, make_dataset, make_config):
    """Return a function from the numbers of (cats, dogs) of each image to a dataset."""

    def open_it(*counts):
        tmp_path = tmp_path_factory.mktemp("dense")
        dataset = make_dataset(tmp_path / "train")
        for cats, dogs in counts:
            image_id = dataset.add_image()
            for k in range(cats + dogs):
                box = [k % 12 * 10, k // 12 * 8, 8, 7]
                dataset.add_box(image_id, box, "cat" if k < cats else "dog")
        for _ in range(150):  # crowd regions are no objects
            dataset.add_box(1, [0, 0, 50, 50], iscrowd=1)
        return datasets.open_training(make_config(dataset.write(), {}), tmp_path)

    return open_it


def test_images_with_more_than_a_hundred_of_a_category_are_named(open_dataset):
    source = open_dataset((101, 20), (60, 60), (100, 0), (0, 0))
    finding = check_dense_images(source, max_detections=100)
    assert finding.severity == "warning"
    assert "1 of 4 images have more than 100 objects of a category (at most 101)" in finding.message
    assert "2 of 4 images have more than 100 objects (at most 121)" in finding.message
    assert finding.advice.startswith("give --config.detections.max_detections=121 or more")
    assert finding.examples == ("1.png: 101 of cat",)
    # With enough detections, the limit of COCO's AP remains.
    finding = check_dense_images(source, max_detections=200)
    assert finding.severity == "warning"
    assert "next to COCO's" in finding.advice
    assert "--config" not in finding.advice


def test_images_of_few_objects_are_no_problem(open_dataset):
    finding = check_dense_images(open_dataset((100, 0), (50, 50)), max_detections=100)
    assert finding.severity == "info"
    assert (finding.advice, finding.examples) == ("", ())
    assert finding.message == "an image has at most 100 objects"
    assert check_dense_images(open_dataset((0, 0)), max_detections=1).severity == "info"
