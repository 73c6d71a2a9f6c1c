"""Importing detectors: what is written is what was read, and a mistake writes nothing."""

import builtins
import json
import pickle

import jax
import numpy as np
import pytest

from retinanet_jax import checkpoint, weights
from retinanet_jax.configs import finetune
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.modeling import initialize
from retinanet_jax.training import transfer
from retinanet_jax.weights import convert, detectors, download, presets
from retinanet_jax.weights.presets import ALL_CATEGORIES, PRESETS


def seeded(shapes, seed=0):
    """Arrays of those shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.fixture
def toy_weights(monkeypatch, toy_config):
    """`toy_weights(classes)`: what a file is made to hold, for the toy network."""

    def toy_weights(classes):
        # Nine anchors a cell of one row a class.
        variables = seeded(jax.eval_shape(lambda: initialize(toy_config, classes, seed=0)))
        monkeypatch.setattr(weights, "load_detector", lambda *_, **__: variables)
        return variables

    return toy_weights


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.zeros(1))
    return str(path)


def write_state_dict(path, source, architecture):
    """A whole state dict of constant arrays."""
    form = weights.DETECTOR_FORMATS[source]
    shapes = detectors.shapes(form, architecture, form.num_coco_outputs)
    arrays = {
        name: np.full(shape, 1 + number / 1000, np.float32)
        for number, (name, shape) in enumerate(shapes.items())
    }
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture(scope="module")
def of_resnet18(tmp_path_factory):
    """torchvision's v1 on a ResNet-18."""
    path = tmp_path_factory.mktemp("weights") / "w.npz"
    return write_state_dict(path, "torchvision_v1", "resnet18")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- what is written


@pytest.mark.parametrize(
    ("classes", "names", "categories"),
    [
        (80, (), COCO_CATEGORIES),
        (91, (), ALL_CATEGORIES),
        (2, ("background", "egg"), (Category(0, "background"), Category(1, "egg"))),
    ],
)
def test_a_checkpoint_with_all_that_prediction_needs(
    toy_weights, toy_config, file, tmp_path, classes, names, categories
):
    variables = toy_weights(classes)
    output = tmp_path / "deep/out"
    before = toy_config.to_json()
    convert.import_weights(
        "torchvision_v1", file, output, names=names, config=toy_config, norm_epsilon=0.5
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
    assert [category.id for category in COCO_CATEGORIES] == list(detectors.COCO_IDS)
    assert [category.id for category in ALL_CATEGORIES] == list(range(91))
    assert set(COCO_CATEGORIES) < set(ALL_CATEGORIES)
    assert ALL_CATEGORIES[12] == (12, "unused 12")


@pytest.mark.parametrize("source", list(PRESETS))
def test_a_preset_is_what_the_weights_need(source):
    form = weights.DETECTOR_FORMATS[source]
    config = presets.preset_config(source)
    assert {name: config.model[name] for name in form.model} == form.model
    assert config.input.to_dict() == form.input
    assert config.model.norm_epsilon == (0.0 if source == "torchvision_v1" else 1e-5)
    assert config.detections.max_detections == (100 if source == "detectron2" else 300)


@pytest.mark.slow
@pytest.mark.parametrize("source", list(PRESETS))
def test_the_recipe_that_fine_tunes_an_import_takes_all_of_it(source, tmp_path):
    theirs, ours = presets.preset_config(source), finetune.get_config(source)
    classes = len(COCO_CATEGORIES)
    have, want = (
        jax.eval_shape(lambda config=config: initialize(config, classes, seed=0))
        for config in (theirs, ours)
    )
    trained = checkpoint.Checkpoint(have, theirs, COCO_CATEGORIES, 0, tmp_path)
    plan = transfer.plan_transfer(trained, want, COCO_CATEGORIES)
    transfer.check_transfer(plan, trained, ours)
    assert not plan.reinitialized


@pytest.mark.parametrize("source", ["torchvision_v1", "detectron2"])
@pytest.mark.parametrize("architecture", ["resnet50", "resnet101", "resnet152", "resnet18"])
def test_the_backbone_is_recognised(source, architecture):
    names = detectors.names(weights.DETECTOR_FORMATS[source], architecture).values()
    known = architecture if architecture != "resnet18" else "otherwise"
    assert presets.backbone_of(names, "otherwise") == known


def test_the_command_that_evaluates_describes_the_imported_network(tmp_path):
    for source, backbone in (
        ("torchvision_v1", "resnet50"),
        ("torchvision_v2", "resnet50"),
        ("detectron2", "resnet101"),
    ):
        config = presets.preset_config(source)
        config.model.backbone = backbone
        written = checkpoint.Checkpoint({}, config, COCO_CATEGORIES, 0, tmp_path)
        predict, evaluate, train = convert.next_commands(source, written)
        assert predict.startswith(f"python -m retinanet_jax.predict --checkpoint={tmp_path} ")
        # Of the preset, the flags make the imported config.
        given = presets.PRESETS[source]
        assert f"--config={given.file}:{given.argument} --workdir={tmp_path}" in evaluate
        told = given.get_config(given.argument).unlock()
        for flag in [flag for flag in evaluate.split() if flag.startswith("--config.")]:
            name, value = flag.removeprefix("--config.model.").split("=")
            told.model[name] = type(told.model[name])(value)
        checkpoint.check_model(tmp_path, config, told)
        assert f"finetune.py:{source} --config.init.path={tmp_path}" in train
        assert train.endswith(" --config.model.backbone=resnet101") == (source == "detectron2")


# ---- mistakes


class Malicious:
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
    ("name", "write", "told"),
    [
        ("w.txt", write_text, r"w\.txt must end in one of \.npz, \.pth"),
        ("w.npz", write_text, r"w\.npz is not a readable \.npz of plain arrays"),
        ("w.npz", write_truncated, r"w\.npz is not a readable \.npz of plain arrays"),
        ("w.pkl", write_text, r"w\.pkl is not a readable \.pkl of plain arrays"),
        ("w.pkl", write_malicious, r"w\.pkl asks for 'builtins\.print', and loading it could run"),
        ("w.npz", write_other, r"w\.npz: not torchvision_v1 weights of resnet50: missing: "),
    ],
)
def test_a_file_that_is_no_such_detector_is_told_and_nothing_is_written(
    tmp_path, capsys, name, write, told
):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=told) as error:
        convert.import_weights("torchvision_v1", str(tmp_path / name), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == [name]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("torchvision", r"source='torchvision' must be one of torchvision_v1, torchvision_v2, det"),
        ("detectron2", "torchvision_v1 weights, and the source is detectron2; ask for torchvision"),
        ("torchvision_v2", "torchvision_v1 weights, and the source is torchvision_v2; ask for "),
        ("torchvision_v1", "weights of resnet18, and the backbone is to be resnet50; ask for resn"),
    ],
)
def test_another_source_or_architecture_is_told_and_nothing_is_written(
    of_resnet18, tmp_path, source, told
):
    with pytest.raises(ValueError, match=told) as error:
        convert.import_weights(source, str(of_resnet18), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == []


def test_other_classes_than_cocos_are_asked_for_by_name(toy_weights, toy_config, file, tmp_path):
    def told(match, **names):
        with pytest.raises(ValueError, match=match):
            convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config, **names)
        assert everything(tmp_path) == ["w.npz"]

    toy_weights(3)
    told(r"w\.npz: 3 outputs are not COCO's; name them in their order: --categories=NAME")
    told(r"w\.npz: 3 outputs for 2 categories; name each of them", names=("egg", "hen"))


def test_the_config_must_describe_the_network(toy_weights, toy_config, file, tmp_path):
    toy_weights(80)
    toy_config.model.head_depth += 1
    with pytest.raises(ValueError, match=r"w\.npz: weights of another network; 4 arrays differ"):
        convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config)
    toy_config.model.new = 1
    with pytest.raises(ValueError, match=r"config\.model\.new is not a field"):
        convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config)
    assert everything(tmp_path) == ["w.npz"]


def test_an_existing_folder_is_not_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "locate", lambda _: pytest.fail("fetched"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out is there already; give another folder"):
        convert.import_weights("detectron2", "model_final_5bd44e.pkl", tmp_path / "out")
    assert everything(tmp_path) == ["out", "out/mine.txt"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_interrupted_import_leaves_nothing(
    monkeypatch, toy_weights, toy_config, file, tmp_path, error
):
    toy_weights(80)

    def interrupted(folder, *_):
        folder.mkdir()
        (folder / "half").write_text("")
        raise error

    monkeypatch.setattr(checkpoint, "write_imported", interrupted)
    with pytest.raises(type(error)):
        convert.import_weights("detectron2", file, tmp_path / "out", config=toy_config)
    assert everything(tmp_path) == ["w.npz"]


@pytest.mark.slow
def test_the_command_writes_what_the_next_commands_take(program, tmp_path):
    """A whole ResNet-50 detector, and one line for a mistake."""
    path = write_state_dict(tmp_path / "w.npz", "torchvision_v1", "resnet50")
    command = ("import_weights", "--source=torchvision_v1", f"--input={path}")
    status, stdout, stderr = program.run(*command, f"--output={tmp_path / 'out'}")
    assert status == 0, stderr
    assert "resnet50, 80 classes, norm_epsilon 0; to go on:" in stdout
    trained = checkpoint.load(tmp_path / "out")
    bias = trained.variables["params"]["classification_head"]["predict"]["bias"]
    assert bias.shape == (720,)
    assert trained.config.model.norm_epsilon == 0

    before = everything(tmp_path)
    status, stdout, stderr = program.run(*command, f"--output={tmp_path / 'out'}")
    assert (status, stdout) == (1, "")
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "out is there already" in line
    assert "Traceback" not in stderr
    assert everything(tmp_path) == before
