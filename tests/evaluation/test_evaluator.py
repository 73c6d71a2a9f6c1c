"""Evaluation on a dataset: every image once, and the files that contain the results."""

import copy
import json

import jax
import jax.numpy as jnp
import pytest

from retinanet_jax import compilation, core, sharding
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation import evaluator, records
from retinanet_jax.evaluation.category_table import category_table
from retinanet_jax.evaluation.coco_metrics import METRICS, coco_metrics


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def source(synthetic_dataset):
    return CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")


@pytest.fixture
def source_without_objects(synthetic_dataset, tmp_path):
    content = {**read(synthetic_dataset / "instances.json"), "annotations": []}
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(content))
    return CocoSource(path, synthetic_dataset / "images")


def test_detections_belong_to_their_image_in_whatever_order_examples_come(
    toy_config, source, monkeypatch
):
    """On several hosts the mesh may order the hosts' examples differently from the plan."""

    def brightness(variables, batch, model, config):
        """Return one detection of each image, with a score that identifies the image."""
        score = batch.images.astype(jnp.float32).mean((1, 2, 3))[:, None] / 255
        boxes = jnp.zeros((*score.shape, 4))
        return core.Detections(boxes, score, jnp.zeros_like(score, int), score > 0)

    monkeypatch.setattr(evaluator, "detect", brightness)
    toy_config.data.eval_batch_size = 8  # 20 images: the last batch has 4 fillers

    def scores():
        mesh = sharding.make_mesh(1)
        with compilation.start_compiler() as compiler:
            evaluation = evaluator.Evaluator(toy_config, None, source, mesh, compiler)
            results = evaluation.run({}, 0)
        assert len(results) == len(source)
        return {result["image_id"]: round(result["score"], 5) for result in results}

    in_order = scores()
    assert len(set(in_order.values())) == len(source)
    put_batch = sharding.put_batch

    def reordered(batch, shardings):
        return put_batch(jax.tree.map(lambda x: x[[4, 5, 6, 7, 2, 3, 0, 1]], batch), shardings)

    monkeypatch.setattr(sharding, "put_batch", reordered)
    assert scores() == in_order


@pytest.mark.parametrize("method", ["run", "run_largest"])
def test_too_small_a_memory_names_the_evaluations_batch_size(
    toy_config, source, monkeypatch, method
):
    """Also during training, where a smaller training batch would not help."""

    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    toy_config.data.eval_batch_size = 8
    with compilation.start_compiler() as compiler:
        mesh = sharding.make_mesh(1)
        evaluation = evaluator.Evaluator(toy_config, None, source, mesh, compiler)
        monkeypatch.setattr(sharding, "put_batch", exhausted)
        arguments = (5,) if method == "run" else ()
        with pytest.raises(ValueError, match=r"lower --config\.data\.eval_batch_size or the image"):
            getattr(evaluation, method)({}, *arguments)


def test_the_largest_batch_is_that_of_the_images_and_not_of_the_buckets(toy_config, source):
    toy_config.data.update(eval_batch_size=8, buckets=((64, 64), (96, 96), (800, 800)))
    toy_config.data.eval_short_side = 48
    with compilation.start_compiler() as compiler:
        mesh = sharding.make_mesh(1)
        evaluation = evaluator.Evaluator(toy_config, None, source, mesh, compiler)
    assert evaluation.largest_batch.images.shape == (8, 64, 64, 3)


def write(results, source, step, folder, config):
    """Write an evaluation to a folder, and return it."""
    description = records.describe(config, source)
    records.write_detections(results, step, folder)
    config.evaluator = "pycocotools"
    return evaluator.write_evaluation(results, source, step, folder, config, description)


def test_the_files_that_an_evaluation_writes(source, config, tmp_path):
    truth = source.ground_truth()
    results = [
        {"score": 1.0, **{k: annotation[k] for k in ("image_id", "category_id", "bbox")}}
        for annotation in truth["annotations"]
    ]
    as_given = copy.deepcopy(results)
    evaluation = write(results, source, 30, tmp_path / "eval", config)
    assert evaluation.ap == pytest.approx(1)
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == [
        "30.jpg",
        "30.json",
        "30_detections.json",
    ]
    assert read(tmp_path / "eval/30_detections.json") == results == as_given
    content = read(tmp_path / "eval/30.json")
    assert list(content) == [*METRICS, "AP_by_category", "categories", "dataset", "settings"]
    assert set(content["AP_by_category"]) == {category["name"] for category in truth["categories"]}
    assert content["dataset"]["name"] == "shapes/instances.json"
    assert content["dataset"]["num_images"] == 20
    assert content["settings"]["data.eval_short_side"] == 800
    assert content["settings"]["detections.iou_threshold"] == 0.5
    assert "20 images after step 30" in evaluation.summary
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in evaluation.summary
    assert evaluation.summary.endswith(f"\n{category_table(content['categories'])}")


def test_an_undefined_ap_is_below_every_other(source_without_objects, config, tmp_path):
    """So that its checkpoint is not the best one; the files have the reason."""
    evaluation = write([], source_without_objects, 1, tmp_path, config)
    assert evaluation.ap == -1
    content = read(tmp_path / "1.json")
    assert content["AP"] is None
    note = "AP is undefined, because none of its 20 images has a box"
    assert content["note"] == note
    assert evaluation.summary.endswith(f"\n{note}")


def test_ap_of_more_than_100_detections_is_in_the_files(source, config, tmp_path):
    config.detections.max_detections = 300
    evaluation = write([], source, 30, tmp_path, config)
    further = ["AP_max300", "AP50_max300", "AR_max300"]
    assert list(read(tmp_path / "30.json"))[:15] == [*METRICS, *further]
    assert evaluation.metrics["AP_max300"] == 0
    assert evaluation.summary.count("maxDets=300 ] = 0.000") == 3


@pytest.mark.slow
def test_a_run_evaluates_every_image(tiny_run):
    """AP in the files is AP of the detections in the files, on all images."""
    source = CocoSource(
        tiny_run.workdir / "data/shapes-2/instances.json", tiny_run.workdir / "data/shapes-2/images"
    )
    for step in (4, 8):
        results = read(tiny_run.workdir / f"eval/{step}_detections.json")
        assert {result["image_id"] for result in results} == set(source.image_ids)
        assert {result["category_id"] for result in results} <= {c.id for c in source.categories}
        limits = dict(zip(source.image_ids, source.sizes, strict=True))
        for result in results:
            x, y, width, height = result["bbox"]
            bottom, right = limits[result["image_id"]] + 1e-3
            assert min(x, y) >= 0
            assert min(width, height) > 0
            assert (y + height, x + width) <= (bottom, right)
        metrics, _ = coco_metrics(source.ground_truth(), results)
        content = read(tiny_run.workdir / f"eval/{step}.json")
        assert metrics == {name: content[name] for name in metrics}
    assert (tiny_run.workdir / "eval/8.jpg").exists()
    assert tiny_run.stdout.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2


@pytest.mark.slow
def test_a_separate_evaluation_repeats_that_of_training(tiny_run, program):
    """`--mode=evaluate` on the best checkpoint, in a process of its own."""
    before = {p.name: p.read_bytes() for p in (tiny_run.workdir / "eval").glob("*.json")}
    status, stdout, stderr = program.run(
        "main", *tiny_run.arguments, f"--workdir={tiny_run.workdir}", "--mode=evaluate"
    )
    assert status == 0, stderr
    assert "Average Precision" in stdout
    after = {p.name: p.read_bytes() for p in (tiny_run.workdir / "eval").glob("*.json")}
    assert after == before
