"""The state that training starts from: the weights of `config.init`, or a checkpoint."""

import ast
import shlex

import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import sharding
from retinanet_jax.checkpoint import CheckpointManager
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.training import initialization
from retinanet_jax.training.optimizer import make_optimizer


def test_an_imported_backbone_replaces_only_the_random_backbone():
    variables = {
        "params": {"backbone": {"a": jnp.zeros(2)}, "fpn": {"b": jnp.zeros(1)}},
        "batch_stats": {"backbone": {"mean": jnp.zeros(2)}},
    }
    backbone = {
        "params": {"a": np.ones(2)},
        "batch_stats": {"mean": np.ones(2)},
    }
    result = initialization.replace_backbone(variables, backbone, "w.npz")
    assert result["params"]["backbone"]["a"].tolist() == [1, 1]
    assert result["params"]["fpn"]["b"].tolist() == [0]
    assert result["batch_stats"]["backbone"]["mean"].tolist() == [1, 1]
    backbone["params"]["a"] = np.ones(3)
    with pytest.raises(ValueError, match=r"w\.npz: .*params/a \(3,\) \(config: \(2,\)\)"):
        initialization.replace_backbone(variables, backbone, "w.npz")


def test_a_missing_weights_file_is_an_error_before_anything_compiles(config, tmp_path, monkeypatch):
    config.init.path = str(tmp_path / "absent.npz")
    monkeypatch.setattr(initialization, "initialize", lambda *_: pytest.fail("compiled"))
    with pytest.raises(FileNotFoundError, match=r"absent\.npz does not exist, and is no name"):
        initialization.initial_train_state(config, COCO_CATEGORIES, make_optimizer(config))


@pytest.fixture
def resume(tmp_path, monkeypatch):
    """A function `(saved config, config) -> state`, for a checkpoint of 90,000 steps."""
    variables = {"params": {"conv": {"kernel": jnp.ones(3)}}, "batch_stats": {}}
    monkeypatch.setattr(initialization, "initialize", lambda *_: variables)

    def resume(saved, config):
        state = initialization.train_state_from_variables(variables, saved, make_optimizer(saved))
        with CheckpointManager(tmp_path, saved, COCO_CATEGORIES) as checkpoints:
            if not checkpoints.is_complete(90_000):
                checkpoints.save(90_000, state.variables, state.training)
                checkpoints.confirm(90_000)
        with CheckpointManager(tmp_path, config, COCO_CATEGORIES) as checkpoints:
            return initialization.restore_or_initialize(
                config, COCO_CATEGORIES, make_optimizer(config), checkpoints, sharding.make_mesh(1)
            )

    return resume


def test_a_longer_total_prints_the_rate_of_the_next_step_before_the_run(resume, config, capsys):
    saved = config.copy_and_resolve_references()
    config.total_steps = 180_000
    resume(saved, config)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the learning rate of step 90001 becomes 0.01; with the checkpoint's config it is 0.0001; "
        "to keep it, give --config.optimizer.schedule_steps=90000"
    )


def test_a_longer_total_with_the_same_schedule_prints_no_rate(resume, config, capsys):
    saved = config.copy_and_resolve_references()
    config.total_steps, config.optimizer.schedule_steps = 180_000, 90_000
    resume(saved, config)
    assert "learning rate" not in capsys.readouterr().out


def test_a_run_that_prepares_images_in_another_way_prints_the_flags_of_its_checkpoint(
    resume, config, capsys
):
    saved = config.copy_and_resolve_references()
    config.data.update(augmentation="light", batch_size=4, buckets=((256, 256),), flip=False)
    config.optimizer.update(learning_rate=0.1, reference_batch_size=4)
    resume(saved, config)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("images"))
    before, flags = line.split("give ")
    assert "another way from step 90001 on" in before
    values = dict(flag.removeprefix("--config.").split("=") for flag in shlex.split(flags))
    assert [values.pop(f"data.{name}") for name in ("augmentation", "batch_size")] == ["", "16"]
    assert ast.literal_eval(values.pop("data.buckets")) == saved.data.buckets
    optimizer = {"optimizer.learning_rate": "0.01", "optimizer.reference_batch_size": "16"}
    assert values == {"data.flip": "True", **optimizer}


def test_fields_that_change_no_image_print_nothing(resume, config, capsys):
    saved = config.copy_and_resolve_references()
    config.data.update(loader="numpy", threads=3, eval_batch_size=1)
    config.data.train.annotations = "moved.json"
    resume(saved, config)
    assert "images" not in capsys.readouterr().out


def test_a_run_with_an_average_of_the_whole_batch_resumes_with_it(resume):
    """Earlier versions had one average in detectron2's preset, which now has eight."""
    config = load_config("configs/detectron2.py").unlock()
    assert initialization.normalizer_shape(config) == (8,)
    saved = config.copy_and_resolve_references()
    saved.loss.ema_images = 0
    with pytest.raises(
        ValueError, match=r"shape \(\), this run has \(8,\); .*ema_images=0\.$"
    ) as e:
        resume(saved, config)
    assert "\n" not in str(e.value)
    config.loss.ema_images = 0
    assert resume(saved, config).normalizer.shape == ()


def test_another_number_of_averages_is_an_error_with_the_field_to_set(resume):
    saved = load_config("configs/detectron2.py").unlock()
    config = saved.copy_and_resolve_references()
    config.data.batch_size = 32
    with pytest.raises(ValueError, match=r"\(8,\), this run has \(16,\); .*ema_images=4\.$"):
        resume(saved, config)
    config.loss.ema_images = 4
    assert resume(saved, config).normalizer.shape == (8,)
    config.data.batch_size = 20
    with pytest.raises(ValueError, match=r"batch_size that is a multiple of 8\.$"):
        resume(saved, config)
    config.update(saved)
    config.loss.ema_images = 0
    with pytest.raises(ValueError, match=r"\(8,\), this run has \(\); .*ema_images=2\.$"):
        resume(saved, config)
