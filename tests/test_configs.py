"""Every recipe loads, is complete, and describes data, a network and a step that can be trained."""

import importlib
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import retinanet_jax.configs
from retinanet_jax import input_pipeline, modeling
from retinanet_jax.config import check_fields, field_names
from retinanet_jax.configs import ablations, detectron2, r50_fpn, torchvision
from retinanet_jax.data.batch import Batch
from retinanet_jax.training import loop
from retinanet_jax.training.optimizer import make_optimizer, make_schedule, scaled_learning_rate
from retinanet_jax.training.step import TrainState, make_train_step
from retinanet_jax.weights import msra
from retinanet_jax.weights import torchvision as torchvision_weights

FOLDER = pathlib.Path(retinanet_jax.configs.__path__[0])
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
NUM_CLASSES = 6
TRAIN2017 = 118_287


def load(name: str, arg: str = ""):
    return importlib.import_module(f"retinanet_jax.configs.{name}").get_config(arg)


def arguments(name: str) -> list[str]:
    """What a recipe takes behind the colon, by its own word."""
    with pytest.raises(ValueError, match="unknown") as refused:
        load(name, "?")
    return str(refused.value).rstrip(".").split("this config knows ")[1].split(", ")


# Every recipe with each of its arguments: (name, argument).
VARIANTS = [(name, arg) for name in NAMES for arg in ["", *arguments(name)]]
FULL = [(name, arg) for name, arg in VARIANTS if arg != "tiny"]


def tiny(arg: str) -> str:
    return f"{arg},tiny" if arg else "tiny"


def sections(config) -> dict[str, type]:
    """Dotted names of all fields, with the types of their values."""
    names = field_names(config)
    return {name: type(config[name] if "." not in name else at(config, name)) for name in names}


def at(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config


# ---- fields


def test_the_recipes_are_all_here():
    assert {"r50_fpn", "r101_fpn", "r101_fpn_1_5x", "x101_32x8d_fpn", "ablations"} <= set(NAMES)
    assert {"shapes", "finetune", "detectron2", "torchvision", "tpu_640"} <= set(NAMES)


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_every_recipe_has_every_field_of_its_type_and_no_other(name, arg):
    config, base = load(name, arg), r50_fpn.get_config()
    check_fields(config, base)
    wrong = {
        field: (have, sections(base)[field])
        for field, have in sections(config).items()
        if have != sections(base)[field] and at(base, field) is not None
    }
    assert not wrong
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.total_step = 3


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
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
    given, _, arg = (command.group(2) or "").partition(":")
    assert given in (f"configs/{name}.py", "" if name == "shapes" else None)
    load(name, arg)
    for file in re.findall(r"configs/(\w+)\.py", docstring):
        assert file in NAMES
    assert re.search(r"^(AP|Measured):", docstring, re.MULTILINE)


# ---- arguments


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"config argument 'tinny' is unknown; .* tiny\.$"):
        load(name, "tinny")


@pytest.mark.parametrize("arg", ["600,700", "tiny,600,700"])
def test_two_choices_are_refused(arg):
    message = f"config argument '{arg}' asks for 600 and 700; give one."
    with pytest.raises(ValueError, match=message):
        load("r50_fpn", arg)


def test_arguments_may_come_in_any_order():
    assert load("r50_fpn", "600,tiny").to_dict() == load("r50_fpn", "tiny,600").to_dict()


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="config argument '' is unknown"):
        load("r50_fpn", "600,")


# ---- the numbers


def test_the_papers_numbers():
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
def test_the_learning_rate_drops_when_it_should(name, arg, drops):
    config = load(name, arg)
    rate = make_schedule(config)
    peak = scaled_learning_rate(config)
    for number, step in enumerate(drops):
        np.testing.assert_allclose(rate(step - 1), peak * 0.1**number, rtol=1e-5)
        np.testing.assert_allclose(rate(step + 1), peak * 0.1 ** (number + 1), rtol=1e-5)


def test_epochs_are_whole_ones_of_train2017():
    assert torchvision.STEPS_PER_EPOCH == -(-TRAIN2017 // 16)
    assert load("torchvision").total_steps == 26 * torchvision.STEPS_PER_EPOCH
    tpu = load("tpu_640")
    assert 36 <= tpu.total_steps * tpu.data.batch_size / TRAIN2017 < 37


def test_warm_up_begins_where_the_peers_begin():
    for name, first in {"detectron2": 1e-5, "torchvision": 1e-5, "tpu_640": 0.0067}.items():
        config = load(name)
        assert config.optimizer.warmup_steps == 1_000
        rate = make_schedule(config)
        slope = scaled_learning_rate(config) / 1_000
        assert abs(float(rate(0)) - slope - first) < 0.02 * first


def test_detectron2s_numbers():
    config = load("detectron2")
    assert config.data.short_sides == (640, 672, 704, 736, 768, 800)
    assert (config.loss.normalizer, config.loss.ema_start, config.loss.ema_momentum) == (
        "ema",
        100,
        0.9,
    )
    assert (config.loss.beta, config.anchors.offset, config.model.p6_from) == (0, 0, "c5")
    assert (config.detections.clip, config.detections.max_detections) == ("after_nms", 100)
    assert (config.model.frozen_stages, config.matching.ignore_padding) == (2, False)
    assert (config.optimizer.clip_norm, config.model.norm) == (0, "frozen_batch")


def test_torchvisions_numbers():
    one, two = load("torchvision", "v1"), load("torchvision", "v2")
    for config in (one, two):
        assert (config.anchors.rounding, config.anchors.stride_rule) == ("torchvision", "grid")
        assert (config.anchors.offset, config.detections.max_detections) == (0, 300)
        assert (config.loss.normalizer, config.matching.ignore_padding) == ("image", False)
    assert (one.model.p6_from, one.model.norm, one.model.head_norm) == (
        "p5",
        "frozen_batch",
        "none",
    )
    assert (two.model.p6_from, two.model.norm, two.model.head_norm) == ("c5", "batch", "group")
    assert (one.loss.box, one.loss.beta, two.loss.box) == ("smooth_l1", 0, "giou")
    assert (one.optimizer.name, one.optimizer.learning_rate) == ("sgd", 0.01)
    assert (two.optimizer.name, two.optimizer.learning_rate) == ("adamw", 1e-4)
    assert (two.optimizer.weight_decay, two.data.short_sides[::10]) == (0.05, (480, 800))
    assert len(two.data.short_sides) == 11


def test_the_pixels_are_those_of_the_weights():
    """What the network and its input must be, as the importers say."""
    wanted = {
        "msra resnet": (msra.MSRA_INPUT, msra.MSRA_MODEL),
        "msra resnext": (msra.FAIR_INPUT, msra.FAIR_MODEL),
        "torchvision resnet": (
            torchvision_weights.TORCHVISION_INPUT,
            torchvision_weights.TORCHVISION_MODEL,
        ),
    }
    seen = set()
    for name, arg in FULL:
        config = load(name, arg)
        if config.init.source not in ("msra", "torchvision"):
            continue
        key = f"{config.init.source} {re.match('[a-z]*', config.model.backbone).group()}"
        expected_input, expected_model = wanted[key]
        assert config.input.to_dict() == expected_input
        assert {field: config.model[field] for field in expected_model} == expected_model
        seen.add(key)
    assert seen == set(wanted)


@pytest.mark.parametrize("row", ablations.ROWS)
def test_a_row_changes_what_its_table_is_about_and_no_more(row):
    base, config = ablations.get_config(), ablations.get_config(row)
    names = list(field_names(base))
    changed = {name for name in names if at(base, name) != at(config, name)}
    kind = row.partition("=")[0]
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
    assert changed <= allowed[kind]
    assert changed or row in ("gamma=2", "anchors=3x3")


def test_rows_by_hand():
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


# ---- the table of the README


def table_rows() -> list[dict[str, str]]:
    """The rows of configs/README.md's tables, by the names of their columns."""
    rows, header = [], []
    for line in (FOLDER / "README.md").read_text().splitlines():
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


def test_the_readme_lists_every_recipe_with_every_argument_once():
    listed = [variant(row) for row in table_rows()]
    assert sorted(listed) == sorted(FULL)


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row["config"].strip("`"))
def test_the_readmes_numbers_are_the_configs(row):
    name, arg = variant(row)
    config = load(name, arg)
    if name == "ablations":
        ap = ablations.ROWS[arg or "gamma=2"]
        assert row["AP"] == ("diverges" if ap is None else f"{ap:.1f}")
        assert (config.total_steps, config.data.batch_size) == (90_000, 16)
        assert config.data.short_sides == (600,)
        return
    assert int(row["steps"].replace(",", "")) == config.total_steps
    assert int(row["batch"]) == config.data.batch_size
    sides = config.data.short_sides
    assert row["pixels"] == "-".join(map(str, sorted({min(sides), max(sides)})))
    assert config.data.eval_short_side == max(sides)


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row["config"].strip("`"))
def test_the_readmes_ap_stands_in_the_recipe(row):
    name, _ = variant(row)
    docstring = importlib.import_module(f"retinanet_jax.configs.{name}").__doc__
    if name != "ablations" and row["AP"]:
        assert row["AP"] in docstring


# ---- the plan


def like_coco(count: int) -> np.ndarray:
    """Heights and widths of forms like train2017's, the longest and the squares among them."""
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


SIZES = like_coco(4_000)
# Of a batch's pixels. Sides of 400 and 500 are far from multiples of 32; where sides vary as well
# as forms, eight shapes can't fit both.
MOST_PADDING = {
    "r50_fpn": 0.05,
    "r50_fpn:400": 0.08,
    "r50_fpn:500": 0.065,
    "detectron2": 0.16,
    "torchvision:v2": 0.23,
}


@pytest.mark.parametrize(
    ("name", "arg"), [(name, arg) for name, arg in FULL if name not in ("shapes", "ablations")]
)
def test_every_recipe_plans_pictures_like_cocos(name, arg):
    config = load(name, arg)
    plan = input_pipeline.train_plan(config, types.SimpleNamespace(sizes=SIZES))
    assert len(plan.buckets) <= 8
    assert plan.steps_per_epoch == -(-len(SIZES) // config.data.batch_size)
    for step in (0, plan.steps_per_epoch - 1, plan.steps_per_epoch):
        batch = plan.batch(step)
        assert len(batch.index) == config.data.batch_size
        assert (batch.size <= batch.bucket).all()
    evaluation = input_pipeline.eval_plan(config, SIZES, batch_size=config.data.eval_batch_size)
    assert sum(int(x) for x in evaluation.weights.sum(axis=1)) == len(SIZES)


@pytest.mark.parametrize(("name", "arg"), [(name, tiny(arg)) for name, arg in FULL])
def test_every_tiny_recipe_plans_drawn_pictures(name, arg):
    config = load(name, arg)
    assert config.data.train.source == config.data.eval.source == "shapes"
    drawn = np.full((config.data.train.count, 2), config.data.train.image_size)
    plan = input_pipeline.train_plan(config, types.SimpleNamespace(sizes=drawn))
    assert {plan.batch(step).bucket for step in range(config.total_steps)} == {(96, 96)}
    input_pipeline.eval_plan(config, drawn, batch_size=config.data.eval_batch_size)


@pytest.mark.parametrize("name", ["r50_fpn", *(f"r50_fpn:{side}" for side in r50_fpn.BUCKETS)])
def test_one_side_pads_little(name):
    assert padding_overhead(*name.split(":")) <= MOST_PADDING.get(name, 0.05)


@pytest.mark.parametrize("name", ["detectron2", "torchvision:v2"])
def test_many_sides_pad_more(name):
    assert 0.05 < padding_overhead(*name.split(":")) <= MOST_PADDING[name]


def padding_overhead(name: str, arg: str = "") -> float:
    """Of the pixels of an epoch's batches."""
    plan = input_pipeline.train_plan(load(name, arg), types.SimpleNamespace(sizes=SIZES))
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    pixels = sum(int(batch.size.prod(axis=1) @ batch.weights) for batch in batches)
    return 1 - pixels / sum(len(batch.index) * np.prod(batch.bucket) for batch in batches)


def test_jittered_recipes_share_their_buckets():
    for name in ("r101_fpn_1_5x", "x101_32x8d_fpn"):
        assert load(name).data.buckets == detectron2.BUCKETS


# ---- the network and its step


def structure(config) -> str:
    """What of a config decides more of the program than a constant in it."""
    names = [name for name in field_names(config) if not name.startswith("init.")]
    fields = {name: at(config, name) for name in names if not name.startswith("data.")}
    switches = {name: value for name, value in fields.items() if isinstance(value, str | bool)}
    off = ("loss.beta", "loss.ohem.negatives_per_positive", "optimizer.clip_norm")
    return json.dumps(
        switches
        | config.model.to_dict()
        | {name: not fields[name] for name in off}
        | {"prior_probability": None, "crop": bool(config.data.crop_size)}
    )


def kinds(variants: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first variant of each structure: the others differ in constants alone."""
    first = {}
    for name, arg in variants:
        first.setdefault(structure(load(name, arg)), (name, arg))
    return list(first.values())


# The number of anchors is a shape, not a constant: the most there are stand for the others.
KINDS = [*kinds(FULL), ("ablations", "anchors=4x3")]
QUICK = [("ablations", "ohem=128@.7,tiny"), ("torchvision", "v2,tiny"), ("tpu_640", "tiny")]


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
        colors=array(np.float32, 4),
        dropped=array(np.int32),
    )


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        pytest.param(*kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind in [*KINDS, *QUICK]
    ],
)
def test_every_recipe_builds_its_network_and_its_step(name, arg):
    config = load(name, arg)
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
    # What a step returns, the next one takes.
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, before, after)
    )
    assert {x.shape for x in metrics.values()} == {()}
    rows = config.data.batch_size
    assert detections.boxes.shape == (rows, config.detections.max_detections, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arg"),
    [
        ("ablations", "star=2x+1"),
        ("ablations", "ohem13=128@.5"),
        ("detectron2", "3x"),
        ("torchvision", "v2"),
        ("tpu_640", ""),
    ],
)
def test_every_kind_of_loss_normalizer_optimizer_and_view_trains(name, arg, one_device, tmp_path):
    config = load(name, tiny(arg)).unlock()
    config.update(total_steps=3, checkpoint_every=3, evaluate_every=3)
    loop.train(config, tmp_path, evaluates=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
