"""Importing detectors: the checkpoint has what the file contains, and an error writes nothing."""

import builtins
import json
import pickle

import jax
import numpy as np
import pytest
from detector_examples import SMALL

from retinanet_jax import checkpoint, weights
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES, COCO_IDS
from retinanet_jax.weights import convert, download, presets
from retinanet_jax.weights.presets import ALL_CATEGORIES, PRESETS


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- the checkpoint


@pytest.mark.parametrize(
    ("source", "outputs", "options", "categories"),
    [
        ("torchvision_v2", 91, {}, COCO_CATEGORIES),
        ("torchvision_v2", 91, {"outputs": "all"}, ALL_CATEGORIES),
        ("detectron2", 80, {}, COCO_CATEGORIES),
        ("torchvision_v2", 1, {"category_names": ["egg"]}, (Category(0, "egg"),)),
        ("torchvision_v2", 2, {"category_names": ["egg"]}, (Category(1, "egg"),)),
        (
            "torchvision_v2",
            2,
            {"category_names": ["background", "egg"]},
            (Category(0, "background"), Category(1, "egg")),
        ),
    ],
)
def test_the_checkpoint_has_everything_that_prediction_needs(
    detector_file, tmp_path, source, outputs, options, categories
):
    output, file = tmp_path / "deep/out", detector_file(source, outputs)
    imported = convert.import_weights(None, file, output, norm_epsilon=0.5, **options)
    assert imported.source == source
    trained = checkpoint.load(output)
    expected = convert.read_detector(file, norm_epsilon=0.5, **options).checkpoint
    jax.tree.map(np.testing.assert_array_equal, trained.variables, expected.variables)
    assert jax.tree.structure(trained.variables) == jax.tree.structure(expected.variables)
    assert trained.categories == imported.checkpoint.categories == categories
    assert (trained.step, trained.folder) == (0, output / "checkpoints/0")
    assert imported.checkpoint.folder == output
    config = presets.preset_config(source)
    config.model.update(backbone=SMALL, norm_epsilon=0.5, fpn_channels=64)
    assert trained.config.to_json() == config.to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "w.npz"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_background_that_is_not_named_is_left_out(detector_file):
    """The remaining outputs are bit for bit those of the file, and keep torchvision's labels."""
    file = detector_file("torchvision_v2", 3)
    everything = convert.read_detector(file, category_names=["background", "egg", "hen"])
    named = convert.read_detector(file, category_names=["egg", "hen"])
    assert [category.id for category in named.checkpoint.categories] == [1, 2]
    assert named.reasons[-1] == "2 of its 3 outputs"
    for leaf in ("kernel", "bias"):
        all_rows, rows = (
            trained.variables["params"]["classification_head"]["predict"][leaf]
            for trained in (everything.checkpoint, named.checkpoint)
        )
        all_rows = all_rows.reshape(*all_rows.shape[:-1], 9, 3)
        np.testing.assert_array_equal(rows, all_rows[..., 1:].reshape(rows.shape))


def test_a_config_is_not_changed_and_describes_what_the_file_does_not_show(detector_file):
    config = presets.preset_config("torchvision_v1")
    config.model.norm_epsilon = 1e-3
    config.detections.max_detections = 7
    before = config.to_json()
    file = detector_file("torchvision_v1", 91)
    trained = convert.read_detector(file, config=config).checkpoint
    assert config.to_json() == before
    config.model.update(backbone=SMALL, fpn_channels=64)
    assert trained.config.to_json() == config.to_json()


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
        ("w.txt", write_text, r"w\.txt is not a readable file of plain arrays"),
        ("w.npz", write_text, r"w\.npz is not a readable file of plain arrays"),
        ("w.npz", write_truncated, r"w\.npz is not a readable file of plain arrays"),
        ("w.pkl", write_text, r"w\.pkl is not a readable file of plain arrays"),
        ("w.pkl", write_malicious, r"w\.pkl uses 'builtins\.print', and loading that could run"),
        (
            "w.npz",
            write_other,
            r"w\.npz: these are not torchvision_v1 weights of \w+: missing: ",
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
    ],
)
def test_another_source_is_an_error_and_nothing_is_written(
    detector_file, tmp_path, source, message
):
    with pytest.raises(ValueError, match=message) as error:
        convert.import_weights(source, detector_file("torchvision_v1", 91), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == ["w.npz"]


@pytest.mark.parametrize(
    ("outputs", "names", "message"),
    [
        (3, (), r"w\.npz: it has 3 outputs, which are not COCO's .*: --categories=NAME"),
        (3, ("egg",), r"it has 3 outputs, but 1 categories are named; name each output, or"),
        (2, ("egg", "egg"), "names must differ, and none may be empty"),
        (2, ("egg", ""), "names must differ, and none may be empty"),
    ],
)
def test_other_categories_than_cocos_must_be_named(
    detector_file, tmp_path, outputs, names, message
):
    file = detector_file("torchvision_v2", outputs)
    with pytest.raises(ValueError, match=message):
        convert.import_weights(None, file, tmp_path / "out", category_names=names)
    assert everything(tmp_path) == ["w.npz"]


def test_the_config_must_describe_the_network(detector_file, tmp_path):
    file, config = detector_file("torchvision_v2", 91), presets.preset_config("torchvision_v2")
    config.model.backbone_width = 32
    with pytest.raises(ValueError, match=r"w\.npz: weights of another network; \d+ arrays differ"):
        convert.import_weights(None, file, tmp_path / "out", config=config)
    config.model.new = 1
    with pytest.raises(ValueError, match=r"config\.model\.new is not a config field"):
        convert.import_weights(None, file, tmp_path / "out", config=config)
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
def test_an_interrupted_import_leaves_nothing(monkeypatch, detector_file, tmp_path, error):
    file = detector_file("detectron2", 80)

    def interrupted(folder, *_):
        (folder / "half").write_text("")
        raise error

    monkeypatch.setattr(checkpoint, "write_imported", interrupted)
    with pytest.raises(type(error)):
        convert.import_weights("detectron2", file, tmp_path / "out")
    assert everything(tmp_path) == ["w.npz"]


@pytest.mark.slow
def test_the_command_writes_a_checkpoint_once(program, detector_file, tmp_path):
    """The command prints why the config has its fields; a repetition is an error in one line."""
    file = detector_file("torchvision_v1", 91, architecture="resnet50", channels=256)
    command = ("import-weights", f"--input={file}", f"--output={tmp_path / 'out'}")
    status, stdout, stderr = program.run(*command)
    assert status == 0, stderr
    assert "out: torchvision_v1, 80 classes;\n" in stdout
    assert "config.model.norm_epsilon=0.0: torchvision's, for the weights of 91 outputs" in stdout
    trained = checkpoint.load(tmp_path / "out")
    bias = trained.variables["params"]["classification_head"]["predict"]["bias"]
    assert bias.shape == (720,)
    assert trained.config.model.norm_epsilon == 0

    before = everything(tmp_path)
    status, stdout, stderr = program.run(*command)
    assert (status, stdout) == (1, "")
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "out exists" in line
    assert "Traceback" not in stderr
    assert everything(tmp_path) == before
