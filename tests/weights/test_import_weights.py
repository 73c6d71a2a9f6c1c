"""Importing detectors: the checkpoint has what the file contains, and an error writes nothing."""

import builtins
import json
import pickle

import jax
import numpy as np
import pytest

from retinanet_jax import checkpoint, weights
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES, COCO_IDS
from retinanet_jax.modeling import initialize
from retinanet_jax.training import transfer
from retinanet_jax.weights import convert, detectors, download, presets
from retinanet_jax.weights.presets import ALL_CATEGORIES, PRESETS


def random_arrays(shapes, seed=0):
    """Return a tree of arrays with the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.fixture
def toy_weights(monkeypatch, toy_config):
    """`toy_weights(classes)`: the variables that every file contains, for the toy network."""

    def toy_weights(classes):
        # Nine anchors per cell, with one output per class.
        variables = random_arrays(jax.eval_shape(lambda: initialize(toy_config, classes, seed=0)))
        monkeypatch.setattr(weights, "load_detector", lambda *_, **__: variables)
        return variables

    return toy_weights


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.zeros(1))
    return str(path)


def write_state_dict(path, source, architecture):
    """Write a whole state dict of constant arrays."""
    library_format = weights.DETECTOR_FORMATS[source]
    shapes = detectors.shapes(library_format, architecture, library_format.num_coco_outputs)
    arrays = {
        name: np.full(shape, 1 + index / 1000, np.float32)
        for index, (name, shape) in enumerate(shapes.items())
    }
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory):
    """A state dict of torchvision's v1 on a ResNet-18."""
    path = tmp_path_factory.mktemp("weights") / "w.npz"
    return write_state_dict(path, "torchvision_v1", "resnet18")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- the checkpoint


@pytest.mark.parametrize(
    ("classes", "names", "categories"),
    [
        (80, (), COCO_CATEGORIES),
        (91, (), ALL_CATEGORIES),
        (2, ("background", "egg"), (Category(0, "background"), Category(1, "egg"))),
    ],
)
def test_the_checkpoint_has_everything_that_prediction_needs(
    toy_weights, toy_config, file, tmp_path, classes, names, categories
):
    variables = toy_weights(classes)
    output = tmp_path / "deep/out"
    before = toy_config.to_json()
    convert.import_weights(
        "torchvision_v1",
        file,
        output,
        category_names=names,
        config=toy_config,
        norm_epsilon=0.5,
    )
    assert toy_config.to_json() == before
    trained = checkpoint.load(output)
    jax.tree.map(np.testing.assert_array_equal, trained.variables, variables)
    assert jax.tree.structure(trained.variables) == jax.tree.structure(variables)
    assert trained.categories == categories
    assert (trained.step, trained.folder) == (0, output / "checkpoints/0")
    toy_config.model.norm_epsilon = 0.5
    assert trained.config.to_json() == toy_config.to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "w.npz"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_cocos_categories(test_data):
    content = json.loads((test_data / "coco21/instances.json").read_text())
    assert [tuple(c) for c in COCO_CATEGORIES] == [
        (category["id"], category["name"]) for category in content["categories"]
    ]
    assert [category.id for category in COCO_CATEGORIES] == list(COCO_IDS)
    assert [category.id for category in ALL_CATEGORIES] == list(range(91))
    assert set(COCO_CATEGORIES) < set(ALL_CATEGORIES)
    assert ALL_CATEGORIES[12] == (12, "unused 12")


@pytest.mark.parametrize("source", list(PRESETS))
def test_a_preset_has_the_settings_that_the_weights_need(source):
    library_format = weights.DETECTOR_FORMATS[source]
    config = presets.preset_config(source)
    assert {name: config.model[name] for name in library_format.model} == library_format.model
    assert config.input.to_dict() == library_format.input
    assert config.model.norm_epsilon == (0.0 if source == "torchvision_v1" else 1e-5)
    assert config.detections.max_detections == (100 if source == "detectron2" else 300)


@pytest.mark.slow
@pytest.mark.parametrize("source", list(PRESETS))
def test_fine_tuning_an_imported_detector_uses_all_of_its_arrays(source, tmp_path):
    preset, finetune = presets.preset_config(source), load_config(f"configs/finetune.py:{source}")
    classes = len(COCO_CATEGORIES)
    imported, fine_tuned = (
        jax.eval_shape(lambda config=config: initialize(config, classes, seed=0))
        for config in (preset, finetune)
    )
    trained = checkpoint.Checkpoint(imported, preset, COCO_CATEGORIES, 0, tmp_path)
    plan = transfer.plan_transfer(trained, fine_tuned, COCO_CATEGORIES)
    transfer.check_transfer(plan, trained, finetune)
    assert not plan.reinitialized


@pytest.mark.parametrize("source", ["torchvision_v1", "detectron2"])
@pytest.mark.parametrize("architecture", ["resnet50", "resnet101", "resnet152", "resnet18"])
def test_the_backbone_is_recognized(source, architecture):
    names = detectors.names(weights.DETECTOR_FORMATS[source], architecture).values()
    known = architecture if architecture != "resnet18" else "default"
    assert presets.detect_backbone(names, "default") == known


def test_the_command_that_evaluates_describes_the_imported_network(tmp_path):
    for source, backbone in (
        ("torchvision_v1", "resnet50"),
        ("torchvision_v2", "resnet50"),
        ("detectron2", "resnet101"),
    ):
        config = presets.preset_config(source)
        config.model.backbone = backbone
        imported = checkpoint.Checkpoint({}, config, COCO_CATEGORIES, 0, tmp_path)
        predict, evaluate, train = convert.next_commands(source, imported)
        assert predict.startswith(f"retinanet-jax predict --checkpoint={tmp_path} ")
        # The flags change the preset into the imported config.
        preset = presets.PRESETS[source]
        assert f"retinanet-jax evaluate --config={preset} --workdir={tmp_path}" in evaluate
        changed = load_config(preset).unlock()
        for flag in [flag for flag in evaluate.split() if flag.startswith("--config.")]:
            name, value = flag.removeprefix("--config.model.").split("=")
            changed.model[name] = type(changed.model[name])(value)
        checkpoint.check_model(tmp_path, config, changed)
        assert f"finetune.py:{source} --config.init.path={tmp_path}" in train
        assert train.endswith(" --config.model.backbone=resnet101") == (source == "detectron2")


# ---- errors


class Malicious:
    """An object of which the pickle prints a word when it is loaded."""

    def __reduce__(self):
        return builtins.print, ("ran",)


def write_text(path):
    path.write_text("no arrays")


def write_truncated(path):
    np.savez(path, a=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:-500])


def write_malicious(path):
    path.write_bytes(pickle.dumps({"model": {"a": Malicious()}}))


def write_other(path):
    np.savez(path, **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.txt", write_text, r"w\.txt must end in one of \.npz, \.pth"),
        ("w.npz", write_text, r"w\.npz is not a readable \.npz file of plain arrays"),
        ("w.npz", write_truncated, r"w\.npz is not a readable \.npz file of plain arrays"),
        ("w.pkl", write_text, r"w\.pkl is not a readable \.pkl file of plain arrays"),
        ("w.pkl", write_malicious, r"w\.pkl uses 'builtins\.print', and loading that could run"),
        (
            "w.npz",
            write_other,
            r"w\.npz: these are not torchvision_v1 weights of resnet50: missing: ",
        ),
    ],
)
def test_a_file_without_such_a_detector_is_an_error_and_nothing_is_written(
    tmp_path, capsys, name, write, message
):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        convert.import_weights("torchvision_v1", str(tmp_path / name), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == [name]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision", r"source='torchvision' must be one of torchvision_v1, torchvision_v2, det"),
        (
            "detectron2",
            "these are torchvision_v1 weights, but the source is detectron2; give the sou",
        ),
        (
            "torchvision_v2",
            "these are torchvision_v1 weights, but the source is torchvision_v2; give ",
        ),
        ("torchvision_v1", r"weights of resnet18, but config\.model\.backbone is resnet50; change"),
    ],
)
def test_another_source_or_architecture_is_an_error_and_nothing_is_written(
    resnet18_file, tmp_path, source, message
):
    with pytest.raises(ValueError, match=message) as error:
        convert.import_weights(source, str(resnet18_file), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == []


def test_other_categories_than_cocos_must_be_named(toy_weights, toy_config, file, tmp_path):
    def assert_refused(match, **names):
        with pytest.raises(ValueError, match=match):
            convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config, **names)
        assert everything(tmp_path) == ["w.npz"]

    toy_weights(3)
    assert_refused(r"w\.npz has 3 outputs, which are not COCO's .*: --categories=NAME")
    names = ("egg", "hen")
    assert_refused(r"3 outputs, but 2 categories are named; name each", category_names=names)


def test_the_config_must_describe_the_network(toy_weights, toy_config, file, tmp_path):
    toy_weights(80)
    toy_config.model.head_depth += 1
    with pytest.raises(ValueError, match=r"w\.npz: weights of another network; 4 arrays differ"):
        convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config)
    toy_config.model.new = 1
    with pytest.raises(ValueError, match=r"config\.model\.new is not a config field"):
        convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config)
    assert everything(tmp_path) == ["w.npz"]


def test_an_existing_folder_is_not_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "locate", lambda _: pytest.fail("downloaded"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "link"):
        with pytest.raises(FileExistsError, match=f"{name} exists; give another folder"):
            convert.import_weights("detectron2", "model_final_5bd44e.pkl", tmp_path / name)
    assert everything(tmp_path) == ["link", "out", "out/mine.txt"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_interrupted_import_leaves_nothing(
    monkeypatch, toy_weights, toy_config, file, tmp_path, error
):
    toy_weights(80)

    def interrupted(folder, *_):
        (folder / "half").write_text("")
        raise error

    monkeypatch.setattr(checkpoint, "write_imported", interrupted)
    with pytest.raises(type(error)):
        convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config)
    assert everything(tmp_path) == ["w.npz"]


@pytest.mark.slow
def test_the_command_writes_a_checkpoint_once(program, tmp_path):
    """A whole ResNet-50 detector is imported, and a repetition is an error in one line."""
    path = write_state_dict(tmp_path / "w.npz", "torchvision_v1", "resnet50")
    command = ("import-weights", "--source=torchvision_v1", f"--input={path}")
    status, stdout, stderr = program.run(*command, f"--output={tmp_path / 'out'}")
    assert status == 0, stderr
    assert "resnet50, 80 classes, norm_epsilon 0; " in stdout
    trained = checkpoint.load(tmp_path / "out")
    bias = trained.variables["params"]["classification_head"]["predict"]["bias"]
    assert bias.shape == (720,)
    assert trained.config.model.norm_epsilon == 0

    before = everything(tmp_path)
    status, stdout, stderr = program.run(*command, f"--output={tmp_path / 'out'}")
    assert (status, stdout) == (1, "")
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "out exists" in line
    assert "Traceback" not in stderr
    assert everything(tmp_path) == before
