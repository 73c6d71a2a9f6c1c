"""What `train --data` chooses for the device, and what a command line may leave to the run."""

import types

import jax
import numpy as np
import pytest

from retinanet_jax import checkpoint
from retinanet_jax.cli import inspect_data, train
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.stored_config import differences


@pytest.fixture
def config_of(monkeypatch, synthetic_dataset, tmp_path):
    """`config_of(*flags, platform="cpu")`: the config with which `train --data` would start."""
    monkeypatch.chdir(tmp_path)

    def config_of(*flags, platform="cpu", command=train):
        given = []

        def record(config, *_, **__):
            given.append(config)

        device = types.SimpleNamespace(platform=platform, **{"device_kind": "NVIDIA Z"})
        monkeypatch.setattr(train, "train_or_evaluate", record)
        monkeypatch.setattr(inspect_data, "make_report", record)
        monkeypatch.setattr(jax, "devices", lambda: [device])
        data = f"--data={synthetic_dataset / 'instances.json'}"
        folder = "--output=report" if command is inspect_data else "--workdir=run"
        run_command(command.COMMAND, ["program", folder, data, *flags])
        return given[0]

    return config_of


def changed_fields(config, arg):
    """The fields, except those that name the data, in which a config differs from finetune.py."""
    before = load_config(f"configs/finetune.py:{arg}")
    names = {name for name, *_ in differences(before, config)}
    return {name for name in names if not name.startswith("data.train.")}


@pytest.mark.parametrize(
    ("platform", "arg"), [("cpu", ""), ("gpu", "gpu"), ("tpu", "gpu"), ("cpu", "cpu")]
)
def test_without_a_config_the_device_chooses_the_variant(config_of, capsys, platform, arg):
    assert not changed_fields(config_of(platform=platform), arg)
    name, other = ("cpu", "gpu") if platform == "cpu" else ("gpu", "cpu")
    assert capsys.readouterr().out.startswith(
        f"config: configs/finetune.py:{name}, because the device is NVIDIA Z; "
        f"--config=configs/finetune.py:{other} is the other\ndata: COCO"
    )


def test_the_variant_combines_with_the_weights(config_of):
    assert not changed_fields(config_of("--weights=resnet50", platform="gpu"), "imagenet,gpu")


@pytest.mark.parametrize("arg", ["", "torchvision_v1", "cpu"])
def test_a_config_that_is_given_wins(config_of, capsys, arg):
    flag = f"--config=configs/finetune.py:{arg}".rstrip(":")
    assert not changed_fields(config_of(flag, platform="gpu"), arg)
    assert "config: " not in capsys.readouterr().out


def test_a_field_that_is_given_wins(config_of):
    flags = ("--config.dtype=float32", "--config.data.batch_size=4")
    config = config_of(*flags, platform="gpu")
    assert changed_fields(config, "gpu") == {"dtype", "data.batch_size"}
    assert (config.dtype, config.data.batch_size) == ("float32", 4)


def test_steps_that_are_given_win_over_the_epochs_of_the_variant(config_of):
    config = config_of("--config.total_steps=7", platform="gpu")
    assert (config.total_steps, config.epochs) == (7, 0)


def test_a_run_that_was_started_on_another_device_resumes_as_it_was(config_of, tmp_path):
    """Also one of an earlier version, which had no variant for GPUs."""
    saved = load_config("configs/finetune.py:cpu").unlock()
    saved.data.update(short_sides=(224,), batch_size=3)
    variables = {"params": {"kernel": np.zeros(3, np.float32)}}
    checkpoint.write_imported(tmp_path / "run", variables, saved, COCO_CATEGORIES)
    config = config_of(platform="gpu")
    assert changed_fields(config, "cpu") == {"data.short_sides", "data.batch_size"}
    assert (config.data.short_sides, config.data.batch_size) == ((224,), 3)
    assert config_of("--config.data.batch_size=5", platform="gpu").data.batch_size == 5


def test_the_dataset_report_is_about_the_same_run(config_of):
    """Its batches are the largest that the run may have."""
    config = config_of(platform="gpu", command=inspect_data)
    assert changed_fields(config, "gpu") == {"data.batch_size"}
    assert config.data.batch_size == 16


# ---- auto


def test_auto_leaves_a_field_to_the_run(config_of):
    config = config_of("--config.data.batch_size=auto", "--config.anchors=auto")
    assert changed_fields(config, "") == {"data.batch_size", "choose_anchors"}
    assert (config.data.batch_size, config.choose_anchors) == (0, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--config.data.eval_batch_size=auto",),
            "config.data.eval_batch_size=auto must be an integer",
        ),
        (("--config.anchors=3",), "config.anchors is not a config field"),
        (
            ("--config.epochs=2", "--config.total_steps=9"),
            "--config.total_steps and --config.epochs are both the length of a run; give one.",
        ),
        (
            ("--config.anchors=auto", "--config.anchors.base_scale=2"),
            "--config.anchors=auto chooses anchors, but --config.anchors.base_scale is given; ",
        ),
        (
            ("--config.data.augmentation=strong", "--config.data.mosaic=0"),
            "--config.data.mosaic=0.0 is off, and so --config.data.augmentation=strong sets it to "
            "0.7; leave it out, ",
        ),
    ],
)
def test_what_contradicts_it_is_one_line(error_line, tmp_path, flags, message):
    assert message in error_line("train", *flags, f"--workdir={tmp_path / 'run'}")
