"""`evaluate --workdir=X` has the config, the data and the preset of the checkpoint in X."""

import json

import numpy as np
import pytest

from retinanet_jax import checkpoint
from retinanet_jax.__main__ import main
from retinanet_jax.cli import train
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.synthetic import CATEGORIES
from retinanet_jax.stored_config import differences
from retinanet_jax.weights import cached

TINY = "--config=configs/shapes.py:tiny"


@pytest.fixture
def trained(toy_config, tmp_path):
    """The config of a checkpoint in the working directory `run`, unlike every config file."""
    toy_config.data.update(eval_short_side=48, validation_fraction=0.25)
    toy_config.data.train.update(source="coco", annotations="run's.json", images="run's")
    toy_config.data.eval.update(source="coco", annotations="", images="")
    toy_config.detections.iou_threshold = 0.625
    toy_config.init.update(source="checkpoint", path="torchvision_v2")
    write(tmp_path / "run", toy_config)
    return toy_config


def write(workdir, config):
    variables = {"params": {"kernel": np.zeros(1, np.float32)}}
    checkpoint.write_imported(workdir, variables, config, CATEGORIES)


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """`evaluated(*flags, command=...)`: the config with which the run is evaluated."""
    monkeypatch.chdir(tmp_path)
    given = []
    monkeypatch.setattr(
        train, "train_or_evaluate", lambda config, workdir, mode, **_: given.append((config, mode))
    )

    def evaluated(*flags, command=("evaluate",), workdir="run"):
        main(["retinanet-jax", *command, f"--workdir={workdir}", *flags])
        config, mode = given.pop()
        assert mode == "evaluate"
        return config

    return evaluated


def changes(config, other):
    return {name: now for name, _, now in differences(config, other)}


@pytest.mark.parametrize("command", [("evaluate",), ("train", "--mode=evaluate")])
def test_without_flags_it_is_the_checkpoints_config(trained, evaluated, command):
    config = evaluated(command=command)
    assert not changes(trained, config)
    assert config.is_locked


def test_data_that_were_moved_are_named_with_the_flag_that_helps(trained, error_line, tmp_path):
    trained.data.eval.update(annotations=str(tmp_path / "gone.json"), images=str(tmp_path))
    write(tmp_path / "second", trained)
    flag = f"--workdir={tmp_path / 'second'}"
    line = error_line("evaluate", flag)
    assert f"{tmp_path / 'gone.json'}: there is no such annotation file" in line
    assert line.endswith(
        " The checkpoint's config names this dataset; --data=FOLDER_OR_FILE gives another place."
    )
    line = error_line("evaluate", flag, "--config.data.eval.annotations=other.json")
    assert "The checkpoint's config" not in line


def test_fields_that_are_given_override_it(trained, evaluated):
    config = evaluated("--config.detections.iou_threshold=0.5", "--config.data.buckets=((96, 96),)")
    assert changes(trained, config) == {
        "detections.iou_threshold": 0.5,
        "data.buckets": [[96, 96]],
    }


def test_a_config_that_is_given_replaces_it(trained, evaluated):
    config = evaluated(TINY, "--config.detections.iou_threshold=0.75")
    assert changes(load_config("configs/shapes.py:tiny"), config) == {
        "detections.iou_threshold": 0.75
    }


def test_another_dataset_replaces_only_the_data(trained, evaluated, synthetic_dataset, capsys):
    """The run held images out, so that those of its own dataset in another place are, too."""
    config = evaluated(f"--data={synthetic_dataset}")
    annotations, images = f"{synthetic_dataset}/instances.json", f"{synthetic_dataset}/images"
    assert changes(trained, config) == {
        "data.train.annotations": annotations,
        "data.train.images": images,
    }
    line = "25% of the images are held out for evaluation; only the held-out images are used"
    assert line in capsys.readouterr().out
    config = evaluated(f"--data={synthetic_dataset}", "--config.data.validation_fraction=0")
    assert config.data.eval.annotations == annotations
    line = capsys.readouterr().out
    assert line.endswith(f"images in {synthetic_dataset}/images; all images are used\n")


def test_all_images_of_another_dataset_are_read_if_the_run_had_evaluation_data(
    trained, evaluated, synthetic_dataset, tmp_path
):
    trained.data.eval.update(annotations="other.json", images="other")
    trained.data.validation_fraction = 0.0
    write(tmp_path / "second", trained)
    config = evaluated(f"--data={synthetic_dataset}", workdir="second")
    assert config.data.eval.annotations == f"{synthetic_dataset}/instances.json"


def test_the_weights_of_the_training_are_accepted(trained, evaluated):
    assert not changes(trained, evaluated("--weights=torchvision_v2"))


def test_other_weights_than_those_of_the_training_are_an_error(trained, error_line, tmp_path):
    line = error_line("evaluate", f"--workdir={tmp_path / 'run'}", "--weights=torchvision_v1")
    assert "--weights=torchvision_v1, but the checkpoint in " in line
    assert "was trained with config.init.path='torchvision_v2'; leave --weights out to" in line


def test_weights_are_imported_into_a_workdir_without_a_checkpoint(
    trained, evaluated, tmp_path, monkeypatch, capsys
):
    """And evaluated with the config of their preset."""
    trained.init.update(source="", path="")
    write(tmp_path / "cache", trained)
    monkeypatch.setattr(cached, "checkpoint_folder", lambda weights: tmp_path / "cache")
    for _ in range(2):
        config = evaluated("--weights=mine.pth", workdir="new")
        assert changes(trained, config) == {"init.source": "checkpoint", "init.path": "mine.pth"}
    assert capsys.readouterr().out == f"mine.pth is now the checkpoint in {tmp_path / 'new'}\n"
    assert checkpoint.load(tmp_path / "new").categories == CATEGORIES


def test_a_working_directory_is_not_imported(trained, error_line, tmp_path):
    line = error_line("evaluate", f"--workdir={tmp_path / 'new'}", f"--weights={tmp_path / 'run'}")
    assert f"is a run's own folder; evaluate it with --workdir={tmp_path / 'run'}." in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flags", [(), (TINY,), ("--data=.",)])
def test_without_a_checkpoint_it_is_an_error(error_line, tmp_path, flags):
    line = error_line("evaluate", f"--workdir={tmp_path / 'none'}", *flags)
    assert "no checkpoint here; give the working directory of a training run" in line


@pytest.mark.slow
def test_the_evaluation_of_a_training_is_repeated_without_its_flags(tiny_run, program):
    """And another dataset's is that of its files, in a folder of its own."""
    files = {path.name: path.read_bytes() for path in (tiny_run.workdir / "eval").glob("*.json")}
    status, stdout, stderr = program.run("evaluate", f"--workdir={tiny_run.workdir}")
    assert status == 0, stderr
    assert f"written to {tiny_run.workdir / 'eval/8.json'}" in stdout
    for name, content in files.items():
        assert (tiny_run.workdir / "eval" / name).read_bytes() == content


@pytest.mark.slow
def test_a_file_of_predictions_has_the_ap_of_the_evaluation(tiny_run, program, tmp_path):
    """To the last digit, with the dataset's ids, although the images are read in another way."""
    data = f"--data={tiny_run.workdir / 'data/shapes-2'}"
    output = tmp_path / "out"
    weights = (f"--weights={tiny_run.workdir}", f"--output={output}", "--nodraw")
    status, stdout, stderr = program.run("predict", data, *weights)
    assert status == 0, stderr
    assert "; all images are used\n" in stdout
    predicted = json.loads((output / "detections.json").read_text())
    stored = json.loads((tiny_run.workdir / "eval/8_detections.json").read_text())
    assert len(predicted) == len(stored) > 50
    judged = tmp_path / "judged"
    file = f"--detections={output / 'detections.json'}"
    status, stdout, stderr = program.run("evaluate", file, data, f"--output={judged}")
    assert status == 0, stderr
    metrics = json.loads((judged / "evaluation.json").read_text())
    expected = json.loads((tiny_run.workdir / "eval/8.json").read_text())
    assert metrics["AP"] > 0
    for name, value in metrics.items():
        if name not in ("detections", "dataset"):
            assert value == expected[name], name
    assert metrics["dataset"]["sha256"] == expected["dataset"]["sha256"]
