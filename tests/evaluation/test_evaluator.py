"""Average precision: pycocotools' numbers, and the files that hold them."""

import copy
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import compilation, core, sharding
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation import coco_metrics, evaluator
from retinanet_jax.training import loop


def read(path):
    return json.loads(path.read_text())


def rounded(metrics):
    return [round(metrics[name], 3) for name in coco_metrics.METRICS]


@pytest.fixture(scope="module")
def cocoapi(test_data):
    """Ground truth and results of cocoapi: 100 images of val2014 and artificial detections."""
    return (
        read(test_data / "cocoapi/instances_val2014_100.json"),
        read(test_data / "cocoapi/instances_val2014_fakebbox100_results.json"),
    )


@pytest.fixture(scope="module")
def reference(cocoapi):
    """pycocotools' metrics and table of it."""
    return coco_metrics.coco_metrics(*cocoapi)


def test_the_known_numbers_of_cocoapi(reference):
    """Published with cocoapi."""
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


def drawn_truth(drawn):
    source = CocoSource(drawn / "instances.json", drawn / "images")
    truth = source.ground_truth()
    results = [
        {"score": 1.0, **{k: one[k] for k in ("image_id", "category_id", "bbox")}}
        for one in truth["annotations"]
    ]
    return source, truth, results


def test_the_truth_itself_scores_1_and_nothing_scores_0(drawn):
    _, truth, results = drawn_truth(drawn)
    metrics, _ = coco_metrics.coco_metrics(truth, results)
    assert metrics["AP"] == pytest.approx(1)
    assert {round(ap, 6) for ap in metrics["AP_by_category"].values() if ap is not None} == {1}
    metrics, _ = coco_metrics.coco_metrics(truth, [])
    assert metrics["AP"] == metrics["AR100"] == 0


def test_a_missed_picture_counts(drawn):
    """All pictures are judged, not only those with detections."""
    _, truth, results = drawn_truth(drawn)
    some = [one for one in results if one["image_id"] != results[0]["image_id"]]
    assert coco_metrics.coco_metrics(truth, some)[0]["AR100"] < 1


def test_undefined_numbers_are_none(drawn):
    _, truth, results = drawn_truth(drawn)
    for one in truth["annotations"]:
        one["area"] = 50.0  # small, all of them
    metrics, _ = coco_metrics.coco_metrics(truth, results)
    assert metrics["APm"] is None
    assert metrics["ARl"] is None
    assert metrics["APs"] == pytest.approx(1)
    metrics, _ = coco_metrics.coco_metrics({**truth, "annotations": []}, results)
    assert metrics["AP"] is None
    assert set(metrics["AP_by_category"].values()) == {None}


def crowded(seed, images=40, detections=30):
    """Ground truth and results with all that evaluators may differ in.

    Equal scores, crowd regions, ids with gaps, annotations numbered from 0, pictures and categories
    without objects, pictures without detections, more detections of a picture than count.
    """
    random = np.random.default_rng(seed)
    image_ids = np.sort(random.choice(100_000, images, replace=False)).tolist()
    category_ids = (1, 2, 3, 7, 90)
    annotations, results = [], []
    for number, image_id in enumerate(image_ids):
        count = 0 if number % 9 == 0 else random.integers(1, 12)
        sizes = np.exp(random.uniform(1, 6, (count, 2)))
        boxes = np.concatenate([random.uniform(0, 300, (count, 2)), sizes], axis=1).round(2)
        kinds = random.choice(category_ids[:-1], count)  # none of the last
        for box, kind in zip(boxes.tolist(), kinds.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": kind,
                    "bbox": box,
                    "area": box[2] * box[3] * random.uniform(0.5, 1),
                    "iscrowd": int(random.random() < 0.1),
                }
            )
        if number % 7 == 0:
            continue
        found = detections if number % 5 else 130
        for near in random.integers(0, count, found).tolist() if count else [None] * found:
            box, kind = ([50.0] * 4, 90) if near is None else (boxes[near], kinds[near])
            x, y, width, height = (box + random.normal(0, 0.05, 4) * max(box[2:])).tolist()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(kind if random.random() < 0.9 else 7),
                    "bbox": [x, y, max(width, 1.0), max(height, 1.0)],
                    "score": round(random.random(), 1),
                }
            )
    truth = {
        "images": [{"id": image_id, "license": "none"} for image_id in image_ids],
        "categories": [{"id": k, "name": f"kind {k}"} for k in category_ids],
        "annotations": annotations,
    }
    return truth, results


@pytest.mark.parametrize("seed", [0, 1])
def test_hotcoco_has_the_references_numbers(seed):
    """All of them bit for bit, by category too, and the table."""
    pytest.importorskip("hotcoco")
    truth, results = crowded(seed)
    metrics, table = coco_metrics.coco_metrics(truth, results, "hotcoco")
    assert (metrics, table) == coco_metrics.coco_metrics(truth, results)
    assert 0.1 < metrics["AP"] < 0.9
    assert metrics["AP_by_category"]["kind 90"] is None
    without = {**truth, "annotations": []}
    for truth_, results_ in ((truth, []), (without, results), (without, [])):
        assert coco_metrics.coco_metrics(truth_, results_, "hotcoco") == coco_metrics.coco_metrics(
            truth_, results_
        )


def test_hotcoco_has_the_known_numbers_of_cocoapi(cocoapi, reference):
    pytest.importorskip("hotcoco")
    assert coco_metrics.coco_metrics(*cocoapi, "hotcoco") == reference


def test_an_evaluator_that_is_not_there_is_told_before_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    config.evaluator = "hotcoco"
    told = "evaluator='hotcoco' cannot be imported .*pip install hotcoco.*evaluator=pycocotools"
    with pytest.raises(ValueError, match=told):
        loop.train(config, tmp_path, evaluates=True)
    with pytest.raises(ValueError, match=told):
        evaluator.evaluate(config, tmp_path)
    config.evaluator = "coco"
    with pytest.raises(ValueError, match="evaluator='coco' must be one of pycocotools, hotcoco"):
        loop.train(config, tmp_path, evaluates=True)


def test_results_have_original_ids_and_xywh_boxes():
    detections = core.Detections(
        boxes=np.float32([[10, 20, 40, 25], [1, 2, 3, 4], [0, 0, 0, 0]]),
        scores=np.float32([0.5, 0.25, 0]),
        classes=np.int32([1, 0, 0]),
        mask=np.array([True, True, False]),
    )
    categories = (Category(3, "dog"), Category(7, "cat"))
    assert coco_metrics.coco_results(detections, 42, categories) == [
        {"image_id": 42, "category_id": 7, "bbox": [20, 10, 5, 30], "score": 0.5},
        {"image_id": 42, "category_id": 3, "bbox": [2, 1, 2, 2], "score": 0.25},
    ]


def test_detections_are_told_by_their_picture_not_by_their_row(toy_config, drawn, monkeypatch):
    """On a pod the mesh may order the hosts' rows unlike the plan."""

    def brightness(variables, batch, model, config):
        """One detection a picture, which tells the pictures apart by its score."""
        score = batch.images.astype(jnp.float32).mean((1, 2, 3))[:, None] / 255
        boxes = jnp.zeros((*score.shape, 4))
        return core.Detections(boxes, score, jnp.zeros_like(score, int), score > 0)

    monkeypatch.setattr(evaluator, "detect", brightness)
    toy_config.data.eval_batch_size = 8  # 20 pictures: the last batch has 4 fillers
    source = CocoSource(drawn / "instances.json", drawn / "images")

    def scores():
        mesh = sharding.make_mesh(1)
        with compilation.start_compiler() as compiler:
            judge = evaluator.Evaluator(toy_config, None, source, mesh, compiler)
            results = judge.run({}, 0)
        assert len(results) == len(source)
        return {one["image_id"]: round(one["score"], 5) for one in results}

    in_order = scores()
    assert len(set(in_order.values())) == len(source)
    to_devices = sharding.to_devices

    def reordered(batch, shardings):
        return to_devices(jax.tree.map(lambda x: x[[4, 5, 6, 7, 2, 3, 0, 1]], batch), shardings)

    monkeypatch.setattr(sharding, "to_devices", reordered)
    assert scores() == in_order


def test_what_an_evaluation_writes(drawn, tmp_path, capsys):
    source, truth, results = drawn_truth(drawn)
    as_given = copy.deepcopy(results)
    assert evaluator.write(
        results, source, 30, tmp_path, "pycocotools", report=None
    ) == pytest.approx(1)
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == [
        "30.jpg",
        "30.json",
        "30_detections.json",
    ]
    assert read(tmp_path / "eval/30_detections.json") == results == as_given
    metrics = read(tmp_path / "eval/30.json")
    assert list(metrics) == [*coco_metrics.METRICS, "AP_by_category"]
    assert set(metrics["AP_by_category"]) == {one["name"] for one in truth["categories"]}
    printed = capsys.readouterr().out
    assert "20 images after step 30" in printed
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in printed


def test_annotation_ids_from_zero_cost_nothing(drawn):
    """pycocotools itself takes a match with annotation 0 for a miss."""
    _, truth, results = drawn_truth(drawn)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number
    metrics, _ = coco_metrics.coco_metrics(truth, results)
    assert metrics["AP"] == pytest.approx(1)
    assert truth["annotations"][0]["id"] == 0  # the caller's stays as it was


def test_where_ap_is_undefined_the_best_checkpoint_is_not_this_one(
    folder_without_objects, tmp_path
):
    ap = evaluator.write([], folder_without_objects, 1, tmp_path, "pycocotools", report=None)
    assert ap == -1


@pytest.fixture
def folder_without_objects(drawn, tmp_path):
    content = {**read(drawn / "instances.json"), "annotations": []}
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(content))
    return CocoSource(path, drawn / "images")


@pytest.mark.slow
def test_the_run_evaluated_every_picture(tiny_run):
    """AP of the files is AP of the detections beside them, on all pictures."""
    source = CocoSource(
        tiny_run.workdir / "data/shapes-2/instances.json", tiny_run.workdir / "data/shapes-2/images"
    )
    for step in (4, 8):
        results = read(tiny_run.workdir / f"eval/{step}_detections.json")
        assert {one["image_id"] for one in results} == set(source.image_ids)
        assert {one["category_id"] for one in results} <= {c.id for c in source.categories}
        limits = {i: size for i, size in zip(source.image_ids, source.sizes, strict=True)}
        for one in results:
            x, y, width, height = one["bbox"]
            bottom, right = limits[one["image_id"]] + 1e-3
            assert min(x, y) >= 0
            assert min(width, height) > 0
            assert (y + height, x + width) <= (bottom, right)
        metrics, _ = coco_metrics.coco_metrics(source.ground_truth(), results)
        assert metrics == read(tiny_run.workdir / f"eval/{step}.json")
    assert (tiny_run.workdir / "eval/8.jpg").exists()
    assert tiny_run.stdout.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2


@pytest.mark.slow
def test_evaluation_alone_repeats_that_of_training(tiny_run, program):
    """`--mode=evaluate` on the best checkpoint, in a process of its own."""
    before = {p.name: p.read_bytes() for p in (tiny_run.workdir / "eval").glob("*.json")}
    status, stdout, stderr = program.run(
        "main", *tiny_run.arguments, f"--workdir={tiny_run.workdir}", "--mode=evaluate"
    )
    assert status == 0, stderr
    assert "Average Precision" in stdout
    after = {p.name: p.read_bytes() for p in (tiny_run.workdir / "eval").glob("*.json")}
    assert after == before
