"""Datasets and plans are those that the config describes."""

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import datasets, input_pipeline
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.sources.coco import CocoSource


@pytest.fixture
def user_config(config, synthetic_dataset):
    """Return a config with the synthetic dataset as training data and no evaluation data."""
    config.data.train.update(
        annotations=str(synthetic_dataset / "instances.json"),
        images=str(synthetic_dataset / "images"),
    )
    config.data.eval.update(annotations="", images="")
    return config


def names(source):
    return {source.file_name(index) for index in range(len(source))}


def test_shapes_are_generated_in_the_workdir(toy_config, tmp_path):
    toy_config.data.train.count, toy_config.data.eval.count = 3, 2
    train, evaluation = datasets.open_sources(toy_config, tmp_path)
    assert (len(train), len(evaluation)) == (3, 2)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["shapes-1", "shapes-2"]
    assert train.sizes.tolist() == [[96, 96]] * 3
    assert train.read(0) != evaluation.read(0)


def test_without_evaluation_data_part_of_the_training_data_is_split_off(
    user_config, synthetic_dataset, tmp_path
):
    user_config.data.validation_fraction = 0.3
    train, validation = datasets.open_sources(user_config, tmp_path)
    again = datasets.open_sources(user_config, tmp_path)[1]
    assert names(train) | names(validation) == {
        p.name for p in (synthetic_dataset / "images").iterdir()
    }
    assert not names(train) & names(validation)
    assert names(again) == names(validation)
    assert len(validation) > 0


def test_an_invalid_image_of_a_small_dataset_is_named_before_the_run(
    synthetic_dataset, tmp_path, monkeypatch
):
    shutil.copytree(synthetic_dataset, tmp_path / "copied")
    source = CocoSource(tmp_path / "copied/instances.json", tmp_path / "copied/images")
    datasets.check_training_data(source)
    broken = tmp_path / "copied/images" / source.file_name(7)
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{broken.name}: the image is corrupt or truncated"):
        datasets.check_images(source)
    monkeypatch.setattr(datasets.checks, "MAX_IMAGES_TO_CHECK", len(source) - 1)
    datasets.check_images(source)


def test_exchanged_sizes_of_images_are_named_before_boxes_that_seem_to_be_exchanged(tmp_path):
    """Boxes inside a wide image extend beyond the tall one that is declared."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    boxes = [[44, 10 + k, 10, 10] for k in range(3)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 64}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": box} for k, box in enumerate(boxes)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.png: the image has height and width \(48, 64\)"):
        datasets.check_training_data(CocoSource(tmp_path / "a.json", tmp_path))


def test_a_run_logs_boxes_that_are_only_probably_in_another_convention(
    synthetic_dataset, tmp_path, caplog
):
    caplog.set_level("WARNING", logger="absl")
    content = json.loads((synthetic_dataset / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [2 * value for value in annotation["bbox"]]
    (tmp_path / "twice.json").write_text(json.dumps(content))
    source = CocoSource(tmp_path / "twice.json", synthetic_dataset / "images")
    datasets.check_training_data(source)
    assert any("drawn on an image of another size" in message for message in caplog.messages)


def test_training_data_without_a_box_is_an_error(synthetic_dataset, tmp_path):
    content = json.loads((synthetic_dataset / "instances.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=r"empty\.json: none of its 20 images has a box; there"):
        datasets.check_training_data(
            CocoSource(tmp_path / "empty.json", synthetic_dataset / "images")
        )


def test_evaluation_data_takes_precedence_over_a_validation_fraction(user_config, tmp_path):
    user_config.data.validation_fraction = 0.3
    user_config.data.eval.update(user_config.data.train)
    train, evaluation = datasets.open_sources(user_config, tmp_path)
    assert len(train) == len(evaluation) == 20


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("field", ["annotations", "images"])
def test_the_error_for_missing_data_names_the_missing_flags(user_config, tmp_path, part, field):
    user_config.data.eval.update(user_config.data.train)
    user_config.data[part][field] = ""
    flag = rf"no data: source='coco' requires --config\.data\.{part}\.{field}=F"
    with pytest.raises(ValueError, match=flag) as error:
        datasets.open_sources(user_config, tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_source_is_named(user_config, tmp_path):
    user_config.data.train.source = "kitti"
    known = ", ".join(datasets.SOURCES)
    with pytest.raises(ValueError, match=f"data.train.source='kitti' must be one of {known}"):
        datasets.open_sources(user_config, tmp_path)


def test_listed_sources_are_merged(user_config, tmp_path, synthetic_dataset):
    """A field with one entry applies to every source; the others have an entry for each."""
    once = datasets.open_training(user_config, tmp_path)
    csv, classes = as_csv(once, tmp_path)
    user_config.data.train.update(
        source="coco, csv",
        annotations=f"{synthetic_dataset / 'instances.json'},{csv}",
        classes=str(classes),
    )
    both = datasets.open_training(user_config, tmp_path)
    assert len(both) == 2 * len(once)
    assert both.categories == once.categories
    for index in range(len(once)):
        for merged_index in (index, len(once) + index):
            fields = zip(once.annotations(index), both.annotations(merged_index), strict=True)
            for field, merged_field in fields:
                np.testing.assert_allclose(merged_field, field)
            assert both.read(merged_index) == once.read(index)


def as_csv(source, folder):
    """Write the boxes of `source` as a CSV, and return its path and that of the classes."""
    csv, classes = folder / "boxes.csv", folder / "classes.csv"
    lines = []
    for index in range(len(source)):
        annotations, file_name = source.annotations(index), source.file_name(index)
        boxes = zip(annotations.boxes.tolist(), annotations.classes, strict=True)
        lines += [
            f"{file_name},{x1!r},{y1!r},{x2!r},{y2!r},{source.categories[k].name}"
            for (y1, x1, y2, x2), k in boxes
        ] or [f"{file_name},,,,,"]
    csv.write_text("\n".join(lines) + "\n")
    classes.write_text(
        "".join(f"{name},{category_id}\n" for category_id, name in source.categories)
    )
    return csv, classes


def test_lists_of_different_lengths_are_an_error(user_config, tmp_path):
    user_config.data.train.update(source="coco,coco,coco", images="here,there")
    with pytest.raises(
        ValueError, match=r"data\.train\.images lists 2 sources, but another field lists 3"
    ):
        datasets.open_training(user_config, tmp_path)


def test_the_error_for_different_categories_names_the_field_for_voc(
    user_config, tmp_path, synthetic_dataset, monkeypatch
):
    user_config.data.eval.update(user_config.data.train)
    user_config.data.eval.source = "voc"
    source = datasets.open_training(user_config, tmp_path)
    source.categories = tuple(
        category._replace(id=category.id + 1) for category in source.categories
    )
    monkeypatch.setattr(datasets.opening, "VocSource", lambda *_, **__: source)
    with pytest.raises(ValueError, match=r"--config\.data\.categories="):
        datasets.open_sources(user_config, tmp_path)


def test_annotations_for_the_shapes_source_are_an_error(toy_config, tmp_path):
    toy_config.data.train.annotations = "mine.json"
    with pytest.raises(ValueError, match=r"data\.train\.annotations=mine\.json would not be read"):
        datasets.open_sources(toy_config, tmp_path)


def test_training_and_evaluation_data_are_opened_separately(user_config, tmp_path):
    """A machine that evaluates does not need the training images, and vice versa."""
    user_config.data.validation_fraction = 0.0
    with pytest.raises(ValueError, match=r"config\.data\.eval\.annotations"):
        datasets.open_evaluation(user_config, tmp_path)
    assert len(datasets.open_training(user_config, tmp_path)) == 20


def test_data_with_a_validation_fraction_is_read_once(user_config, tmp_path, monkeypatch):
    """Otherwise its warnings would be printed twice."""
    user_config.data.validation_fraction = 0.3
    parts = []
    open_source = datasets.open_source

    def recorded(config, part, workdir):
        parts.append(part)
        return open_source(config, part, workdir)

    monkeypatch.setattr(datasets.opening, "open_source", recorded)
    datasets.open_sources(user_config, tmp_path)
    assert parts == ["train"]


def test_training_and_evaluation_data_must_have_the_same_categories(
    user_config, synthetic_dataset, tmp_path
):
    content = json.loads((synthetic_dataset / "instances.json").read_text())
    content["categories"][0]["name"] = "egg"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    user_config.data.eval.update(annotations=str(other), images=str(synthetic_dataset / "images"))
    with pytest.raises(ValueError, match=r"other\.json have .*ellipse.*egg.*same ids and names"):
        datasets.open_sources(user_config, tmp_path)


def test_plans_have_the_batch_sizes_and_sides_of_the_config(config):
    sizes = np.array([[480, 640]] * 5 + [[640, 480]] * 2)
    config.data.update(batch_size=2, short_sides=(400, 800), scale_jitter=(0.5, 1.0))

    plan = input_pipeline.train_plan(config, types.SimpleNamespace(sizes=sizes))
    assert plan.steps_per_epoch == 4
    assert len({tuple(plan.batch(step).resized[0].tolist()) for step in range(12)}) > 4
    evaluation = input_pipeline.eval_plan(config, sizes, batch_size=3)
    assert evaluation.num_batches == 3
    assert evaluation.batch(0).bucket in {(800, 1088), (1088, 800)}
    assert sorted(evaluation.batch(0).resized[0].tolist()) == [800, 1067]


def test_images_are_composed_by_the_config_except_in_the_last_steps(toy_config, tmp_path):
    toy_config.total_steps, toy_config.data.train.count = 20, 4
    source = datasets.open_training(toy_config, tmp_path)
    assert input_pipeline.train_plan(toy_config, source).batch(0).composition is None
    toy_config.data.update(mosaic=1.0, mixup=1.0, copy_paste=1.0, unmixed_fraction=0.25)
    plan = input_pipeline.train_plan(toy_config, source)
    is_composed = [plan.batch(step).is_composed for step in range(20)]
    assert np.all(is_composed[:15])
    assert not np.any(is_composed[15:])
    pasted = plan.batch(0).composition.layers.size[:, 4:8]
    assert pasted.any()
    toy_config.data.affine.rotation = 10.0
    warp = input_pipeline.train_plan(toy_config, source).batch(19).composition.warp
    assert not np.array_equal(warp[0], np.eye(2))
    toy_config.data.unmixed_fraction = 1.5
    with pytest.raises(ValueError, match=r"config\.data\.unmixed_fraction=1\.5 must be a fraction"):
        check_fields(toy_config)


def test_an_unknown_evaluation_shape_is_named(config):
    config.data.eval_shapes = "square"
    with pytest.raises(ValueError, match=r"data\.eval_shapes='square' must be one of buckets, own"):
        input_pipeline.eval_plan(config, np.array([[480, 640]]), batch_size=1)


def test_opening_a_dataset_imports_neither_flax_nor_the_network(synthetic_dataset, tmp_path):
    code = f"""
import pathlib, sys
from retinanet_jax import datasets, input_pipeline
from retinanet_jax.config import default_config
config, folder = default_config(), {str(synthetic_dataset)!r}
config.data.train.update(annotations=folder + "/instances.json", images=folder + "/images")
source = datasets.open_training(config, pathlib.Path({str(tmp_path)!r}))
input_pipeline.train_plan(config, source).batch(0)
print(len(source))
unexpected = ("flax", "retinanet_jax.models", "retinanet_jax.modeling", "tensorflow")
print([name for name in sys.modules if name.startswith(unexpected)])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.splitlines() == ["20", "[]"], process.stderr
