"""The learning rate schedule, and which parameters the optimizer moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retinanet_jax.training.optimizer import make_optimizer, make_schedule, scaled_learning_rate

# ---- the learning rate


@pytest.mark.parametrize(("batch_size", "rate"), [(16, 0.01), (8, 0.005), (256, 0.16)])
def test_the_learning_rate_is_linear_in_the_batch_size(config, batch_size, rate):
    config.data.batch_size = batch_size
    assert scaled_learning_rate(config) == pytest.approx(rate)


def test_the_papers_schedule_by_hand(config):
    rate = make_schedule(config)
    for step, expected in {
        0: 0.01 * (1 / 3 + 2 / 3 / 500),  # the first step is already part of the warm-up
        249: 0.01 * (1 / 3 + 2 / 3 / 2),
        499: 0.01,
        59_999: 0.01,
        60_001: 0.001,
        79_999: 0.001,
        80_001: 0.0001,
        89_999: 0.0001,
    }.items():
        assert rate(step) == pytest.approx(expected, rel=1e-5), step


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
def test_weight_decay_is_on_kernels_only_and_never_on_frozen_stages(config, name):
    config.optimizer.update(name=name, weight_decay=0.1)
    zeros = jax.tree.map(jnp.zeros_like, parameters())
    changed, params = update(config, zeros, steps=3)
    assert changed == {"backbone/stage3_block0/conv1/kernel", "fpn/p3/kernel"}
    assert (params["fpn"]["p3"]["kernel"] < 2).all()


def test_frozen_stages_never_change(config):
    for frozen_stages, num_changed in ((0, 9), (1, 8), (2, 5), (3, 2)):
        config.model.frozen_stages = frozen_stages
        changed, _ = update(config, parameters(), steps=2)
        assert len(changed) == num_changed
        assert ("backbone/stem_conv/kernel" in changed) == (frozen_stages == 0)
        assert ("backbone/stage2_block0/norm1/scale" in changed) == (frozen_stages < 2)
        assert {"fpn/p3/kernel", "fpn/p3/bias"} <= changed


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
