"""The table by category: its numbers, its bounds, and the categories that it points at."""

import numpy as np
import pytest

from retinanet_jax.evaluation.category_table import category_scalars, category_table
from retinanet_jax.evaluation.coco_metrics import coco_metrics


def row(ap, objects=1, images=1):
    return {"AP": ap, "AP50": ap, "AR": ap, "objects": objects, "images": images}


def without_objects():
    return row(None, 0, 0)


@pytest.fixture
def truth_and_results():
    """Two images: 3 dogs and a crowd of dogs, a cat, no bird; a dog and the cat are detected."""
    boxes = [  # image, category, x
        (7, 30, 0.0),
        (7, 30, 100.0),
        (9, 30, 0.0),
        (9, 10, 200.0),
    ]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [x, 0.0, 40.0, 40.0],
            "area": 1600.0,
            "iscrowd": 0,
        }
        for number, (image, category, x) in enumerate(boxes, 1)
    ]
    crowd = {**annotations[0], "id": 9, "image_id": 9, "bbox": [300.0, 0, 90, 90], "iscrowd": 1}
    truth = {
        "images": [{"id": image, "height": 500, "width": 500} for image in (7, 9)],
        "categories": [
            {"id": 30, "name": "dog"},
            {"id": 10, "name": "cat"},
            {"id": 20, "name": "?"},
        ],
        "annotations": [*annotations, crowd],
    }
    fields = ("image_id", "category_id", "bbox")
    results = [{**{field: annotations[k][field] for field in fields}, "score": 0.9} for k in (0, 3)]
    # The box of the cat is 36 pixels wider, with an IoU of 40 / 76 = .53: right only at IoU .5.
    results[1]["bbox"] = [200.0, 0.0, 76.0, 40.0]
    return truth, results


def test_the_numbers_of_a_category(truth_and_results):
    """One of 3 dogs is detected: precision is 1 at the recalls 0, .01, ..., .33."""
    metrics, _ = coco_metrics(*truth_and_results)
    assert list(metrics["categories"]) == ["cat", "?", "dog"]
    assert metrics["categories"]["dog"] == {
        "AP": pytest.approx(34 / 101),
        "AP50": pytest.approx(34 / 101),
        "AR": pytest.approx(1 / 3),
        "objects": 3,
        "images": 2,
    }
    assert metrics["categories"]["cat"] == {
        "AP": pytest.approx(0.1),
        "AP50": pytest.approx(1),
        "AR": pytest.approx(0.1),
        "objects": 1,
        "images": 1,
    }
    assert metrics["categories"]["?"] == without_objects()
    assert metrics["AP_by_category"] == {
        name: values["AP"] for name, values in metrics["categories"].items()
    }


def test_the_mean_over_the_categories_is_cocos(truth_and_results):
    metrics, _ = coco_metrics(*truth_and_results)
    rows = [values for values in metrics["categories"].values() if values["AP"] is not None]
    for name, coco_name in (("AP", "AP"), ("AP50", "AP50"), ("AR", "AR100")):
        np.testing.assert_allclose(np.mean([values[name] for values in rows]), metrics[coco_name])


def test_the_table_is_sorted_and_points_at_a_category_without_ap(truth_and_results):
    truth, results = truth_and_results
    metrics, _ = coco_metrics(truth, results[1:])
    assert category_table(metrics["categories"]).splitlines() == [
        "AP by category, worst first:",
        "          AP     AP50       AR  objects   images",
        "dog    0.000    0.000    0.000        3        2",
        "cat    0.100    1.000    0.100        1        1",
        "no objects, and so no AP: ?",
        "AP is 0 although there are objects: dog (3 objects)",
    ]


def test_categories_of_an_equal_ap_begin_with_the_most_objects():
    table = category_table({"a": row(0.2, 3), "b": row(0.2, 8), "c": row(0.1, 1)})
    assert [line[0] for line in table.splitlines()[2:]] == ["c", "b", "a"]


def test_an_untrained_network_has_no_list_of_all_categories():
    table = category_table({"a": row(0.0, 3), "b": row(0.0004, 8)})
    assert table.splitlines()[-1] == "AP is 0 for all categories that have objects"


def test_a_thousand_categories_are_a_short_table():
    order = np.random.default_rng(0).permutation(1000).tolist()
    categories = {f"category {k}": row(k / 1000, k + 1) for k in order}
    categories |= {f"<b>\n{'x' * 5000}{k}": without_objects() for k in range(1000)}
    table = category_table(categories)
    lines = table.splitlines()
    assert len(lines) == 1 + 1 + 15 + 1 + 5 + 2
    assert [line.split()[1] for line in lines[2:17]] == [str(k) for k in range(15)]
    assert lines[17] == "... 980 more with AP 0.015 to 0.994"
    assert [line.split()[1] for line in lines[18:23]] == [str(k) for k in range(995, 1000)]
    assert max(map(len, lines)) < 220
    assert lines[-2].endswith("and 997 more")
    assert lines[-1] == "AP is 0 although there are objects: category 0 (1 object)"


def test_no_category_with_objects_has_no_table():
    assert category_table({}) == category_table({"a": without_objects()}) == ""


def test_scalars_have_names_that_each_logger_accepts():
    scalars = category_scalars(
        {"cat": row(0.5), "a/b\n<c>": row(0.25), "..": row(0.125), "bird": without_objects()}
    )
    assert scalars == {
        "AP_by_category/cat": 0.5,
        "AP_by_category/a_b _c_": 0.25,
        "AP_by_category/_": 0.125,
    }


def test_names_that_would_be_the_same_are_numbered():
    scalars = category_scalars({"a?": row(0.5), "b": row(0.25), "a!": row(0.125)})
    assert scalars == {
        "AP_by_category/0 a_": 0.5,
        "AP_by_category/1 b": 0.25,
        "AP_by_category/2 a_": 0.125,
    }


def test_of_many_categories_those_with_the_most_objects_are_scalars():
    scalars = category_scalars({f"c{k}": row(0.5, objects=k) for k in range(300)})
    assert set(scalars) == {f"AP_by_category/c{k}" for k in range(200, 300)}
