"""Every config loads, is complete, and describes data, a network and a step that can be trained."""

import functools
import importlib
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import input_pipeline, modeling
from retinanet_jax.config import CONFIGS, config_files, default_config, flatten
from retinanet_jax.config_checks import check_fields
from retinanet_jax.configs import ablations, detectron2, r50_fpn, torchvision
from retinanet_jax.data.batch import Batch
from retinanet_jax.training import loop
from retinanet_jax.training.optimizer import make_optimizer, make_schedule, scaled_learning_rate
from retinanet_jax.training.step import TrainState, make_train_step
from retinanet_jax.weights import msra
from retinanet_jax.weights import torchvision as torchvision_weights

NAMES = [path.stem for path in config_files()]
NUM_CLASSES = 6
TRAIN2017 = 118_287


def load(name: str, arg: str = ""):
    return importlib.import_module(f"retinanet_jax.configs.{name}").get_config(arg)


def load_with_batch_size(name: str, arg: str = ""):
    """Return a config in which a batch size that depends on the device is 8."""
    config = load(name, arg).unlock()
    config.data.batch_size = config.data.batch_size or 8
    return config


def arguments(name: str) -> list[str]:
    """Return the arguments that a config accepts, which its error message lists."""
    with pytest.raises(ValueError, match="unknown") as error:
        load(name, "?")
    return str(error.value).rstrip(".").split("this config has ")[1].split(", ")


# Every config with each of its arguments: (name, argument).
VARIANTS = [(name, arg) for name in NAMES for arg in ["", *arguments(name)]]
FULL = [(name, arg) for name, arg in VARIANTS if arg != "tiny"]


def with_tiny(arg: str) -> str:
    return f"{arg},tiny" if arg else "tiny"


def fields_of(config) -> dict[str, object]:
    """Return the value of each field by its dotted name."""
    return dict(flatten(config))


# ---- fields


def test_all_configs_exist():
    assert {"r50_fpn", "r101_fpn", "r101_fpn_1_5x", "x101_32x8d_fpn", "ablations"} <= set(NAMES)
    assert {"shapes", "finetune", "detectron2", "torchvision", "tpu_640"} <= set(NAMES)


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_every_config_has_all_fields_with_their_types_and_no_other(name, arg):
    config = load(name, arg)
    check_fields(config)
    values, defaults = fields_of(config), fields_of(default_config())
    wrong = {
        field: (type(values[field]), type(default))
        for field, default in defaults.items()
        if type(values[field]) is not type(default) and default is not None
    }
    assert not wrong
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.total_step = 3


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_the_intervals_are_multiples_of_each_other(name, arg):
    config = load(name, arg)
    if config.checkpoint_every:  # otherwise both follow from the number of steps of an epoch
        assert config.evaluate_every % config.checkpoint_every == 0
    else:
        assert config.evaluate_every == 0
    assert config.optimizer.warmup_steps < config.total_steps
    assert 0 < config.log_every <= config.total_steps
    for side in (*config.data.short_sides, config.data.eval_short_side):
        assert side <= config.data.long_side


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_states_the_command_and_the_ap(name):
    docstring = importlib.import_module(f"retinanet_jax.configs.{name}").__doc__
    command = re.search(r"Command:\s+retinanet-jax train( --config=(\S+))? ", docstring)
    # The default config needs no --config.
    file, _, arg = (command.group(2) or "").partition(":")
    assert file in (f"configs/{name}.py", "" if name == "shapes" else None)
    load(name, arg)
    for other in re.findall(r"configs/(\w+)\.py", docstring):
        assert other in NAMES
    assert re.search(r"^(AP|Measured):", docstring, re.MULTILINE)


# ---- arguments


@pytest.mark.parametrize("name", NAMES)
def test_the_error_of_an_unknown_argument_lists_those_that_exist(name):
    with pytest.raises(ValueError, match=r"config argument 'tinny' is unknown; .* tiny\.$"):
        load(name, "tinny")


@pytest.mark.parametrize(
    ("name", "arg", "choices"),
    [
        ("r50_fpn", "600,700", "600 and 700"),
        ("r50_fpn", "tiny,600,700", "600 and 700"),
        ("finetune", "imagenet,gpu,torchvision_v1", "imagenet and torchvision_v1"),
        ("finetune", "cpu,gpu", "cpu and gpu"),
    ],
)
def test_two_choices_are_an_error(name, arg, choices):
    message = f"config argument '{arg}' asks for {choices}; give one."
    with pytest.raises(ValueError, match=message):
        load(name, arg)


def test_arguments_may_come_in_any_order():
    assert load("r50_fpn", "600,tiny").to_dict() == load("r50_fpn", "tiny,600").to_dict()
    assert load("finetune", "imagenet,gpu").to_dict() == load("finetune", "gpu,imagenet").to_dict()


def test_weights_and_a_device_are_chosen_independently():
    """Each changes other fields, except for the sizes and the batch with its rate: the device's."""
    base, gpu, imagenet, both = (
        fields_of(load("finetune", arg)) for arg in ("", "gpu", "imagenet", "imagenet,gpu")
    )
    of_device = {name for name in base if gpu[name] != base[name]}
    of_weights = {name for name in base if imagenet[name] != base[name]}
    of_both = {f"data.{name}" for name in ("batch_size", "buckets", "eval_short_side", "long_side")}
    of_both |= {"optimizer.learning_rate", "optimizer.reference_batch_size"}
    assert of_device & of_weights == of_both
    assert both == base | {name: imagenet[name] for name in of_weights} | {
        name: gpu[name] for name in of_device
    }
    assert load("finetune", "cpu").to_dict() == load("finetune").to_dict()


def test_an_empty_argument_is_an_error():
    with pytest.raises(ValueError, match="config argument '' is unknown"):
        load("r50_fpn", "600,")


# ---- the numbers


@pytest.mark.parametrize(("first", "last"), [(2, 7), (4, 7), (3, 8), (3, 4)])
def test_levels_that_the_network_does_not_have_are_an_error(first, last):
    config = default_config()
    config.anchors.update(min_level=first, max_level=last)
    with pytest.raises(ValueError, match=f"levels {first} to {last}.*begins at level 3"):
        check_fields(config)


def test_the_numbers_of_the_paper():
    config = r50_fpn.get_config()
    assert config.data.batch_size * config.total_steps == 16 * 90_000
    assert scaled_learning_rate(config) == 0.01
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert (config.loss.alpha, config.loss.gamma, config.model.prior_probability) == (0.25, 2, 0.01)
    assert (config.matching.foreground_iou, config.matching.background_iou) == (0.5, 0.4)
    assert (config.anchors.base_scale, config.anchors.ratios) == (4, (0.5, 1, 2))
    np.testing.assert_allclose(config.anchors.scales, [1, 1.26, 1.587], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "arg", "drops"),
    [
        ("r50_fpn", "", (60_000, 80_000)),
        ("r101_fpn_1_5x", "", (90_000, 120_000)),
        ("x101_32x8d_fpn", "", (90_000, 120_000)),
        ("detectron2", "1x", (60_000, 80_000)),
        ("detectron2", "3x", (210_000, 250_000)),
        ("torchvision", "v1", (16 * 7_393, 22 * 7_393)),
        ("torchvision", "v2", (16 * 7_393, 22 * 7_393)),
    ],
)
def test_the_learning_rate_drops_at_the_published_steps(name, arg, drops):
    config = load(name, arg)
    rate = make_schedule(config)
    peak = scaled_learning_rate(config)
    for index, step in enumerate(drops):
        np.testing.assert_allclose(rate(step - 1), peak * 0.1**index, rtol=1e-5)
        np.testing.assert_allclose(rate(step), peak * 0.1 ** (index + 1), rtol=1e-5)


def test_runs_are_whole_epochs_of_train2017():
    assert torchvision.STEPS_PER_EPOCH == -(-TRAIN2017 // 16)
    assert load("torchvision").total_steps == 26 * torchvision.STEPS_PER_EPOCH
    tpu = load("tpu_640")
    assert 36 <= tpu.total_steps * tpu.data.batch_size / TRAIN2017 < 37


def test_warmup_starts_at_the_learning_rate_of_the_reference_implementations():
    for name, first in {"detectron2": 1e-5, "torchvision": 1e-5, "tpu_640": 0.0067}.items():
        config = load(name)
        assert config.optimizer.warmup_steps == 1_000
        assert abs(float(make_schedule(config)(0)) - first) < 0.01 * first


def test_the_numbers_of_detectron2():
    config = load("detectron2")
    assert config.data.short_sides == (640, 672, 704, 736, 768, 800)
    ema = (config.loss.ema_images, config.loss.ema_start, config.loss.ema_momentum)
    assert (config.loss.normalizer, *ema) == ("ema", 2, 100, 0.9)
    assert config.optimizer.decay_biases
    assert (config.loss.beta, config.anchors.offset, config.model.p6_from) == (0, 0, "c5")
    assert (config.detections.clip, config.detections.max_detections) == ("after_nms", 100)
    assert (config.model.frozen_stages, config.matching.ignore_padding) == (2, False)
    assert (config.optimizer.clip_norm, config.model.norm) == (0, "frozen_batch")


def test_the_numbers_of_torchvision():
    v1, v2 = load("torchvision", "v1"), load("torchvision", "v2")
    for config in (v1, v2):
        assert (config.anchors.rounding, config.anchors.stride_rule) == ("torchvision", "grid")
        assert (config.anchors.offset, config.detections.max_detections) == (0, 300)
        assert (config.loss.normalizer, config.matching.ignore_padding) == ("image", False)
    assert (v1.model.p6_from, v1.model.norm, v1.model.head_norm) == (
        "p5",
        "frozen_batch",
        "none",
    )
    assert (v2.model.p6_from, v2.model.norm, v2.model.head_norm) == ("c5", "batch", "group")
    assert (v1.loss.box, v1.loss.beta, v2.loss.box) == ("smooth_l1", 0, "giou")
    assert (v1.optimizer.name, v1.optimizer.learning_rate) == ("sgd", 0.01)
    assert (v2.optimizer.name, v2.optimizer.learning_rate) == ("adamw", 1e-4)
    assert (v2.optimizer.weight_decay, v2.data.short_sides[::10]) == (0.05, (480, 800))
    assert len(v2.data.short_sides) == 11


def test_the_input_and_the_network_are_those_that_the_weights_require():
    expected = {
        "msra resnet": (msra.MSRA_INPUT, msra.MSRA_MODEL),
        "msra resnext": (msra.FAIR_INPUT, msra.FAIR_MODEL),
        "torchvision resnet": (
            torchvision_weights.TORCHVISION_INPUT,
            torchvision_weights.TORCHVISION_MODEL,
        ),
    }
    tested = set()
    for name, arg in FULL:
        config = load(name, arg)
        if config.init.source not in ("msra", "torchvision"):
            continue
        key = f"{config.init.source} {re.match('[a-z]*', config.model.backbone).group()}"
        expected_input, expected_model = expected[key]
        assert config.input.to_dict() == expected_input
        assert {field: config.model[field] for field in expected_model} == expected_model
        tested.add(key)
    assert tested == set(expected)


@pytest.mark.parametrize("row", ablations.ROWS)
def test_a_row_changes_only_the_fields_that_its_table_is_about(row):
    base, values = fields_of(ablations.get_config()), fields_of(ablations.get_config(row))
    changed = {name for name, value in base.items() if value != values[name]}
    group = row.partition("=")[0]
    backbone = {"model.backbone", "model.norm_epsilon", "init.source", "init.path", "input.mean"}
    allowed = {
        "ce": {"loss.classification", "model.prior_probability"},
        "ce-prior": {"loss.classification"},
        "alpha": {"loss.classification", "loss.alpha"},
        "gamma": {"loss.gamma", "loss.alpha"},
        "anchors": {"anchors.scales", "anchors.ratios"},
        "star": {"loss.classification", "loss.gamma", "loss.star_beta"},
        "ohem": backbone
        | {"loss.classification", "loss.ohem.num_examples", "loss.ohem.iou_threshold"},
    }
    allowed["ohem13"] = allowed["ohem"] | {"loss.ohem.negatives_per_positive"}
    assert changed <= allowed[group]
    assert changed or row in ("gamma=2", "anchors=3x3")


def test_the_fields_of_some_rows():
    row = ablations.get_config
    assert row("ce").model.prior_probability == 0.5
    assert row("ce-prior").model.prior_probability == 0.01
    assert (row("alpha=.999").loss.alpha, row("alpha=.10").loss.alpha) == (0.999, 0.1)
    assert (row("gamma=.5").loss.gamma, row("gamma=.5").loss.alpha) == (0.5, 0.5)
    assert (row("gamma=0").loss.alpha, row("gamma=5").loss.alpha) == (0.75, 0.25)
    assert row("anchors=1x1").anchors.scales == (1,)
    assert row("anchors=2x1").anchors.ratios == (1,)
    assert row("anchors=2x3").anchors.ratios == (0.5, 1, 2)
    np.testing.assert_allclose(
        row("anchors=4x3").anchors.scales, [1, 1.189, 1.414, 1.682], atol=1e-3
    )
    assert (row("star=4x+0").loss.gamma, row("star=4x+0").loss.star_beta) == (4, 0)
    ohem = row("ohem13=512@.5")
    assert ohem.loss.ohem.to_dict() == {
        "num_candidates": 2000,
        "iou_threshold": 0.5,
        "num_examples": 512,
        "negatives_per_positive": 3,
    }
    assert ohem.model.backbone == "resnet101"
    assert row("ohem=256@.7").loss.ohem.iou_threshold == 0.7


# ---- the tables of configs/README.md


def table_rows() -> list[dict[str, str]]:
    """Return the rows of the tables in configs/README.md, by the names of their columns."""
    rows, header = [], []
    for line in (CONFIGS / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif set(line) - set("| -"):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def variant(row: dict[str, str]) -> tuple[str, str]:
    name, _, arg = row["config"].strip("`").partition(":")
    return name.removesuffix(".py"), arg


def test_the_tables_list_every_config_with_every_argument_once():
    listed = [variant(row) for row in table_rows()]
    assert sorted(listed) == sorted(FULL)


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row["config"].strip("`"))
def test_the_numbers_of_a_row_are_those_of_its_config(row):
    name, arg = variant(row)
    config = load(name, arg)
    if name == "ablations":
        ap = ablations.ROWS[arg or "gamma=2"]
        assert row["AP"] == ("diverges" if ap is None else f"{ap:.1f}")
        assert (config.total_steps, config.data.batch_size) == (90_000, 16)
        assert config.data.short_sides == (600,)
        return
    epochs = f"{config.epochs} epochs" if config.epochs else f"{config.total_steps:,}"
    assert row["steps"] == epochs
    assert row["batch"] == str(config.data.batch_size or "auto")
    sides = config.data.short_sides
    assert row["pixels"] == "-".join(map(str, sorted({min(sides), max(sides)})))
    # Detection may be a little better above the size of training.
    assert max(sides) <= config.data.eval_short_side <= 9 / 8 * max(sides)


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row["config"].strip("`"))
def test_the_ap_of_a_row_is_in_the_docstring_of_its_config(row):
    name, _ = variant(row)
    docstring = importlib.import_module(f"retinanet_jax.configs.{name}").__doc__
    if name != "ablations" and row["AP"]:
        assert row["AP"] in docstring


# ---- the plan


def coco_like_sizes(count: int) -> np.ndarray:
    """Return heights and widths like train2017's, including squares and the longest images."""
    rng = np.random.default_rng(0)
    short = rng.choice(
        [480, 427, 426, 428, 425, 424, 360, 375, 333, 500, 612, 0],
        count,
        p=[0.36, 0.17, 0.08, 0.03, 0.06, 0.02, 0.03, 0.07, 0.04, 0.02, 0.02, 0.10],
    )
    long = np.where(np.isin(short, [375, 333]), 500, 640)
    short = np.where(short == 0, rng.integers(250, 641, count), short)
    sizes = np.stack([short, long], axis=1)
    portrait = rng.random(count) < 0.25
    sizes[portrait] = sizes[portrait, ::-1]
    sizes[:4] = [(640, 640), (51, 640), (640, 59), (640, 250)]
    return sizes


SIZES = coco_like_sizes(4_000)
# Fractions of the pixels of a batch. Sides of 400 and 500 are far from multiples of 32; if both the
# short sides and the aspect ratios vary, seven buckets cannot fit them all.
MAX_PADDING = {
    "r50_fpn": 0.05,
    "r50_fpn:400": 0.08,
    "r50_fpn:500": 0.065,
    "detectron2": 0.16,
    "torchvision:v2": 0.23,
}


@pytest.mark.parametrize(
    ("name", "arg"), [(name, arg) for name, arg in FULL if name not in ("shapes", "ablations")]
)
def test_every_config_plans_images_like_cocos(name, arg):
    config = load_with_batch_size(name, arg)
    plan = input_pipeline.train_plan(config, types.SimpleNamespace(sizes=SIZES))
    shapes = {plan.batch(step).bucket for step in range(plan.steps_per_epoch)}
    assert len(shapes) <= 8  # each is compiled
    # At most one step more than the images fill: the last batch of landscapes, or of portraits.
    assert plan.steps_per_epoch - -(-len(SIZES) // config.data.batch_size) in (0, 1)
    for step in (0, plan.steps_per_epoch - 1, plan.steps_per_epoch):
        batch = plan.batch(step)
        assert len(batch.index) == config.data.batch_size
        assert (batch.size <= batch.bucket).all()
    evaluation = input_pipeline.eval_plan(config, SIZES, batch_size=config.data.eval_batch_size)
    weights = [evaluation.batch(step).weights.sum() for step in range(evaluation.num_batches)]
    assert sum(weights) == len(SIZES)


@pytest.mark.parametrize(("name", "arg"), [(name, with_tiny(arg)) for name, arg in FULL])
def test_every_tiny_config_plans_synthetic_images(name, arg):
    config = load(name, arg)
    assert config.data.train.source == config.data.eval.source == "shapes"
    sizes = np.full((config.data.train.count, 2), config.data.train.image_size)
    plan = input_pipeline.train_plan(config, types.SimpleNamespace(sizes=sizes))
    assert {plan.batch(step).bucket for step in range(config.total_steps)} == {(96, 96)}
    input_pipeline.eval_plan(config, sizes, batch_size=config.data.eval_batch_size)


@pytest.mark.parametrize("name", ["r50_fpn", *(f"r50_fpn:{side}" for side in r50_fpn.BUCKETS)])
def test_a_single_short_side_has_little_padding(name):
    assert padding_overhead(*name.split(":")) <= MAX_PADDING.get(name, 0.05)


@pytest.mark.parametrize("name", ["detectron2", "torchvision:v2"])
def test_several_short_sides_have_more_padding(name):
    assert 0.05 < padding_overhead(*name.split(":")) <= MAX_PADDING[name]


def padding_overhead(name: str, arg: str = "") -> float:
    """Return the fraction of the pixels of an epoch's batches that is padding."""
    plan = input_pipeline.train_plan(load(name, arg), types.SimpleNamespace(sizes=SIZES))
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    pixels = sum(int(batch.size.prod(axis=1) @ batch.weights) for batch in batches)
    return 1 - pixels / sum(len(batch.index) * np.prod(batch.bucket) for batch in batches)


def test_configs_with_scale_jitter_have_the_same_buckets():
    for name in ("r101_fpn_1_5x", "x101_32x8d_fpn"):
        assert load(name).data.buckets == detectron2.BUCKETS


# ---- the network and its step


def structure(config) -> str:
    """Return the part of a config that determines more of the program than a constant in it."""
    fields = {
        name: value
        for name, value in fields_of(config).items()
        if not name.startswith(("init.", "data."))
    }
    switches = {name: value for name, value in fields.items() if isinstance(value, str | bool)}
    off = ("loss.beta", "loss.ohem.negatives_per_positive", "optimizer.clip_norm")
    return json.dumps(
        switches
        | config.model.to_dict()
        | {name: not fields[name] for name in off}
        | {"prior_probability": None, "crop": bool(config.data.crop_size)}
    )


def structures(variants: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the first variant of each structure; the others differ only in constants."""
    first = {}
    for name, arg in variants:
        first.setdefault(structure(load(name, arg)), (name, arg))
    return list(first.values())


# The number of anchors is a shape, not a constant; the largest one represents the others.
STRUCTURES = [*structures(FULL), ("ablations", "anchors=4x3")]
QUICK = [("ablations", "ohem=128@.7,tiny"), ("torchvision", "v2,tiny"), ("tpu_640", "tiny")]


def marks(name: str, arg: str) -> list:
    """Return the marks of a variant: one that others nearly cover is traced only on request."""
    if (name, arg) in QUICK:
        return []
    has_quick = (name, with_tiny(arg)) in QUICK
    # The networks of these detectors are those of torchvision.py and detectron2.py.
    has_preset = name == "finetune" and arg not in ("", "imagenet", "gpu")
    exhaustive = [pytest.mark.exhaustive] if has_quick or has_preset else []
    return [pytest.mark.slow, *exhaustive]


def batch_shapes(config) -> Batch:
    """Return the shapes of a batch of the largest bucket."""
    batch_size = config.data.batch_size
    size = max(config.data.buckets, key=np.prod)
    images = jax.ShapeDtypeStruct((batch_size, *size, 3), np.uint8)
    pairs = jax.ShapeDtypeStruct((batch_size, 2), np.float32)
    of_images = functools.partial(Batch.of_images, num_boxes=8, num_crowd=1)
    return jax.eval_shape(of_images, images, sizes=pairs, scales=pairs)


@pytest.mark.parametrize(
    ("name", "arg"),
    [pytest.param(*variant, marks=marks(*variant)) for variant in [*STRUCTURES, *QUICK]],
)
def test_every_config_builds_its_network_and_its_step(name, arg):
    config = load_with_batch_size(name, arg)
    model = modeling.build_model(config, NUM_CLASSES)
    optimizer = make_optimizer(config)
    step = make_train_step(model, optimizer, config)

    def one_step(batch):
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        variables = {"batch_stats": {}, **variables}
        state = TrainState(
            jnp.int32(0),
            variables["params"],
            variables["batch_stats"],
            optimizer.init(variables["params"]),
            jnp.float32(config.loss.ema_start),
        )
        return state, step(state, batch), modeling.detect(variables, batch, model, config)

    before, (after, metrics), detections = jax.eval_shape(one_step, batch_shapes(config))
    # The next step accepts what a step returns.
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, before, after)
    )
    assert {x.shape for x in metrics.values()} == {()}
    expected = (config.data.batch_size, config.detections.max_detections, 4)
    assert detections.boxes.shape == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arg"),
    [
        ("ablations", "ohem13=128@.5"),
        ("tpu_640", ""),
        # The step of each is traced above, and its parts have tests of their own.
        pytest.param("ablations", "star=2x+1", marks=pytest.mark.exhaustive),
        pytest.param("detectron2", "3x", marks=pytest.mark.exhaustive),
        pytest.param("torchvision", "v2", marks=pytest.mark.exhaustive),
    ],
)
def test_every_loss_normalizer_optimizer_and_augmentation_trains(name, arg, one_device, tmp_path):
    config = load(name, with_tiny(arg)).unlock()
    config.update(total_steps=3, checkpoint_every=3, evaluate_every=3)
    loop.train(config, tmp_path, evaluates=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
