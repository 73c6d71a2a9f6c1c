"""Training has the same results with the same images in every dataset format."""

import json

import pytest
from time_metrics import TIME_METRICS

from retinanet_jax import datasets, input_pipeline
from retinanet_jax.training import loop

CATEGORIES = ("nine", "ten", "jack", "queen", "king", "ace")  # in the order of the JSON's ids


@pytest.fixture
def coco_config(toy_config, test_data):
    """Return a config that trains and evaluates on 67 photographs of playing cards at 64 x 96."""
    fields = dict(
        source="coco",
        annotations=str(test_data / "cards/test.json"),
        images=str(test_data / "cards/test"),
    )
    toy_config.data.train.update(fields)
    toy_config.data.eval.update(fields)
    toy_config.data.update(
        categories=CATEGORIES,
        buckets=((96, 96),),
        long_side=96,
        loader="numpy",
    )
    return toy_config


def run(config, workdir):
    """Return the logged metrics, without the times, and those of the evaluation."""
    loop.train(config, workdir, evaluates=True)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    logged = [{name: line[name] for name in sorted(set(line) - TIME_METRICS)} for line in lines]
    evaluation = json.loads((workdir / f"eval/{config.total_steps}.json").read_text())
    del evaluation["dataset"]  # its name differs
    return logged, evaluation


@pytest.mark.slow
@pytest.mark.exhaustive
def test_coco_voc_and_packed_give_equal_training_and_evaluation(
    coco_config, test_data, tmp_path, one_device
):
    """Bit for bit: packed images have the pixels that resizing to the same short side computes."""
    runs = {"coco": coco_config}
    runs["voc"] = coco_config.copy_and_resolve_references()
    runs["packed"] = coco_config.copy_and_resolve_references()
    input_pipeline.pack_datasets(coco_config, datasets.PARTS, tmp_path / "packed")
    for part in datasets.PARTS:
        runs["voc"].data[part].update(source="voc", annotations=str(test_data / "cards/test"))
        runs["packed"].data[part].update(
            source="packed", annotations="", images=str(tmp_path / "packed" / part)
        )
    results = {}
    for name, config in runs.items():
        results[name] = run(config, tmp_path / name)
    assert len(results["coco"][0]) == coco_config.total_steps
    assert results["voc"] == results["coco"]
    assert results["packed"] == results["coco"]
