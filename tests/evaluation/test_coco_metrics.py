"""Average precision: the numbers of pycocotools, whichever evaluator computes it."""

import json
import sys
import threading

import numpy as np
import pytest

from retinanet_jax import core
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation import evaluator
from retinanet_jax.evaluation.coco_metrics import (
    METRICS,
    CocoApi,
    coco_api,
    coco_metrics,
    coco_results,
)
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.training import loop


def read(path):
    return json.loads(path.read_text())


def rounded(metrics):
    return [round(metrics[name], 3) for name in METRICS]


@pytest.fixture(scope="module")
def cocoapi(test_data):
    """Ground truth and results of cocoapi: 100 images of val2014 and artificial detections."""
    return (
        read(test_data / "cocoapi/instances_val2014_100.json"),
        read(test_data / "cocoapi/instances_val2014_fakebbox100_results.json"),
    )


@pytest.fixture(scope="module")
def reference(cocoapi):
    """The metrics and the table of pycocotools for cocoapi's data."""
    return coco_metrics(*cocoapi)


@pytest.fixture
def truth(synthetic_dataset):
    """The ground truth of the synthetic dataset."""
    return CocoSource(
        synthetic_dataset / "instances.json", synthetic_dataset / "images"
    ).ground_truth()


@pytest.fixture
def perfect_results(truth):
    """Detections that are the ground truth itself."""
    return [
        {"score": 1.0, **{k: annotation[k] for k in ("image_id", "category_id", "bbox")}}
        for annotation in truth["annotations"]
    ]


def test_the_known_numbers_of_cocoapi(reference):
    """The expected numbers are published with cocoapi."""
    metrics, table = reference
    assert rounded(metrics) == [
        *(0.505, 0.697, 0.573, 0.586, 0.519, 0.501),
        *(0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
    ]
    assert "@[ IoU=0.50      | area=   all | maxDets=100 ] = 0.697" in table
    assert table.count("\n") == 11
    by_category = metrics["AP_by_category"]
    assert len(by_category) == 80
    known = [ap for ap in by_category.values() if ap is not None]
    # AP is the mean over the categories that have ground truth.
    np.testing.assert_allclose(np.mean(known), metrics["AP"], rtol=1e-12)


def test_the_ground_truth_itself_scores_1_and_no_detections_score_0(truth, perfect_results):
    metrics, _ = coco_metrics(truth, perfect_results)
    assert metrics["AP"] == pytest.approx(1)
    assert {round(ap, 6) for ap in metrics["AP_by_category"].values() if ap is not None} == {1}
    metrics, _ = coco_metrics(truth, [])
    assert metrics["AP"] == metrics["AR100"] == 0


def test_an_image_without_detections_counts(truth, perfect_results):
    """All images are evaluated, not only those with detections."""
    missed = perfect_results[0]["image_id"]
    others = [result for result in perfect_results if result["image_id"] != missed]
    assert coco_metrics(truth, others)[0]["AR100"] < 1


def test_undefined_numbers_are_none(truth, perfect_results):
    for annotation in truth["annotations"]:
        annotation["area"] = 50.0  # small, all of them
    metrics, _ = coco_metrics(truth, perfect_results)
    assert metrics["APm"] is None
    assert metrics["ARl"] is None
    assert metrics["APs"] == pytest.approx(1)
    metrics, table = coco_metrics({**truth, "annotations": []}, perfect_results, max_detections=101)
    assert metrics["AP"] is metrics["AP_max101"] is metrics["AR_max101"] is None
    assert table.endswith("maxDets=101 ] = -1.000")
    assert set(metrics["AP_by_category"].values()) == {None}


def test_annotation_ids_may_start_at_0(truth, perfect_results):
    """For pycocotools itself a match with annotation 0 is a miss."""
    for annotation_id, annotation in enumerate(truth["annotations"]):
        annotation["id"] = annotation_id
    metrics, _ = coco_metrics(truth, perfect_results)
    assert metrics["AP"] == pytest.approx(1)
    assert truth["annotations"][0]["id"] == 0  # the caller's dict is not changed


def boxes_in_a_row(num_images, num_boxes):
    """Ground truth of `num_boxes` objects of a category in each image, and perfect detections."""
    annotations = [
        {
            "id": image_id * num_boxes + k,
            "image_id": image_id,
            "category_id": 1,
            "bbox": [10.0 * k, 0.0, 8.0, 40.0],
            "area": 320.0,
            "iscrowd": 0,
        }
        for image_id in range(num_images)
        for k in range(num_boxes)
    ]
    truth = {
        "images": [{"id": image_id} for image_id in range(num_images)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": annotations,
    }
    fields = ("image_id", "category_id", "bbox")
    results = [{**{k: a[k] for k in fields}, "score": 0.5} for a in annotations]
    return truth, results


def test_objects_without_an_area_are_missed():
    """Of 4 objects, perfect detections find 3: precision is 1 at the recalls 0, 0.01, ..., 0.75."""
    truth, results = boxes_in_a_row(num_images=2, num_boxes=4)
    for k in (0, 4):
        truth["annotations"][k].update(bbox=[0.0, 0.0, 0.0, 0.0], area=0.0)
        results[k]["bbox"] = [0.0, 0.0, 0.0, 0.0]
    with_area = [result for result in results if result["bbox"][2] > 0]
    metrics, _ = coco_metrics(truth, with_area)
    assert metrics["AP"] == pytest.approx(76 / 101)
    assert metrics["AR100"] == 0.75
    assert coco_metrics(truth, results)[0]["AR100"] == 0.75  # empty detections do not find them


@pytest.mark.parametrize("evaluator_name", ["pycocotools", "hotcoco"])
def test_ap_of_all_detections_of_dense_images(evaluator_name):
    """150 objects in each of 3 images: COCO's AP sees 100 of them, and others see N."""
    pytest.importorskip(evaluator_name)
    data = boxes_in_a_row(num_images=3, num_boxes=150)
    at_200, table = coco_metrics(*data, evaluator_name, max_detections=200)
    assert at_200["AP"] == pytest.approx(67 / 101)  # precision 1 at the recalls 0, ..., 0.66
    assert at_200["AR100"] == pytest.approx(100 / 150)
    assert at_200["AP_by_category"] == {"cat": pytest.approx(67 / 101)}
    assert [at_200[name] for name in ("AP_max200", "AP50_max200", "AR_max200")] == [1, 1, 1]
    assert table.splitlines()[12:] == [
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=200 ] = 1.000",
        " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=200 ] = 1.000",
        " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=200 ] = 1.000",
    ]
    at_110, _ = coco_metrics(*data, evaluator_name, max_detections=110)
    assert at_110["AP_max110"] == pytest.approx(74 / 101)  # 110 of 150 objects: 0, ..., 0.73
    assert at_110["AR_max110"] == pytest.approx(110 / 150)


def test_the_limit_is_that_of_a_category_in_an_image():
    """An image with 90 objects of each of two categories is not cut at 100."""
    truth, results = boxes_in_a_row(num_images=2, num_boxes=180)
    truth["categories"].append({"id": 2, "name": "dog"})
    for k, (annotation, result) in enumerate(zip(truth["annotations"], results, strict=True)):
        annotation["category_id"] = result["category_id"] = 1 + k % 2
    assert coco_metrics(truth, results)[0]["AP"] == pytest.approx(1)


def test_cocos_numbers_do_not_depend_on_the_number_of_detections():
    """Only more than 100 detections have metrics of their own, which are pycocotools' for them."""
    truth, results = difficult_data(seed=3, num_images=20, num_detections=400)
    metrics, table = coco_metrics(truth, results)
    for few in (50, 100):
        assert coco_metrics(truth, results, max_detections=few) == (metrics, table)
    at_200, longer = coco_metrics(truth, results, max_detections=200)
    further = {name: at_200.pop(name) for name in at_200.keys() - metrics.keys()}
    assert at_200 == metrics
    assert set(further) == {"AP_max200", "AP50_max200", "AR_max200"}
    assert longer.splitlines()[:12] == table.splitlines()
    for name, coco_name in (("AP_max200", "AP"), ("AP50_max200", "AP50"), ("AR_max200", "AR100")):
        assert further[name] != metrics[coco_name]
    at_100, at_limit = (pycocotools_stats(truth, results, limit) for limit in (100, 200))
    assert [metrics[name] for name in METRICS] == at_100
    # The first of pycocotools' own numbers always has the limit 100.
    assert further["AP50_max200"] == at_limit[METRICS.index("AP50")]
    assert further["AR_max200"] == at_limit[METRICS.index("AR100")]


def pycocotools_stats(truth, results, limit):
    """Return the numbers of pycocotools itself with the ids as they are given."""
    api = coco_api("pycocotools")
    coco = api.COCO()
    annotations = [{**a, "id": k} for k, a in enumerate(truth["annotations"], 1)]
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    evaluation = api.COCOeval(coco, coco.loadRes([dict(result) for result in results]), "bbox")
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def with_ids(truth, results, image_id_of, category_id_of, annotation_id_of):
    """Return copies of ground truth and results with other ids, which are functions of the ids."""

    def changed(entry):
        ids = image_id_of(entry["image_id"]), category_id_of(entry["category_id"])
        return {**entry, "image_id": ids[0], "category_id": ids[1]}

    truth = {
        "images": [{"id": image_id_of(entry["id"])} for entry in truth["images"]],
        "categories": [{**c, "id": category_id_of(c["id"])} for c in truth["categories"]],
        "annotations": [
            {**changed(a), "id": annotation_id_of(a["id"])} for a in truth["annotations"]
        ],
    }
    return truth, [changed(result) for result in results]


@pytest.mark.parametrize("evaluator_name", ["pycocotools", "hotcoco"])
def test_ids_of_any_size_have_the_same_ap(evaluator_name):
    """Bit for bit, if their order is the same."""
    pytest.importorskip(evaluator_name)
    truth, results = difficult_data(seed=4)
    expected = coco_metrics(truth, results, evaluator_name)
    image_ids = sorted(image["id"] for image in truth["images"])
    small = [-(2**70), -(2**63), -7, 0, 5]
    first = dict(zip(image_ids, small, strict=False))
    category_ids = dict(zip((1, 2, 3, 7, 90), (-1, 0, 2**53, 2**63, 2**63 + 1), strict=True))
    for large in (2**53, 2**63, 2**64):
        changed = with_ids(
            *(truth, results),
            lambda image_id, large=large: first.get(image_id, large + image_id),
            category_ids.__getitem__,
            lambda annotation_id, large=large: large * (annotation_id % 3 - 1) + annotation_id,
        )
        assert coco_metrics(*changed, evaluator_name) == expected


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_detections_of_another_dataset_are_an_error(truth, perfect_results, field):
    perfect_results[3][field] = 2**64
    with pytest.raises(ValueError, match=rf"category id {2**64}, which the ground truth lacks"):
        coco_metrics(truth, perfect_results)


def difficult_data(seed, num_images=40, num_detections=30):
    """Ground truth and results with everything that evaluators may treat differently.

    Equal scores, crowd regions, ids with gaps, annotation ids from 0, images and categories without
    objects, images without detections, images with more detections than are evaluated.
    """
    random = np.random.default_rng(seed)
    image_ids = np.sort(random.choice(100_000, num_images, replace=False)).tolist()
    category_ids = (1, 2, 3, 7, 90)
    annotations, results = [], []
    for index, image_id in enumerate(image_ids):
        count = 0 if index % 9 == 0 else random.integers(1, 12)
        sizes = np.exp(random.uniform(1, 6, (count, 2)))
        boxes = np.concatenate([random.uniform(0, 300, (count, 2)), sizes], axis=1).round(2)
        box_categories = random.choice(category_ids[:-1], count)  # none of the last
        for box, category_id in zip(boxes.tolist(), box_categories.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": box[2] * box[3] * random.uniform(0.5, 1),
                    "iscrowd": int(random.random() < 0.1),
                }
            )
        if index % 7 == 0:
            continue
        num_results = num_detections if index % 5 else 130
        nearby = random.integers(0, count, num_results).tolist() if count else [None] * num_results
        for near in nearby:
            box, category_id = (
                ([50.0] * 4, 90) if near is None else (boxes[near], box_categories[near])
            )
            x, y, width, height = (box + random.normal(0, 0.05, 4) * max(box[2:])).tolist()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_id if random.random() < 0.9 else 7),
                    "bbox": [x, y, max(width, 1.0), max(height, 1.0)],
                    "score": round(random.random(), 1),
                }
            )
    truth = {
        "images": [{"id": image_id, "license": "none"} for image_id in image_ids],
        "categories": [{"id": k, "name": f"category {k}"} for k in category_ids],
        "annotations": annotations,
    }
    return truth, results


@pytest.mark.parametrize("seed", [0, 1])
def test_hotcoco_has_the_numbers_of_pycocotools(seed):
    """All of them bit for bit, by category too, and the table."""
    pytest.importorskip("hotcoco")
    truth, results = difficult_data(seed)
    metrics, table = coco_metrics(truth, results, "hotcoco", max_detections=120)
    assert (metrics, table) == coco_metrics(truth, results, max_detections=120)
    assert 0.1 < metrics["AP"] < 0.9
    assert metrics["AP_by_category"]["category 90"] is None
    no_truth = {**truth, "annotations": []}
    for truth_, results_ in ((truth, []), (no_truth, results), (no_truth, [])):
        assert coco_metrics(truth_, results_, "hotcoco") == coco_metrics(truth_, results_)


def test_hotcoco_has_the_known_numbers_of_cocoapi(cocoapi, reference):
    pytest.importorskip("hotcoco")
    assert coco_metrics(*cocoapi, "hotcoco") == reference


def test_other_threads_print_while_ap_is_computed(truth, perfect_results, monkeypatch, capsys):
    """Training's progress lines appear, and the evaluator's own messages do not."""
    api = coco_api("pycocotools")

    def create_index(self):
        thread = threading.Thread(target=print, args=("step 8",))
        thread.start()
        thread.join()
        api.COCO.createIndex(self)  # it prints, too

    coco = type("COCO", (api.COCO,), {"createIndex": create_index})
    monkeypatch.setattr(
        "retinanet_jax.evaluation.coco_metrics.coco_api", lambda _: CocoApi(coco, api.COCOeval)
    )
    metrics, _ = coco_metrics(truth, perfect_results)
    assert metrics["AP"] == pytest.approx(1)
    assert capsys.readouterr().out == "step 8\n"


def test_a_missing_evaluator_is_an_error_before_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    config.evaluator = "hotcoco"
    message = "evaluator='hotcoco' requires hotcoco, .*jax.fast.*evaluator=pycocotools"
    with pytest.raises(ValueError, match=message):
        loop.train(config, tmp_path, evaluates=True)
    with pytest.raises(ValueError, match=message):
        evaluator.evaluate(config, tmp_path)
    config.evaluator = "coco"
    with pytest.raises(
        ValueError, match="evaluator='coco' must be one of auto, pycocotools, hotcoco"
    ):
        loop.train(config, tmp_path, evaluates=True)


def test_results_have_the_datasets_ids_and_xywh_boxes():
    detections = core.Detections(
        boxes=np.float32([[10, 20, 40, 25], [1, 2, 3, 4], [0, 0, 0, 0]]),
        scores=np.float32([0.5, 0.25, 0]),
        classes=np.int32([1, 0, 0]),
        mask=np.array([True, True, False]),
    )
    categories = (Category(3, "dog"), Category(7, "cat"))
    assert coco_results(detections, 42, categories) == [
        {"image_id": 42, "category_id": 7, "bbox": [20, 10, 5, 30], "score": 0.5},
        {"image_id": 42, "category_id": 3, "bbox": [2, 1, 2, 2], "score": 0.25},
    ]


def test_category_ids_of_detections_may_have_any_size():
    detections = Detections(
        image=np.zeros((8, 8, 3), np.uint8),
        boxes=np.float32([[1, 2, 3, 4], [1, 2, 3, 4]]),
        scores=np.float32([0.5, 0.25]),
        classes=np.array([1, 0]),
        categories=(Category(-3, "dog"), Category(2**63 + 1, "cat")),
    )
    assert detections.category_ids.tolist() == [2**63 + 1, -3]
    assert detections[0].category_id == 2**63 + 1
    assert [result["category_id"] for result in detections.to_coco(2**65)] == [2**63 + 1, -3]
