"""The commands that an import prints work as they stand: their flags give the imported network."""

import importlib
import shlex

import jax
import numpy as np
import pytest
import state_dicts
from absl import flags

from retinanet_jax import checkpoint, stored_config, weights
from retinanet_jax.cli.common import resolve_config
from retinanet_jax.cli.evaluation_config import evaluation_config
from retinanet_jax.cli.initial_weights import with_weights
from retinanet_jax.config import default_config, flatten, load_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.modeling import initialize
from retinanet_jax.training import transfer
from retinanet_jax.weights import convert, presets
from retinanet_jax.weights.convert import Imported
from retinanet_jax.weights.presets import PRESETS

OWN = (Category(0, "egg"), Category(1, "hen"))
RATIOS = [0.2, 0.5, 1.0, 2.0, 5.0]
CHANGES = {
    "published": {},
    "backbone": {"model.backbone": "resnet101"},
    "one's own": {
        "model.backbone": "resnet18",
        "model.fpn_channels": 64,
        "model.p6_from": "c5",
        "model.norm": "batch",
        "model.norm_epsilon": 1e-5,
        "anchors.base_scale": 2.0,
        "anchors.scales": [1.0],
        "anchors.ratios": RATIOS,
        "input.mean": [1.0, 2.0, 3.0],
        "data.eval_short_side": 600,
        "data.buckets": [[64, 64]],
        "data.categories": ["it's", "a b"],
        "detections.class_agnostic": True,
    },
}
DATA = "--data=FOLDER_OR_FILE"


def imported(source, changes, folder, categories=COCO_CATEGORIES):
    config = presets.preset_config(source)
    config.update_from_flattened_dict(changes)
    return Imported(source, checkpoint.Checkpoint({}, config, categories, 0, folder), ())


def parsed(command):
    """Return the words of a printed command, and the flags that its program parses them into."""
    program, name, *words = shlex.split(command)
    assert program == "retinanet-jax"
    module = importlib.import_module(f"retinanet_jax.cli.{name}")
    argv = [program, *map(resolve_config, words)]
    values = flags.FlagValues()
    module.COMMAND.define_flags(values, argv)
    values(argv)
    return words, values


@pytest.mark.parametrize("source", list(PRESETS))
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_evaluation_has_the_config_of_the_import(source, changes, tmp_path):
    folder = tmp_path / "my runs"
    example = imported(source, changes, folder)
    config, variables = example.checkpoint.config, {"params": {"kernel": np.zeros(1, np.float32)}}
    checkpoint.write_imported(folder, variables, config, COCO_CATEGORIES)
    _, evaluate, _ = convert.next_commands(example)
    words, values = parsed(evaluate)
    assert not stored_config.differences(config, evaluation_config(values, folder))
    assert DATA not in words  # the data of COCO are in the preset
    own = example._replace(checkpoint=example.checkpoint._replace(categories=OWN))
    assert shlex.split(convert.next_commands(own)[1]) == [*shlex.split(evaluate), DATA]


def test_predict_and_fine_tuning_have_the_folder(tmp_path):
    predict, _, train = convert.next_commands(imported("torchvision_v1", {}, tmp_path / "my runs"))
    words, values = parsed(predict)
    assert values.weights == str(tmp_path / "my runs")
    assert words[-2:] == ["--output=DIR", "IMAGES"]
    words, values = parsed(train)
    assert values.weights == str(tmp_path / "my runs")
    assert words[-2:] == [DATA, "--workdir=DIR"]


@pytest.mark.slow
@pytest.mark.parametrize("source", list(PRESETS))
def test_fine_tuning_uses_all_arrays_of_the_import(source, tmp_path):
    """As printed, whatever the imported network and its anchors are."""
    for index, changes in enumerate(CHANGES.values()):
        example = imported(source, changes, tmp_path / str(index))
        config, count = example.checkpoint.config, len(COCO_CATEGORIES)
        shapes = jax.eval_shape(lambda config=config, count=count: initialize(config, count, 0))
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        checkpoint.write_imported(tmp_path / str(index), variables, config, COCO_CATEGORIES)
        _, values = parsed(convert.next_commands(example)[2])
        finetune = with_weights(values)
        assert finetune.init.path == str(tmp_path / str(index))
        trained = checkpoint.load(tmp_path / str(index))
        fine_tuned = jax.eval_shape(lambda c=finetune, count=count: initialize(c, count, 0))
        plan = transfer.plan_transfer(trained, fine_tuned, COCO_CATEGORIES)
        transfer.check_transfer(plan, trained, finetune)
        assert not plan.reinitialized


def test_every_config_field_survives_a_flag():
    """Its flag, read as a shell and the command read it, gives the value."""
    config = load_config("configs/torchvision.py:v1")
    for name, value in flatten(stored_config.plain(default_config())):
        if value is not None:
            (word,) = shlex.split(stored_config.config_flag(name, value))
            assert word.startswith(f"--config.{name}=")
            values = parsed(f"retinanet-jax evaluate --config=configs/torchvision.py {word!r}")[1]
            actual = dict(flatten(stored_config.plain(values.config)))[name]
            assert actual == value, name
    assert config.is_locked


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_printed_commands_run(program, synthetic_dataset, tmp_path):
    """A detector with 5 ratios, P6 from C5 and a background is evaluated, trained on and run."""
    case = {
        "source": "torchvision_v1",
        "outputs": 7,
        "seed": 0,
        "fields": {
            "model.backbone": "resnet18",
            "model.fpn_channels": 32,
            "model.p6_from": "c5",
            "model.norm": "batch",
            "anchors.scales": [1.0],
            "anchors.ratios": RATIOS,
        },
    }
    weights.save_arrays(tmp_path / "w.pth", state_dicts.own_detector(case))
    folder, images = tmp_path / "my run", synthetic_dataset / "images"
    flag = stored_config.config_flag
    arguments = [f"--input={tmp_path / 'w.pth'}", f"--output={folder}"]
    arguments += ["--categories=ellipse,rectangle,triangle,star,ring,cross"]
    arguments += ["--norm_epsilon=1e-5", "--config=configs/torchvision.py:v1"]
    small = ["--config.data.eval_short_side=64", "--config.data.long_side=64"]
    arguments += small
    arguments += shlex.split(f"{flag('anchors.scales', [1.0])} {flag('anchors.ratios', RATIOS)}")
    status, stdout, stderr = program.run("import-weights", *arguments)
    assert status == 0, stderr
    commands = [shlex.split(line) for line in stdout.splitlines() if "retinanet-jax " in line]
    predict, evaluate, train = (words[1:] for words in commands)

    def run(words, *more):
        words = [word for word in words if word != DATA]
        status, stdout, stderr = program.run(*words, *more)
        assert status == 0, stderr
        return stdout

    data = [f"--config.data.{part}.source=coco" for part in ("train", "eval")]
    data += [f"--config.data.{part}.images={images}" for part in ("train", "eval")]
    annotations = synthetic_dataset / "instances.json"
    data += [f"--config.data.{part}.annotations={annotations}" for part in ("train", "eval")]
    assert "AP " in run(evaluate, *data)
    steps = ["--config.total_steps=1", "--config.checkpoint_every=1", "--config.evaluate_every=1"]
    buckets = [flag("data.buckets", [[64, 64]]), flag("data.short_sides", [64])]
    buckets = [word for words in buckets for word in shlex.split(words)]
    train = [word.replace("--workdir=DIR", f"--workdir={tmp_path / 'mine'}") for word in train]
    assert "6 classes) for 6 classes" in run(train, *small, *data, *steps, *buckets)
    predict = [word.replace("=DIR", f"={tmp_path / 'out'}") for word in predict if word != "IMAGES"]
    run(predict, str(next(images.iterdir())))
    assert (tmp_path / "out" / "detections.json").is_file()
