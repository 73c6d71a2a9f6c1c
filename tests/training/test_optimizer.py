"""The learning rate schedule, and which parameters the optimizer moves."""

import ast
import bisect
import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from retinanet_jax.config import load_config
from retinanet_jax.config_checks import check_fields
from retinanet_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    print_rate_change,
    scaled_learning_rate,
)

# ---- the learning rate


@pytest.mark.parametrize(("batch_size", "rate"), [(16, 0.01), (8, 0.005), (256, 0.16)])
def test_the_learning_rate_is_linear_in_the_batch_size(config, batch_size, rate):
    config.data.batch_size = batch_size
    assert scaled_learning_rate(config) == pytest.approx(rate)


def test_the_papers_schedule_by_hand(config):
    rate = make_schedule(config)
    for step, expected in {
        0: 0.01 / 3,
        250: 0.01 * 2 / 3,
        499: 0.01 * (1 / 3 + 2 / 3 * 499 / 500),
        500: 0.01,
        59_999: 0.01,
        60_000: 0.001,
        79_999: 0.001,
        80_000: 0.0001,
        89_999: 0.0001,
    }.items():
        assert rate(step) == pytest.approx(expected, rel=1e-6), step


def detectron_rates(steps, total, drops):
    """Detectron's: from a third of the rate over 500 steps."""
    return [
        0.01 * min(1 / 3 + (1 - 1 / 3) * step / 500, 1) * 0.1 ** bisect.bisect_right(drops, step)
        for step in steps
    ]


def detectron2_rates(steps, total, drops):
    """detectron2's, in fractions of the run, with fvcore's tolerance of 1e-6 of the run."""
    end_of_warmup = 1_000 / total

    def multiplier(where):
        if where + 1e-6 > end_of_warmup:
            return 0.1 ** bisect.bisect_right(drops, int((where + 1e-6) * total))
        return 0.001 + (1 - 0.001) * where / end_of_warmup

    return [0.01 * multiplier(step / total) for step in steps]


def torchvision_rates(peak):
    """LinearLR in the first of 26 epochs, which multiplies, and MultiStepLR after each epoch."""

    def rates(steps, total, drops):
        rate, result, epoch = peak * 0.001, [], total // 26
        for step in range(max(steps) + 1):
            result.append(rate)
            if step < 1_000:
                rate *= 1 + (1 - 0.001) / (1_000 * 0.001 + step * (1 - 0.001))
            if step + 1 in (16 * epoch, 22 * epoch):
                rate *= 0.1
        return [result[step] for step in steps]

    return rates


@pytest.mark.parametrize(
    ("name", "reference", "drops"),
    [
        ("r50_fpn", detectron_rates, (60_000, 80_000)),
        ("r101_fpn_1_5x", detectron_rates, (90_000, 120_000)),
        ("detectron2:1x", detectron2_rates, (60_000, 80_000)),
        ("detectron2:3x", detectron2_rates, (210_000, 250_000)),
        ("torchvision:v1", torchvision_rates(0.01), (118_288, 162_646)),
        ("torchvision:v2", torchvision_rates(1e-4), (118_288, 162_646)),
    ],
)
def test_every_step_has_the_rate_of_the_reference_implementation(name, reference, drops):
    config = load_config("configs/{}.py{}{}".format(*name.partition(":")))
    around_drops = [drop + offset for drop in drops for offset in range(-3, 4)]
    steps = [*range(2_000), *around_drops, config.total_steps - 1]
    np.testing.assert_allclose(
        make_schedule(config)(jnp.array(steps)),
        reference(steps, config.total_steps, drops),
        rtol=2e-6,
    )


def test_the_warmup_of_the_libraries_by_hand():
    """What torch's LinearLR(start_factor=0.001, total_iters=1000) has at these steps."""
    rate = make_schedule(load_config("configs/torchvision.py:v1"))
    steps = {0: 1e-5, 1: 1.999e-5, 2: 2.998e-5, 500: 5.005e-3, 999: 9.99001e-3, 1_000: 0.01}
    np.testing.assert_allclose([rate(step) for step in steps], [*steps.values()], rtol=1e-6)


def test_without_warmup_the_first_step_has_the_peak(config):
    config.optimizer.warmup_steps = 0
    assert make_schedule(config)(0) == pytest.approx(0.01)


def test_drops_at_the_same_step_all_count(config):
    config.total_steps = 1  # 2/3 and 8/9 of it are rounded to 1
    config.optimizer.warmup_steps = 0
    np.testing.assert_allclose(make_schedule(config)(jnp.array([0, 1])), [0.01, 1e-4], rtol=1e-6)


def test_the_cosine_schedule_ends_at_zero(config):
    config.total_steps = 1000
    config.optimizer.update(schedule="cosine", warmup_steps=0)
    rate = make_schedule(config)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 250, 500, 1000)],
        [0.01, 0.01 * (1 + np.cos(np.pi / 4)) / 2, 0.005, 0],
        atol=1e-8,
    )


def test_the_schedule_is_a_pure_function_of_the_step(config):
    rate = make_schedule(config)
    steps = jnp.array([0, 100, 70_000])
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), [rate(s) for s in steps], rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "choices"), [("schedule", "step, cosine"), ("name", "sgd, adamw")]
)
def test_an_unknown_choice_is_refused_with_the_known_ones(config, field, choices):
    config.optimizer[field] = "linear"
    with pytest.raises(
        ValueError, match=rf"^optimizer\.{field}='linear' must be one of {choices}\.$"
    ):
        make_optimizer(config)


# ---- the length of the schedule, and resumed runs


def test_a_run_longer_than_its_schedule_goes_on_at_the_last_rate(config):
    steps = jnp.array([0, 300, 59_999, 60_000, 80_000, 89_999, 90_000, 179_999])
    expected = make_schedule(config)(steps)
    np.testing.assert_allclose(expected[-2:], 1e-4, rtol=1e-6)
    config.total_steps = 180_000
    config.optimizer.schedule_steps = 90_000
    np.testing.assert_array_equal(make_schedule(config)(steps), expected)


def test_a_run_may_end_before_its_cosine(config):
    config.total_steps = 500
    config.optimizer.update(schedule="cosine", warmup_steps=0, schedule_steps=1000)
    np.testing.assert_allclose(make_schedule(config)(500), 0.005, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule_steps": -1}, r"optimizer\.schedule_steps=-1 must be at least 0"),
        ({"warmup_steps": -5}, r"optimizer\.warmup_steps=-5 must be at least 0"),
        (
            {"schedule": "cosine", "schedule_steps": 1000},
            "schedule_steps=1000 ends the cosine .* zero, but .* total_steps=90000; give .*=step",
        ),
        ({"learning_rate": 1e7}, r"learning_rate=1e\+07 becomes .* 1e\+07 .* at most 1e\+06"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan .* at most 1e\+06"),
        ({"warmup_factor": 1e9}, r"learning_rate=0\.01 becomes a rate of 1e\+07 with "),
    ],
)
def test_a_schedule_that_cannot_be_is_an_error(config, fields, message):
    config.optimizer.update(fields)
    with pytest.raises(ValueError, match=message) as error:
        make_optimizer(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_update_is_finite_if_the_norm_of_its_gradient_is(config, name):
    """So a training step does not test its updates. These are about as large as they can be."""
    config.optimizer.update(name=name, learning_rate=1e6, warmup_steps=0, clip_norm=0.0)
    config.optimizer.weight_decay = 0.0
    optimizer = make_optimizer(config)
    params = {"fpn": {"kernel": jnp.full((4,), 1e30)}}
    gradients = {"fpn": {"kernel": jnp.array([1.7e19, -1e18, 1e-38, 0])}}
    assert jnp.isfinite(optax.tree.norm(gradients))
    assert jnp.isinf(optax.tree.norm(jax.tree.map(lambda x: 1.2 * x, gradients)))
    state = optimizer.init(params)
    for _ in range(20):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((params, state)))


def changed(config: ConfigDict, fields: dict) -> ConfigDict:
    result = copy.deepcopy(config)
    result.update_from_flattened_dict(fields)
    return result


CHANGES = {
    "total": (
        {"total_steps": 180_000},
        90_000,
        ("1e-04", "0.01"),
        "optimizer.schedule_steps=90000",
    ),
    "shorter": ({"total_steps": 60_000}, 50_000, ("0.01", "0.001"), "schedule_steps=90000"),
    "rate": ({"optimizer.learning_rate": 0.02}, 600, ("0.01", "0.02"), "learning_rate=0.01"),
    "batch": ({"data.batch_size": 8}, 600, ("0.01", "0.005"), "optimizer.learning_rate=0.02"),
    "drops": ({"optimizer.drops": (0.5,)}, 50_000, ("0.01", "0.001"), "drops="),
    "factor": ({"optimizer.drop_factor": 0.5}, 70_000, ("0.001", "0.005"), "drop_factor=0.1"),
    "warm-up": ({"optimizer.warmup_steps": 0}, 250, ("0.00666667", "0.01"), "warmup_steps=500"),
    "cosine": ({"optimizer.schedule": "cosine"}, 45_000, ("0.01", "0.005"), "schedule=step"),
    "several": (
        {"total_steps": 180_000, "data.batch_size": 32, "optimizer.warmup_factor": 0.1},
        100,
        ("0.00466667", "0.0056"),
        "warmup_factor",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_resumed_run_prints_how_its_rate_changes_and_the_flags_that_keep_it(
    config, change, capsys
):
    fields, step, (before, now), flag = CHANGES[change]
    resumed = changed(config, fields)
    print_rate_change(config, resumed, step)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert f"of step {step + 1} becomes {now}; " in line
    assert f"config it is {float(before):g}; to keep it, give --config." in line
    assert flag in line
    # With these flags all rates are those of the checkpoint's config.
    given = re.findall(r'--config\.(\S+?)=("[^"]+"|\S+)', line)
    values = {name: value.strip('"') for name, value in given}
    values = {k: v if k == "optimizer.schedule" else ast.literal_eval(v) for k, v in values.items()}
    same_schedule = changed(resumed, values)
    steps = jnp.array([0, 100, 600, 45_000, 59_999, 60_000, 80_000, 89_999])
    np.testing.assert_allclose(
        make_schedule(same_schedule)(steps), make_schedule(config)(steps), rtol=1e-5, atol=0
    )
    print_rate_change(config, same_schedule, step)
    assert capsys.readouterr().out == ""


def test_fields_that_leave_the_next_rate_as_it_is_print_nothing(config, capsys):
    for fields in (
        {},
        {"total_steps": 180_000},
        {"data.batch_size": 32, "optimizer.learning_rate": 0.005},
    ):
        print_rate_change(config, changed(config, fields), 10_000)
    assert capsys.readouterr().out == ""


def test_after_the_end_of_a_cosine_no_flags_are_printed(config, capsys):
    config.total_steps = 1000
    config.optimizer.schedule = "cosine"
    longer = changed(config, {"total_steps": 2000})
    print_rate_change(config, longer, 1000)
    assert "becomes 0.005; with the checkpoint's config it is 0\n" in (capsys.readouterr().out)
    print_rate_change(config, longer, 600)  # only the same length keeps it
    assert "give --config.total_steps=1000\n" in capsys.readouterr().out


# ---- the parameters


def parameters():
    def layer(*names):
        return {name: jnp.full((2, 2), 2.0) for name in names}

    return {
        "backbone": {
            "stem_conv": layer("kernel"),
            "stage2_block0": {"conv1": layer("kernel"), "norm1": layer("scale", "bias")},
            "stage3_block0": {"conv1": layer("kernel"), "norm1": layer("scale", "bias")},
        },
        "fpn": {"p3": layer("kernel", "bias")},
    }


def update(config, gradients, steps=1):
    """The names of the parameters that `steps` of the optimizer change, and the parameters."""
    optimizer = make_optimizer(config)
    params = parameters()
    opt_state = optimizer.init(params)
    for _ in range(steps):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if np.any(leaf != 2.0)
    }
    return changed, params


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_is_on_kernels_and_never_on_frozen_stages(config, name):
    config.optimizer.update(name=name, weight_decay=0.1)
    zeros = jax.tree.map(jnp.zeros_like, parameters())
    changed, params = update(config, zeros, steps=3)
    assert changed == {"backbone/stage3_block0/conv1/kernel", "fpn/p3/kernel"}
    assert (params["fpn"]["p3"]["kernel"] < 2).all()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_may_be_on_the_biases_of_convolutions_but_never_on_norms(config, name):
    config.optimizer.update(name=name, weight_decay=0.1, decay_biases=True)
    changed, _ = update(config, jax.tree.map(jnp.zeros_like, parameters()))
    assert changed == {"backbone/stage3_block0/conv1/kernel", "fpn/p3/kernel", "fpn/p3/bias"}


def test_frozen_stages_never_change(config):
    for frozen_stages, num_changed in ((0, 9), (1, 8), (2, 5), (3, 2)):
        config.model.frozen_stages = frozen_stages
        changed, _ = update(config, parameters(), steps=2)
        assert len(changed) == num_changed
        assert ("backbone/stem_conv/kernel" in changed) == (frozen_stages == 0)
        assert ("backbone/stage2_block0/norm1/scale" in changed) == (frozen_stages < 2)
        assert {"fpn/p3/kernel", "fpn/p3/bias"} <= changed


@pytest.mark.parametrize(("name", "moments"), [("sgd", 1), ("adamw", 2)])
def test_frozen_parts_have_no_state_and_never_change(config, name, moments):
    config.model.frozen_parts = ("fpn", "box_head")
    config.optimizer.update(name=name, weight_decay=0.1)
    changed, _ = update(config, parameters(), steps=2)
    stage = "backbone/stage3_block0"  # the stages below are frozen
    assert changed == {f"{stage}/{x}" for x in ("conv1/kernel", "norm1/scale", "norm1/bias")}
    state = make_optimizer(config).init(parameters())
    assert sum(x.ndim > 0 for x in jax.tree.leaves(state)) == 3 * moments


def test_each_stage_has_its_learning_rate(config):
    config.model.frozen_stages = 0
    config.optimizer.update(weight_decay=0.0, clip_norm=0.0, warmup_steps=0, layer_decay=0.5)
    _, params = update(config, parameters())  # gradients of 2 at a rate of 0.01
    steps = jax.tree.map(lambda x: 2 - x, params)
    backbone = steps["backbone"]
    # C5 would have half of the rate, and C4 a quarter.
    np.testing.assert_allclose(backbone["stage3_block0"]["norm1"]["bias"], 0.02 / 8, rtol=1e-4)
    np.testing.assert_allclose(backbone["stage3_block0"]["conv1"]["kernel"], 0.02 / 8, rtol=1e-4)
    np.testing.assert_allclose(backbone["stage2_block0"]["conv1"]["kernel"], 0.02 / 16, rtol=1e-3)
    np.testing.assert_allclose(backbone["stem_conv"]["kernel"], 0.02 / 32, rtol=1e-3)
    np.testing.assert_allclose(steps["fpn"]["p3"]["kernel"], 0.02, rtol=1e-4)


def test_rates_of_stages_leave_the_state_of_the_optimizer_as_it_is(config):
    """A run may resume with other rates."""
    states = []
    for layer_decay in (1.0, 0.7):
        config.optimizer.layer_decay = layer_decay
        states.append(make_optimizer(config).init(parameters()))
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.frozen_parts", ("fpn", "backbone"), "='backbone' must be one of fpn, class_"),
        ("model.remat", ("heads", "c6"), "='c6' must be one of stem, c2, c3, c4, c5, fpn, heads"),
        ("optimizer.accumulate", 0, "=0 must be at least 1"),
        ("optimizer.layer_decay", 0.0, "=0.0 must be above 0 and at most 1, .*frozen_stages"),
        ("optimizer.layer_decay", 1.5, "=1.5 must be above 0 and at most 1"),
    ],
)
def test_a_part_or_a_factor_that_cannot_be_is_an_error(config, name, value, message):
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=name.replace(".", r"\.") + message) as error:
        check_fields(config)
    assert "\n" not in str(error.value)


def test_sgd_by_hand(config):
    config.model.frozen_stages = 0
    config.optimizer.update(weight_decay=0.5, momentum=0.9, clip_norm=0.0, warmup_steps=0)
    _, params = update(config, parameters(), steps=2)  # gradients of 2
    # bias: velocity 2, then 2 * 0.9 + 2 = 3.8; learning rate 0.01
    np.testing.assert_allclose(params["fpn"]["p3"]["bias"], 2 - 0.02 - 0.038, rtol=1e-6)
    # kernel: gradient 2 + 0.5 * 2 = 3, then 2 + 0.5 * 1.97 = 2.985; velocity 2.7 + 2.985
    np.testing.assert_allclose(params["fpn"]["p3"]["kernel"], 1.97 - 0.05685, rtol=1e-6)


def test_clipping_is_of_all_trained_gradients_together(config):
    config.optimizer.update(weight_decay=0.0, clip_norm=1.0, warmup_steps=0)
    _, params = update(config, parameters())
    steps = jax.tree.map(lambda x: 2 - x, params)
    assert optax.tree.norm(steps) == pytest.approx(0.01, rel=1e-4)
