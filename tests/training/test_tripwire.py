"""Steps that are not finite: each planted number is named, stored, and found again by a replay."""

import json
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from random_batches import NUM_CLASSES, make_batch

from retinanet_jax import checkpoint, input_pipeline, sharding
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Category
from retinanet_jax.modeling import build_model
from retinanet_jax.training import loop, replay, tripwire
from retinanet_jax.training.diagnosis import (
    MAX_NAME,
    Diagnosis,
    ImageName,
    NonfiniteArray,
    make_diagnose,
)
from retinanet_jax.training.initialization import random_train_state
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, count_steps, jit_train_step

IMAGES = (ImageName(70, "a.jpg"), ImageName(80, "b.jpg"))
CATEGORIES = tuple(Category(i, f"c{i}") for i in range(NUM_CLASSES))


class Step(NamedTuple):
    """A step of two images on one device, and its compiled functions."""

    state: TrainState
    batch: Batch
    run: Any
    diagnose: Any
    mesh: jax.sharding.Mesh


@pytest.fixture
def small_config(toy_config):
    """A config of the smallest detector, with batch norms and images that are not rounded."""
    toy_config.model.update(norm="batch", frozen_stages=0, backbone_width=8, head_depth=1)
    toy_config.anchors.update(scales=(1.0,), ratios=(1.0,), max_level=5)
    toy_config.data.update(batch_size=2, resize="bilinear_float")
    toy_config.init.update(source="", path="")
    return toy_config


@pytest.fixture(scope="module")
def compiled():
    """The steps of this file by the config fields that they differ in."""
    return {}


@pytest.fixture
def step(small_config, compiled) -> Step:
    """A step that is finite."""
    return make_step(small_config, compiled)


def make_step(config, compiled) -> Step:
    key = (config.nonfinite, config.model.norm)
    if key not in compiled:
        model, optimizer = build_model(config, NUM_CLASSES), make_optimizer(config)
        mesh = sharding.make_mesh(1, jax.devices()[:1])
        batch = make_batch(2)
        compiled[key] = Step(
            jax.device_get(random_train_state(config, NUM_CLASSES, optimizer)),
            batch._replace(images=batch.images.astype(np.float32), mask=np.ones_like(batch.mask)),
            jit_train_step(model, optimizer, config, mesh),
            make_diagnose(model, optimizer, config, mesh),
            mesh,
        )
    return compiled[key]


def plant(tree, name: str, value: float):
    """Return a copy of a tree with the last number of the array `name` replaced."""

    def planted(path, x):
        if not jax.tree_util.keystr(path, simple=True, separator="/").endswith(name):
            return x
        x = np.array(x)
        x.reshape(-1)[-1] = value
        planted.count += 1
        return x

    planted.count = 0
    tree = jax.tree_util.tree_map_with_path(planted, tree)
    assert planted.count == 1
    return tree


def run(step: Step, state, batch) -> tuple[TrainState, dict]:
    device_batch = sharding.put_batch(batch, sharding.batch_shardings(step.mesh))
    return jax.device_get(step.run(sharding.put_replicated(state, step.mesh), device_batch))


def store(step: Step, config, state, batch, path) -> None:
    replay.write_step(path, replay.StoredStep(1, config, CATEGORIES, IMAGES, batch, state))


def test_a_finite_step_changes_the_state_and_its_replay_says_so(
    step, small_config, tmp_path, monkeypatch, capsys
):
    after, metrics = run(step, step.state, step.batch)
    assert metrics["is_finite"] is np.True_ or bool(metrics["is_finite"])
    assert after.step == 1
    store(step, small_config, step.state, step.batch, tmp_path / "step_1.npz")
    monkeypatch.setattr(replay, "jit_train_step", lambda *_: step.run)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    replay.replay(tmp_path / "step_1.npz", {})
    assert f"step 1 is finite here: loss {metrics['loss']:g}, " in capsys.readouterr().out


# What is planted: (part of the step, name of the array, value, cause, advice).
PLANTED = {
    "pixel": (
        "batch",
        "images",
        np.nan,
        "the batch: images of image 80 (b.jpg)",
        "images or their annotations",
    ),
    "box": (
        "batch",
        "/boxes",
        np.inf,
        "the batch: boxes of image 80 (b.jpg)",
        "images or their annotations",
    ),
    "parameter": (
        "state",
        "params/fpn/output3/kernel",
        np.nan,
        "parameters before the step: fpn/output3/kernel",
        "start from other weights",
    ),
    "optimizer slot": (
        "state",
        "trace/fpn/output3/kernel",
        np.inf,
        "optimizer state before the step: trace of fpn/output3/kernel",
        "an earlier checkpoint",
    ),
    "batch statistics": (
        "state",
        "batch_stats/backbone/stem_norm/var",
        np.nan,
        "batch statistics before the step: backbone/stem_norm/var",
        "an earlier checkpoint",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_number_is_named_and_changes_nothing_and_a_replay_finds_it(
    step, small_config, planted, tmp_path, monkeypatch, capsys
):
    part, name, value, cause, advice = PLANTED[planted]
    state, batch = step.state, step.batch
    if part == "state":
        state = TrainState(**plant(replay.saved_part(state), name, value))
    else:
        batch = Batch(**plant({"": batch._asdict()}, name, value)[""])
    after, metrics = run(step, state, batch)
    assert not metrics["is_finite"]
    assert not after.is_finite
    jax.tree.map(
        np.testing.assert_array_equal,
        after._replace(is_finite=True),
        state._replace(is_finite=True),
    )

    store(step, small_config, state, batch, tmp_path / "step_1.npz")
    monkeypatch.setattr(replay, "jit_train_step", lambda *_: step.run)
    monkeypatch.setattr(replay, "make_diagnose", lambda *_: step.diagnose)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    with pytest.raises(FloatingPointError) as error:
        replay.replay(tmp_path / "step_1.npz", {})
    line = str(error.value)
    assert line.startswith("step 1 is not finite (loss ")
    assert f"; cause: {cause}; " in line
    assert advice in line
    assert "\n" not in line
    assert "not finite in " in capsys.readouterr().out
