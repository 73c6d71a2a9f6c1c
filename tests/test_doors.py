"""The same pictures through every door are the same run."""

import json

import pytest

from retinanet_jax import input_pipeline
from retinanet_jax.training import loop

NAMES = ("nine", "ten", "jack", "queen", "king", "ace")  # in the order of the JSON's ids
TIMES = {"images_per_second", "data_wait"}


@pytest.fixture
def from_coco(toy_config, test_data):
    """67 photographs of playing cards, trained on and evaluated on, at 64 x 96 pixels."""
    given = dict(
        source="coco",
        annotations=str(test_data / "cards/test.json"),
        images=str(test_data / "cards/test"),
    )
    toy_config.data.train.update(given)
    toy_config.data.eval.update(given)
    toy_config.data.update(
        categories=NAMES,
        buckets=((96, 96),),
        long_side=96,
        loader="numpy",
    )
    return toy_config


def run(config, workdir):
    """What was logged and measured, without what the clock says."""
    loop.train(config, workdir, evaluates=True)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    logged = [{name: line[name] for name in sorted(set(line) - TIMES)} for line in lines]
    return logged, json.loads((workdir / f"eval/{config.total_steps}.json").read_text())


@pytest.mark.slow
def test_cards_from_coco_voc_and_packed_train_and_evaluate_alike(
    from_coco, test_data, tmp_path, one_device
):
    """Bit for bit: packed pictures hold the pixels that resizing would give at the same side."""
    runs = {"coco": from_coco}
    runs["voc"] = from_coco.copy_and_resolve_references()
    runs["packed"] = from_coco.copy_and_resolve_references()
    input_pipeline.pack_datasets(from_coco, input_pipeline.PARTS, tmp_path / "packed")
    for part in input_pipeline.PARTS:
        runs["voc"].data[part].update(source="voc", annotations=str(test_data / "cards/test"))
        runs["packed"].data[part].update(
            source="packed", annotations="", images=str(tmp_path / "packed" / part)
        )
    results = {}
    for name, config in runs.items():
        results[name] = run(config, tmp_path / name)
    assert len(results["coco"][0]) == from_coco.total_steps
    assert results["voc"] == results["coco"]
    assert results["packed"] == results["coco"]
