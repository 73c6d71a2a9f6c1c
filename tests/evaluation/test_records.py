"""Evaluations are stored by dataset and settings: the run's own is never replaced by another."""

import json
import pathlib
import shutil

import pytest
from PIL import Image

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.split import split_by_hash
from retinanet_jax.evaluation import records
from retinanet_jax.utils.files import write_json


@pytest.fixture
def source(synthetic_dataset):
    return CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")


@pytest.fixture
def trained(tmp_path, config) -> Checkpoint:
    """A checkpoint of step 8, of a run with `config`."""
    folder = tmp_path / "checkpoints" / "8"
    return Checkpoint({}, config.copy_and_resolve_references(), (), 8, folder)


def folder_for(trained, config, source) -> pathlib.Path:
    """The folder for an evaluation, relative to the working directory."""
    workdir = trained.folder.parent.parent
    description = records.describe(config, source)
    return records.evaluation_folder(workdir, trained, config, description).relative_to(workdir)


def store_own(trained, config, source, ap=0.5):
    workdir = trained.folder.parent.parent
    (workdir / "eval").mkdir()
    evaluation = {"AP": ap, **records.describe(config, source)}
    write_json(workdir / "eval/8.json", evaluation)
    return evaluation


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.eval_short_side", 600),
        ("data.long_side", 1000),
        ("data.eval_shapes", "own"),
        ("data.resize", "pillow"),
        ("data.buckets", ((1344, 1344),)),
        ("detections.score_threshold", 0.5),
        ("detections.nms", "soft_linear"),
        ("dtype", "bfloat16"),
    ],
)
def test_other_settings_have_a_folder_of_their_own(
    trained, config, source, is_stored, field, value
):
    if is_stored:
        store_own(trained, config, source)
    assert folder_for(trained, config, source) == pathlib.Path("eval")
    config.update_from_flattened_dict({field: value})
    folder = folder_for(trained, config, source)
    assert folder.parent == pathlib.Path("eval")
    assert folder.name.startswith("shapes-instances-")
    assert folder == folder_for(trained, config, source)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.eval_batch_size", 2),
        ("evaluator", "pycocotools"),
        ("data.loader", "numpy"),
        ("total_steps", 7),
        ("optimizer.learning_rate", 0.1),
    ],
)
def test_what_does_not_affect_detections_is_no_other_evaluation(
    trained, config, source, field, value
):
    config.update_from_flattened_dict({field: value})
    assert folder_for(trained, config, source) == pathlib.Path("eval")


def other_datasets(source, folder):
    """Yield datasets that differ from `source` in one respect each."""
    yield subset(source, range(len(source) - 1))
    yield split_by_hash(source, 0.5)[1]
    yield subset(source, reversed(range(len(source))))
    content = json.loads((folder / "instances.json").read_text())
    moved = json.loads(json.dumps(content))
    moved["annotations"][0]["bbox"][0] += 1
    removed = {**content, "annotations": content["annotations"][:-1]}
    for name, changed in (("moved", moved), ("removed", removed)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(changed))
        yield CocoSource(path, folder / "images")
    # The same annotations with other images: blurred, for instance.
    shutil.copytree(folder / "images", folder / "others")
    for path in (folder / "others").iterdir():
        Image.open(path).convert("L").convert("RGB").save(path)
    yield CocoSource(folder / "instances.json", folder / "others")


def test_other_data_has_a_folder_of_its_own(trained, config, source, synthetic_dataset, tmp_path):
    """Whatever its path, which may be that of the data that the run was started with."""
    store_own(trained, config, source)
    folder = shutil.copytree(synthetic_dataset, tmp_path / "copy")
    folders = {folder_for(trained, config, other) for other in other_datasets(source, folder)}
    assert len(folders) == 6
    assert pathlib.Path("eval") not in folders


def test_a_copy_of_the_data_is_the_same_data(trained, config, source, synthetic_dataset, tmp_path):
    store_own(trained, config, source)
    copy = shutil.copytree(synthetic_dataset, tmp_path / "elsewhere" / "shapes")
    config.data.eval.update(annotations=str(copy / "instances.json"), images=str(copy / "images"))
    moved = CocoSource(copy / "instances.json", copy / "images")
    assert folder_for(trained, config, moved) == pathlib.Path("eval")


def test_without_a_stored_evaluation_the_configs_decide(
    trained, config, source, monkeypatch, tmp_path
):
    """As for a run that was only trained, or that an earlier version evaluated."""
    trained.config.data.eval.annotations = str(tmp_path / "mine/val.json")
    monkeypatch.chdir(tmp_path)
    config.data.eval.annotations = "mine/val.json"
    assert folder_for(trained, config, source) == pathlib.Path("eval")
    config.data.eval.annotations = "mine/test.json"
    assert folder_for(trained, config, source) != pathlib.Path("eval")
    # Imported weights have no data of their own: the first that they are evaluated on is.
    imported = trained._replace(step=0)
    assert folder_for(imported, config, source) == pathlib.Path("eval")


def test_the_validation_part_of_the_training_data_is_named_by_its_fraction(trained, config, source):
    for each in (trained.config, config):
        each.data.eval.update(annotations="", images="")
        each.data.validation_fraction = 0.1
    assert folder_for(trained, config, source) == pathlib.Path("eval")
    config.data.validation_fraction = 0.2
    assert folder_for(trained, config, source) != pathlib.Path("eval")


def test_the_own_evaluation_of_a_checkpoint_names_its_dataset(trained, config, source, tmp_path):
    assert records.own_evaluation(trained) is None
    stored = store_own(trained, config, source)
    evaluation = records.own_evaluation(trained)
    assert evaluation == stored
    assert evaluation["dataset"]["name"] == "shapes/instances.json"
    assert evaluation["dataset"]["num_images"] == 20
    # A checkpoint that was copied out of its run is not that of a run next to it.
    for folder in (tmp_path / "checkpoints" / "best", tmp_path / "best" / "8"):
        assert records.own_evaluation(trained._replace(folder=folder)) is None


@pytest.mark.parametrize(("saved", "is_own"), [(0.5, True), (-1, True), (0.4, False)])
def test_an_evaluation_that_an_earlier_version_replaced_is_not_the_runs_own(
    trained, tmp_path, saved, is_own
):
    """Versions before 0.3 wrote the AP of any data to the same file, without the dataset."""
    (tmp_path / "eval").mkdir()
    write_json(tmp_path / "eval/8.json", {"AP": 0.5})
    (trained.folder / "metrics").mkdir(parents=True)
    write_json(trained.folder / "metrics/metrics", {"AP": saved})
    assert (records.own_evaluation(trained) is not None) == is_own


def test_names_of_folders_are_valid_and_short(trained, config, source, monkeypatch):
    monkeypatch.setattr(source, "name", "coco/2017 validation + /data/äpfel/" + "x" * 300 + ".json")
    config.detections.score_threshold = 0.3
    folder = folder_for(trained, config, source)
    assert folder.name.startswith("coco-2017-validation-äpfel-xxx")
    assert len(folder.name) < 120


def test_stored_detections_are_those_of_the_same_dataset_and_settings(
    trained, config, source, tmp_path
):
    """And of an evaluation that was finished."""
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    description, folder = records.describe(config, source), tmp_path / "eval"
    records.write_detections(results, 8, folder)
    assert records.stored_detections(folder, 8, description) is None
    write_json(folder / "8.json", {"AP": 0.5, **description})
    assert records.stored_detections(folder, 8, description) == results
    assert records.stored_detections(folder, 4, description) is None
    other = records.describe(config, subset(source, [0, 1]))
    assert records.stored_detections(folder, 8, other) is None
    config.detections.iou_threshold = 0.625
    other = records.describe(config, source)
    assert records.stored_detections(folder, 8, other) is None
    (folder / "8_detections.json").unlink()
    assert records.stored_detections(folder, 8, description) is None
