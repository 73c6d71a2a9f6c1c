"""CheckpointManager: complete or absent, bit for bit, and refused where they do not fit."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retinanet_jax import checkpoint, sharding
from retinanet_jax.checkpoint import CheckpointManager
from retinanet_jax.data.sources.base import Category

CATEGORIES = (Category(3, "dog"), Category(7, "cat"))


def variables(fill: float, width: int = 4):
    return {
        "params": {"backbone": {"kernel": jnp.full((3, width), fill)}},
        "batch_stats": {"backbone": {"mean": jnp.arange(3.0) * fill}},
    }


def training(fill: float, optimizer=None):
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    opt_state = optimizer.init(variables(fill)["params"])
    return {
        "step": jnp.int32(fill),
        "opt_state": jax.tree.map(lambda x: x + jnp.asarray(fill, x.dtype), opt_state),
        "normalizer": jnp.float32(fill / 3),
    }


def save(workdir, config, aps: dict[int, float | None], categories=CATEGORIES):
    with CheckpointManager(workdir, config, categories) as checkpoints:
        for step, ap in aps.items():
            checkpoints.save(step, variables(step), training(step), ap)


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), a, b)


def test_what_is_restored_is_what_was_saved(tmp_path, config):
    save(tmp_path, config, {5: None})
    mesh = sharding.make_mesh(2)
    target = sharding.put_replicated((variables(0), training(0)), mesh)
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        assert checkpoints.latest_step() == 5
        restored = checkpoints.restore(5, *target)
    assert_same(restored, (variables(5), training(5)))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == sharding.replicated(mesh)


def test_a_checkpoint_alone_is_enough_to_predict(tmp_path, config):
    save(tmp_path, config, {5: None})
    trained = checkpoint.load(tmp_path)
    assert_same(jax.tree.map(jnp.asarray, trained.variables), variables(5))
    assert trained.categories == CATEGORIES
    assert (trained.step, trained.folder) == (5, tmp_path / "checkpoints" / "5")
    # JSON makes tuples lists; all else is as it was.
    assert trained.config.to_json() == config.to_json()
    checkpoint.check_model(trained.folder, trained.config, config)


@pytest.mark.slow
def test_a_checkpoint_of_8_devices_is_loaded_where_there_is_1(tmp_path, config):
    saved = sharding.put_replicated((variables(5), training(5)), sharding.make_mesh(1))
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        checkpoints.save(5, *saved, None)
    load = (
        "import sys, jax\n"
        "from retinanet_jax import checkpoint\n"
        "trained = checkpoint.load(sys.argv[1])\n"
        "kernel = trained.variables['params']['backbone']['kernel']\n"
        "print(jax.device_count(), trained.step, type(kernel).__name__, kernel.sum())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    loaded = subprocess.run(
        [sys.executable, "-c", load, tmp_path], env=environment, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ["1", "5", "ndarray", "60"]
    assert "found in the checkpoint" not in loaded.stderr


@pytest.mark.parametrize("name", ["best", "12"])
def test_a_checkpoint_may_be_copied_and_renamed(tmp_path, config, name):
    save(tmp_path / "run", config, {5: None})
    copy = shutil.copytree(tmp_path / "run" / "checkpoints" / "5", tmp_path / name)
    trained = checkpoint.load(copy)
    assert (trained.step, trained.folder) == (5, copy)
    assert_same(jax.tree.map(jnp.asarray, trained.variables), variables(5))


def test_the_last_ones_and_the_best_are_kept(tmp_path, config):
    config.keep_checkpoints = 2
    save(tmp_path, config, {1: 0.1, 2: 0.5, 3: None, 4: 0.2})
    assert steps(tmp_path) == [2, 3, 4]
    # After a restart the best is still known.
    save(tmp_path, config, {5: 0.3, 6: None, 7: 0.4})
    assert steps(tmp_path) == [2, 6, 7]
    save(tmp_path, config, {8: 0.6, 9: None, 10: None})
    assert steps(tmp_path) == [8, 9, 10]


def test_the_best_is_loaded_else_the_newest(tmp_path, config):
    config.keep_checkpoints = 5
    save(tmp_path, config, {1: None, 2: None})
    assert checkpoint.load(tmp_path).step == 2
    save(tmp_path, config, {3: 0.4, 4: 0.5, 5: 0.5, 6: -1.0, 7: None})
    assert checkpoint.load(tmp_path).step == 5
    assert checkpoint.saved_ap(tmp_path / "checkpoints" / "4") == 0.5
    assert checkpoint.saved_ap(tmp_path / "checkpoints" / "7") == checkpoint.NOT_MEASURED
    for place in ("checkpoints", "checkpoints/5"):
        assert checkpoint.load(tmp_path / place).step == 5
    np.testing.assert_array_equal(
        checkpoint.load(tmp_path / "checkpoints/3").variables["params"]["backbone"]["kernel"], 3
    )
    # Training goes on from the newest, whatever its AP.
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        assert checkpoints.latest_step() == 7


def test_a_half_written_checkpoint_does_not_count_and_goes(tmp_path, config):
    save(tmp_path, config, {1: None})
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "variables").mkdir(parents=True)
    assert checkpoint.load(tmp_path).step == 1
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        assert not half.exists()  # not a thread's matter, which may outlive the manager
        assert checkpoints.latest_step() == 1
    save(tmp_path, config, {2: None})
    assert checkpoint.load(tmp_path).step == 2


@pytest.mark.parametrize("make", [False, True])
def test_no_checkpoint_is_told(tmp_path, make):
    folder = tmp_path / "run"
    if make:
        (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run: no checkpoint here; give a --workdir") as e:
        checkpoint.load(folder)
    assert "\n" not in str(e.value)


def refused(checkpoints, target, match):
    with pytest.raises(ValueError, match=match) as error:
        checkpoints.restore(checkpoints.latest_step(), *target)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(tmp_path, config):
    save(tmp_path, config, {5: None})
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        other = variables(0, width=8)
        del other["batch_stats"]["backbone"]["mean"]
        refused(
            checkpoints,
            (other, training(0)),
            r"5: weights of another model; 2 arrays differ: batch_stats/backbone/mean \(3,\) "
            r"\(config: None\), params/backbone/kernel \(3, 4\) \(config: \(3, 8\)\)",
        )


@pytest.mark.parametrize("same_leaves", [False, True])
def test_the_state_of_another_optimizer_is_refused(tmp_path, config, same_leaves):
    save(tmp_path, config, {5: None})
    other = optax.trace(0.9) if same_leaves else optax.adamw(0.1)
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        refused(
            checkpoints, (variables(0), training(0, other)), "5: .*optimizer.*another --workdir"
        )


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (CATEGORIES[:1], r"trained on 2 categories, the data has 1; .*first in .*cat"),
        ((*CATEGORIES, Category(9, "cow")), r"trained on 2 categories, the data has 3; .*cow"),
        ((CATEGORIES[0], Category(7, "cow")), "they differ first in .*cat"),
        (CATEGORIES[::-1], "they differ first in their order"),
    ],
)
def test_other_categories_are_refused(tmp_path, config, categories, message):
    save(tmp_path, config, {5: None})
    with CheckpointManager(tmp_path, config, categories) as checkpoints:
        refused(checkpoints, (variables(0), training(0)), message)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "stride_in_1x1", False),
        ("anchors", "ratios", (1.0, 0.5, 2.0)),
        ("input", "mean", (0.0, 0.0, 0.0)),
    ],
)
def test_another_meaning_of_the_same_weights_is_refused(tmp_path, config, section, field, value):
    """Each of these leaves all shapes as they are. Evaluation and resuming refuse alike."""
    save(tmp_path, config, {5: None})
    trained = checkpoint.load(tmp_path)
    config[section][field] = value
    told = f"5: trained with config.{section}.{field}=.*, this run has .*use the config it"
    with pytest.raises(ValueError, match=told):
        checkpoint.check_model(trained.folder, trained.config, config)
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        refused(checkpoints, (variables(0), training(0)), told)


def test_what_else_differs_is_told_in_one_line(tmp_path, config, capsys):
    save(tmp_path, config, {5: None})
    restored = []

    def resume():
        with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
            restored.append(checkpoints.restore(5, variables(0), training(0)))

    resume()
    assert capsys.readouterr().out == ""
    config.seed = 3
    config.data.update(batch_size=8, short_sides=(640, 800))
    resume()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "5: goes on with config.data.batch_size=8 (was 16), "
        "config.data.short_sides=[640, 800] (was [800]), config.seed=3 (was 0)"
    )
    assert_same(*restored)


def test_a_checkpoint_of_another_version_is_told_by_its_fields(tmp_path, config):
    config = config.unlock()
    del config.evaluator
    save(tmp_path, config, {5: None})
    told = r"5: written by another version of this program: config\.evaluator is missing"
    with pytest.raises(ValueError, match=told):
        checkpoint.load(tmp_path)


def test_imported_weights_are_loaded_and_never_resumed(tmp_path, config):
    checkpoint.write_imported(tmp_path / "run", variables(2), config, CATEGORIES)
    trained = checkpoint.load(tmp_path / "run")
    assert_same(jax.tree.map(jnp.asarray, trained.variables), variables(2))
    assert (trained.step, trained.categories) == (0, CATEGORIES)
    config.model.fpn_channels = 7  # what else is wrong does not matter
    with CheckpointManager(tmp_path / "run", config, CATEGORIES[:1]) as checkpoints:
        assert checkpoints.latest_step() == 0
        refused(
            checkpoints,
            (variables(0), training(0)),
            "run/checkpoints/0: imported weights, which no training can be resumed from; .* with "
            rf"--config\.init\.source=checkpoint --config\.init\.path={tmp_path}/run and another",
        )
