"""From the config to sources and plans."""

import json
import shutil

import numpy as np
import pytest

from retinanet_jax import input_pipeline
from retinanet_jax.data.sources.coco import CocoSource


@pytest.fixture
def own_data(config, drawn):
    """A config for the drawn pictures, given as a person gives their own."""
    config.data.train.update(
        annotations=str(drawn / "instances.json"), images=str(drawn / "images")
    )
    config.data.eval.update(annotations="", images="")
    return config


def names(source):
    return {source.file_name(index) for index in range(len(source))}


def test_shapes_are_drawn_into_the_workdir(toy_config, tmp_path):
    toy_config.data.train.count, toy_config.data.eval.count = 3, 2
    train, evaluation = input_pipeline.open_sources(toy_config, tmp_path)
    assert (len(train), len(evaluation)) == (3, 2)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["shapes-1", "shapes-2"]
    assert train.sizes.tolist() == [[96, 96]] * 3
    assert train.read(0) != evaluation.read(0)


def test_a_share_is_held_out_where_no_evaluation_data_is_given(own_data, drawn, tmp_path):
    own_data.data.validation_fraction = 0.3
    train, held_out = input_pipeline.open_sources(own_data, tmp_path)
    again = input_pipeline.open_sources(own_data, tmp_path)[1]
    assert names(train) | names(held_out) == {p.name for p in (drawn / "images").iterdir()}
    assert not names(train) & names(held_out)
    assert names(again) == names(held_out)
    assert len(held_out) > 0


def test_a_picture_that_a_run_would_end_at_is_named_before_it(drawn, tmp_path, monkeypatch):
    shutil.copytree(drawn, tmp_path / "copied")
    source = CocoSource(tmp_path / "copied/instances.json", tmp_path / "copied/images")
    input_pipeline.check_training_data(source)
    broken = tmp_path / "copied/images" / source.file_name(7)
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{broken.name}: the picture is corrupt or truncated"):
        input_pipeline.check_images(source)
    monkeypatch.setattr(input_pipeline, "MAX_IMAGES_TO_CHECK", len(source) - 1)
    input_pipeline.check_images(source)


def test_data_without_a_box_is_refused(drawn, tmp_path):
    content = json.loads((drawn / "instances.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=r"empty\.json: none of its 20 pictures has a box; there"):
        input_pipeline.check_training_data(CocoSource(tmp_path / "empty.json", drawn / "images"))


def test_evaluation_data_stands_above_the_share(own_data, tmp_path):
    own_data.data.validation_fraction = 0.3
    own_data.data.eval.update(own_data.data.train)
    train, evaluation = input_pipeline.open_sources(own_data, tmp_path)
    assert len(train) == len(evaluation) == 20


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("field", ["annotations", "images"])
def test_missing_data_names_the_flags_to_give(own_data, tmp_path, part, field):
    own_data.data.eval.update(own_data.data.train)
    own_data.data[part][field] = ""
    flag = rf"no data: source='coco' needs --config\.data\.{part}\.{field}=F"
    with pytest.raises(ValueError, match=flag) as e:
        input_pipeline.open_sources(own_data, tmp_path)
    assert "\n" not in str(e.value)


def test_an_unknown_source_is_named(own_data, tmp_path):
    own_data.data.train.source = "yolo"
    known = "coco, voc, csv, tfds, packed, shapes"
    with pytest.raises(ValueError, match=f"data.train.source='yolo' must be one of {known}"):
        input_pipeline.open_sources(own_data, tmp_path)


def test_sources_that_are_listed_are_merged(own_data, tmp_path, drawn):
    """Fields of one entry are every source's, the others are taken by turns."""
    once = input_pipeline.open_training(own_data, tmp_path)
    csv, classes = as_csv(once, tmp_path)
    own_data.data.train.update(
        source="coco, csv",
        annotations=f"{drawn / 'instances.json'},{csv}",
        classes=str(classes),
    )
    both = input_pipeline.open_training(own_data, tmp_path)
    assert len(both) == 2 * len(once)
    assert both.categories == once.categories
    for index in range(len(once)):
        for place in (index, len(once) + index):
            for had, has in zip(once.annotations(index), both.annotations(place), strict=True):
                np.testing.assert_allclose(has, had)
            assert both.read(place) == once.read(index)


def as_csv(source, folder):
    """The CSV and its classes that say what `source` says."""
    csv, classes = folder / "boxes.csv", folder / "classes.csv"
    lines = []
    for index in range(len(source)):
        objects = source.annotations(index)
        lines += [
            ",".join(
                [source.file_name(index), *map(repr, (x1, y1, x2, y2)), source.categories[k].name]
            )
            for (y1, x1, y2, x2), k in zip(objects.boxes.tolist(), objects.classes, strict=True)
        ] or [source.file_name(index) + ",,,,,"]
    csv.write_text("\n".join(lines) + "\n")
    classes.write_text("".join(f"{one.name},{one.id}\n" for one in source.categories))
    return csv, classes


def test_lists_of_different_lengths_are_refused(own_data, tmp_path):
    own_data.data.train.update(source="coco,coco,coco", images="here,there")
    with pytest.raises(ValueError, match=r"data\.train\.images lists 2 sources .* lists 3"):
        input_pipeline.open_training(own_data, tmp_path)


def test_categories_that_differ_name_the_remedy_of_voc(own_data, tmp_path, drawn, monkeypatch):
    own_data.data.eval.update(own_data.data.train)
    own_data.data.eval.source = "voc"
    one = input_pipeline.open_training(own_data, tmp_path)
    monkeypatch.setattr(input_pipeline, "VocSource", lambda *_, **__: Renamed(one))
    with pytest.raises(ValueError, match=r"--config\.data\.categories="):
        input_pipeline.open_sources(own_data, tmp_path)


class Renamed:
    def __init__(self, source):
        self.name = source.name
        self.categories = tuple(one._replace(id=one.id + 1) for one in source.categories)


def test_annotations_that_shapes_would_not_read_are_refused(toy_config, tmp_path):
    toy_config.data.train.annotations = "mine.json"
    with pytest.raises(ValueError, match=r"data\.train\.annotations=mine\.json would not be read"):
        input_pipeline.open_sources(toy_config, tmp_path)


def test_each_part_is_opened_without_the_other(own_data, tmp_path):
    """A machine that evaluates need not hold the training pictures, nor the other way round."""
    own_data.data.validation_fraction = 0.0
    with pytest.raises(ValueError, match=r"config\.data\.eval\.annotations"):
        input_pipeline.open_evaluation(own_data, tmp_path)
    assert len(input_pipeline.open_training(own_data, tmp_path)) == 20


def test_data_with_a_held_out_share_is_read_once(own_data, tmp_path, monkeypatch):
    """So its warnings are told once, too."""
    own_data.data.validation_fraction = 0.3
    read = []
    open_source = input_pipeline.open_source
    monkeypatch.setattr(
        input_pipeline, "open_source", lambda *given: read.append(given[1]) or open_source(*given)
    )
    input_pipeline.open_sources(own_data, tmp_path)
    assert read == ["train"]


def test_both_data_sets_must_have_the_same_categories(own_data, drawn, tmp_path):
    content = json.loads((drawn / "instances.json").read_text())
    content["categories"][0]["name"] = "egg"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    own_data.data.eval.update(annotations=str(other), images=str(drawn / "images"))
    with pytest.raises(ValueError, match=r"ellipse.*other\.json.*egg.*same ids and names"):
        input_pipeline.open_sources(own_data, tmp_path)


def test_plans_have_the_numbers_of_the_config(config):
    sizes = np.array([[480, 640]] * 5 + [[640, 480]] * 2)
    config.data.update(batch_size=2, short_sides=(400, 800), scale_jitter=(0.5, 1.0))

    class Pictures:
        pass

    source = Pictures()
    source.sizes = sizes
    plan = input_pipeline.train_plan(config, source)
    assert plan.steps_per_epoch == 4
    assert len({tuple(plan.batch(step).resized[0].tolist()) for step in range(12)}) > 4
    evaluation = input_pipeline.eval_plan(config, sizes, batch_size=3)
    assert evaluation.num_batches == 3
    assert evaluation.batch(0).bucket in {(800, 1088), (1088, 800)}
    assert sorted(evaluation.batch(0).resized[0].tolist()) == [800, 1067]
