"""The moving average of the variables: its values, and which of a state's variables are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batches import make_batch

from retinanet_jax import sharding
from retinanet_jax.checkpoint import CheckpointManager, load
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.sources.base import Category
from retinanet_jax.training import initialization, step
from retinanet_jax.training.averaging import update_average
from retinanet_jax.training.normalizers import LossTerms
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, make_train_step

CATEGORIES = (Category(1, "dog"),)


def test_the_first_variables_are_soon_forgotten():
    """Weights 9/10, 9/11, 9/12, ... of the new variables, until these are smaller than 1/4."""
    average = jnp.float32(0)
    for done, expected in [(0, 9.0), (1, 9 + 9 / 11), (26, 9 + 9 / 11 + 2 / 11 * 9 / 36)]:
        average = update_average(average, jnp.float32(10), jnp.int32(done), 0.75)
        assert average == pytest.approx(expected, rel=1e-6)
    assert update_average(jnp.float32(0), jnp.float32(8), jnp.int32(27), 0.75) == 2
    assert update_average(jnp.float32(0), jnp.float32(8), jnp.int32(10**6), 0.75) == 2


def test_the_average_is_that_of_tensorflows_rule():
    values = np.random.default_rng(0).normal(size=(60, 5))
    expected = values[0]
    for done, value in enumerate(values):
        decay = min(0.8, (1 + done) / (10 + done))
        expected = decay * expected + (1 - decay) * value
    with jax.enable_x64(True):
        average = {"a": jnp.asarray(values[0])}
        for done, value in enumerate(values):
            average = update_average(average, {"a": value}, jnp.int32(done), 0.8)
    np.testing.assert_allclose(average["a"], expected, rtol=1e-10)


def test_an_array_that_never_changes_is_its_average_bit_for_bit():
    frozen = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    average, update = frozen, jax.jit(update_average, static_argnums=3)
    for done in (*range(30), 10**6):
        average = update(average, frozen, jnp.int32(done), 0.9998)
    np.testing.assert_array_equal(average, frozen)


def variables(fill):
    return {"params": {"kernel": jnp.full(3, fill)}, "batch_stats": {"mean": jnp.full(2, -fill)}}


@pytest.mark.parametrize("average", [None, variables(7.0)])
def test_a_state_is_restored_from_the_items_of_its_checkpoint(average):
    state = TrainState(np.int32(3), *variables(1.0).values(), (), np.float32(100), average=average)
    jax.tree.map(np.testing.assert_array_equal, state.variables, average or variables(1.0))
    restored = TrainState.of_checkpoint(state.variables, state.training)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.fixture
def fake_step(toy_config, monkeypatch):
    """The train step of one parameter, x, with the loss x^2 / 2, and the state before the first.

    The statistic of a batch is its first pixel.
    """

    def gradient(params, batch_stats, normalizer, batch):
        loss, pixel = params["x"] ** 2 / 2, batch.images[0, 0, 0, 0]
        terms = LossTerms(loss, loss, 0 * loss, 0 * loss, normalizer)
        return params, None, terms, {"mean": pixel}

    monkeypatch.setattr(step, "make_gradient", lambda *_: gradient)
    toy_config.nonfinite = "skip"
    toy_config.optimizer.update(momentum=0.0, weight_decay=0.0, clip_norm=0.0, ema_decay=0.9)
    toy_config.optimizer.update(learning_rate=0.5, warmup_steps=0, drops=())
    toy_config.optimizer.reference_batch_size = toy_config.data.batch_size
    optimizer = make_optimizer(toy_config)
    variables = {"params": {"x": jnp.float32(8)}, "batch_stats": {"mean": jnp.float32(0)}}
    state = initialization.train_state_from_variables(variables, toy_config, optimizer)
    return jax.jit(make_train_step(None, optimizer, toy_config)), state


def numbered(number):
    return make_batch(1)._replace(images=np.full((1, 64, 64, 3), number, np.float32))


def test_a_step_averages_parameters_and_statistics_and_a_skipped_one_does_not(fake_step):
    run, state = fake_step
    assert float(state.average["params"]["x"]) == 8
    for number in (1, 2):  # x becomes 4 and 2
        state, _ = run(state, numbered(number))
    assert float(state.params["x"]) == 2
    after_one = {"x": 8 + 0.9 * (4 - 8), "mean": 0.9 * 1}
    x = after_one["x"] + 9 / 11 * (2 - after_one["x"])
    mean = after_one["mean"] + 9 / 11 * (2 - after_one["mean"])
    assert float(state.average["params"]["x"]) == pytest.approx(x, rel=1e-6)
    assert float(state.average["batch_stats"]["mean"]) == pytest.approx(mean, rel=1e-6)
    skipped, metrics = run(state, numbered(np.nan))
    assert not metrics["is_finite"]
    assert skipped.step == 3
    jax.tree.map(np.testing.assert_array_equal, skipped.average, state.average)
    # The next weight is that of the number of steps, which counts skipped ones.
    after, _ = run(skipped, numbered(2))
    assert float(after.average["params"]["x"]) == pytest.approx(x + 9 / 13 * (1 - x), rel=1e-6)


def test_an_average_that_is_not_finite_ends_the_run(fake_step):
    run, state = fake_step
    broken = {**state.average, "params": {"x": jnp.float32(np.inf)}}
    after, metrics = run(state._replace(average=broken), numbered(1))
    assert not metrics["is_finite"]
    assert after.params["x"] == 8


def test_without_an_average_a_state_and_a_checkpoint_have_no_further_array(fake_step, toy_config):
    """And so the compiled step is the same program as if there were no averages."""
    _, state = fake_step
    toy_config.optimizer.ema_decay = 0.0
    optimizer = make_optimizer(toy_config)
    off = initialization.train_state_from_variables(state.latest, toy_config, optimizer)
    assert off.average is None
    assert len(jax.tree.leaves(off)) == len(jax.tree.leaves(state)) - 2
    assert set(off.training) == {"step", "opt_state", "normalizer"}


@pytest.fixture
def resume(tmp_path, monkeypatch, config):
    """A function `(decay before, decay after) -> state resumed from step 40`."""
    monkeypatch.setattr(initialization, "initialize", lambda *_: variables(1.0))

    def with_decay(decay):
        changed = config.copy_and_resolve_references()
        changed.optimizer.ema_decay = decay
        return changed, make_optimizer(changed)

    def resume(before, after):
        saved, optimizer = with_decay(before)
        state = initialization.train_state_from_variables(variables(1.0), saved, optimizer)
        state = state._replace(step=jnp.int32(40), average=state.average and variables(7.0))
        with CheckpointManager(tmp_path, saved, CATEGORIES) as checkpoints:
            checkpoints.save(40, state.variables, state.training)
            checkpoints.confirm(40)
        current, optimizer = with_decay(after)
        with CheckpointManager(tmp_path, current, CATEGORIES) as checkpoints:
            return initialization.restore_or_initialize(
                current, CATEGORIES, optimizer, checkpoints, sharding.make_mesh(1)
            )

    return resume


def assert_variables(tree, fill):
    jax.tree.map(np.testing.assert_array_equal, tree, variables(fill))


def test_a_checkpoint_has_the_average_as_its_variables_and_resumes_with_both(
    resume, tmp_path, capsys
):
    state = resume(0.9, 0.9)
    assert_variables(load(tmp_path).variables, 7.0)
    assert_variables(state.average, 7.0)
    assert_variables(state.latest, 1.0)
    assert "average" not in capsys.readouterr().out


@pytest.mark.parametrize("fills", [(np.nan, 1.0), (1.0, np.nan)])
def test_neither_an_average_nor_latest_variables_that_are_not_finite_are_saved(
    tmp_path, config, fills
):
    average, latest = map(variables, fills)
    with (
        CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints,
        pytest.raises(FloatingPointError, match=r"not finite: batch_stats/mean, params/kernel\.$"),
    ):
        checkpoints.save(40, average, {"step": jnp.int32(40), **latest})


def test_a_checkpoint_without_an_average_starts_one_at_its_variables(resume, capsys):
    state = resume(0.0, 0.9)
    assert_variables(state.average, 1.0)
    assert_variables(state.latest, 1.0)
    # A step reuses the memory of both.
    shards = [x.addressable_shards[0].data for x in jax.tree.leaves((state.average, state.latest))]
    pointers = [shard.unsafe_buffer_pointer() for shard in shards]
    assert len(set(pointers)) == len(pointers)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the average of the variables starts with those of step 40"
    )


def test_a_run_without_an_average_continues_with_the_latest_variables(resume, capsys):
    state = resume(0.9, 0.0)
    assert state.average is None
    assert_variables(state.latest, 1.0)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the average of the variables ends with step 40: training continues with the latest "
        "variables, and these are evaluated"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimizer.ema_decay", 1.0), ("optimizer.ema_decay", -0.1), ("patience", -1)],
)
def test_a_decay_or_a_patience_out_of_range_is_refused(config, name, value):
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=rf"^config\.{name}={value:g} must be .*, or .*\.$"):
        check_fields(config)
