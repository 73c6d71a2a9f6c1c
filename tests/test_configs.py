"""Every recipe loads, is complete, and describes a network that can be trained."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import retinanet_jax.configs
from retinanet_jax import detector, main, train
from retinanet_jax.configs import r50_fpn
from retinanet_jax.data.batch import Batch

FOLDER = pathlib.Path(retinanet_jax.configs.__path__[0])
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
NUM_CLASSES = 6


def load(name: str, arg: str = ""):
    return importlib.import_module(f"retinanet_jax.configs.{name}").get_config(arg)


def sections(config) -> dict[str, type]:
    """Dotted names of all fields, with the types of their values."""
    names = main.field_names(config)
    return {name: type(config[name] if "." not in name else at(config, name)) for name in names}


def at(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config


def test_the_recipes_are_all_here():
    assert {"r50_fpn", "shapes", "finetune"} <= set(NAMES)


@pytest.mark.parametrize("arg", ["", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_every_field_of_its_type_and_no_other(name, arg):
    config, base = load(name, arg), r50_fpn.get_config()
    main.check_fields(config, base)
    wrong = {
        field: (have, sections(base)[field])
        for field, have in sections(config).items()
        if have != sections(base)[field] and at(base, field) is not None
    }
    assert not wrong
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.total_step = 3


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(ValueError, match="config argument 'tinny': this config knows 'tiny' alone"):
        load(name, "tinny")


@pytest.mark.parametrize("arg", ["", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_the_cadences_fit_each_other(name, arg):
    config = load(name, arg)
    assert config.evaluate_every % config.checkpoint_every == 0
    assert config.optimizer.warmup_steps < config.total_steps
    assert 0 < config.log_every <= config.total_steps
    for side in (*config.data.short_sides, config.data.eval_short_side):
        assert side <= config.data.long_side


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_record_that_names_its_own_command(name):
    docstring = importlib.import_module(f"retinanet_jax.configs.{name}").__doc__
    command = re.search(r"Command:\s+python -m retinanet_jax\.main( --config=(\S+))? ", docstring)
    # The embedded default needs no --config.
    assert command.group(2) in (f"configs/{name}.py", None if name == "shapes" else "")


def test_the_papers_numbers():
    config = r50_fpn.get_config()
    assert config.data.batch_size * config.total_steps == 16 * 90_000
    assert train.scaled_learning_rate(config) == 0.01
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert (config.loss.alpha, config.loss.gamma, config.model.prior_probability) == (0.25, 2, 0.01)
    assert (config.matching.foreground_iou, config.matching.background_iou) == (0.5, 0.4)
    assert (config.anchors.base_scale, config.anchors.ratios) == (4, (0.5, 1, 2))
    np.testing.assert_allclose(config.anchors.scales, [1, 1.26, 1.587], atol=1e-3)


def batch_shapes(config) -> Batch:
    """The shapes of the largest bucket's batch."""
    rows = config.data.batch_size
    size = max(config.data.buckets, key=np.prod)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    return Batch(
        images=array(np.uint8, *size, 3),
        sizes=array(np.float32, 2),
        scales=array(np.float32, 2),
        boxes=array(np.float32, 8, 4),
        classes=array(np.int32, 8),
        mask=array(bool, 8),
        crowd_boxes=array(np.float32, 1, 4),
        crowd_mask=array(bool, 1),
        weights=array(np.float32),
        index=array(np.int32),
    )


@pytest.mark.parametrize(
    ("name", "arg"),
    [(name, "tiny") for name in NAMES]
    + [pytest.param(name, "", marks=pytest.mark.slow) for name in NAMES],
)
def test_every_recipe_builds_its_network_and_its_step(name, arg):
    config = load(name, arg)
    model = detector.build_model(config, NUM_CLASSES)
    optimizer = train.make_optimizer(config)
    step = train.make_train_step(model, optimizer, config)

    def one_step(batch):
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        variables = {"batch_stats": {}, **variables}
        state = train.TrainState(
            jnp.int32(0),
            variables["params"],
            variables["batch_stats"],
            optimizer.init(variables["params"]),
            jnp.float32(config.loss.ema_start),
        )
        return state, step(state, batch), detector.detect(variables, batch, model, config)

    before, (after, metrics), detections = jax.eval_shape(one_step, batch_shapes(config))
    # What a step returns, the next one takes.
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, before, after)
    )
    assert {x.shape for x in metrics.values()} == {()}
    rows = config.data.batch_size
    assert detections.boxes.shape == (rows, config.detections.max_detections, 4)
