"""Training: the schedule, what moves and what does not, and runs that go on as if never stopped."""

import json
import os
import pathlib
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retinanet_jax import checkpoint, input_pipeline
from retinanet_jax.configs import finetune
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.evaluation import evaluator
from retinanet_jax.training import initialization, loop
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.optimizer import make_optimizer, make_schedule, scaled_learning_rate

# ---- when and how fast


def test_what_is_due():
    assert [step for step in range(1, 12) if loop.is_due(step, 5, 11)] == [5, 10, 11]
    assert [step for step in range(1, 4) if loop.is_due(step, 100, 3)] == [3]


@pytest.mark.parametrize(("batch_size", "rate"), [(16, 0.01), (8, 0.005), (256, 0.16)])
def test_the_learning_rate_is_linear_in_the_batch(config, batch_size, rate):
    config.data.batch_size = batch_size
    assert scaled_learning_rate(config) == pytest.approx(rate)


def test_the_papers_schedule_by_hand(config):
    rate = make_schedule(config)
    for step, expected in {
        0: 0.01 * (1 / 3 + 2 / 3 / 500),  # the first step is already one of warm-up
        249: 0.01 * (1 / 3 + 2 / 3 / 2),
        499: 0.01,
        59_999: 0.01,
        60_001: 0.001,
        79_999: 0.001,
        80_001: 0.0001,
        89_999: 0.0001,
    }.items():
        assert rate(step) == pytest.approx(expected, rel=1e-5), step


def test_cosine_ends_at_zero(config):
    config.total_steps = 1000
    config.optimizer.update(schedule="cosine", warmup_steps=0)
    rate = make_schedule(config)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 250, 500, 1000)],
        [0.01, 0.01 * (1 + np.cos(np.pi / 4)) / 2, 0.005, 0],
        atol=1e-8,
    )


def test_a_schedule_is_a_function_of_the_step_alone(config):
    rate = make_schedule(config)
    steps = jnp.array([0, 100, 70_000])
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), [rate(s) for s in steps], rtol=1e-6)


@pytest.mark.parametrize("field", ["schedule", "name"])
def test_an_unknown_name_is_told_with_those_there_are(config, field):
    config.optimizer[field] = "linear"
    with pytest.raises(ValueError, match=f"optimizer.{field}='linear' must be one of "):
        make_optimizer(config)


# ---- what moves


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


def moved(config, gradients, steps=1):
    """Names of the parameters that `steps` of the optimizer move, and the parameters."""
    optimizer = make_optimizer(config)
    params = parameters()
    opt_state = optimizer.init(params)
    for _ in range(steps):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if np.any(leaf != 2.0)
    }
    return names, params


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_is_on_kernels_only_and_never_on_frozen_stages(config, name):
    config.optimizer.update(name=name, weight_decay=0.1)
    still = jax.tree.map(jnp.zeros_like, parameters())
    names, params = moved(config, still, steps=3)
    assert names == {"backbone/stage3_block0/conv1/kernel", "fpn/p3/kernel"}
    assert (params["fpn"]["p3"]["kernel"] < 2).all()


def test_frozen_stages_never_move(config):
    for frozen_stages, expected in ((0, 9), (1, 8), (2, 5), (3, 2)):
        config.model.frozen_stages = frozen_stages
        names, _ = moved(config, parameters(), steps=2)
        assert len(names) == expected
        assert ("backbone/stem_conv/kernel" in names) == (frozen_stages == 0)
        assert ("backbone/stage2_block0/norm1/scale" in names) == (frozen_stages < 2)
        assert {"fpn/p3/kernel", "fpn/p3/bias"} <= names


def test_sgd_by_hand(config):
    config.model.frozen_stages = 0
    config.optimizer.update(weight_decay=0.5, momentum=0.9, clip_norm=0.0, warmup_steps=0)
    _, params = moved(config, parameters(), steps=2)  # gradients of 2
    # bias: velocity 2, then 2 * 0.9 + 2 = 3.8; learning rate 0.01
    np.testing.assert_allclose(params["fpn"]["p3"]["bias"], 2 - 0.02 - 0.038, rtol=1e-6)
    # kernel: gradient 2 + 0.5 * 2 = 3, then 2 + 0.5 * 1.97 = 2.985; velocity 2.7 + 2.985
    np.testing.assert_allclose(params["fpn"]["p3"]["kernel"], 1.97 - 0.05685, rtol=1e-6)


def test_clipping_is_of_all_trained_gradients_together(config):
    config.optimizer.update(weight_decay=0.0, clip_norm=1.0, warmup_steps=0)
    _, params = moved(config, parameters())
    steps = jax.tree.map(lambda x: 2 - x, params)
    assert optax.global_norm(steps) == pytest.approx(0.01, rel=1e-4)


def test_the_imported_backbone_replaces_the_random_one_alone():
    variables = {
        "params": {"backbone": {"a": jnp.zeros(2)}, "fpn": {"b": jnp.zeros(1)}},
        "batch_stats": {"backbone": {"mean": jnp.zeros(2)}},
    }
    imported = {
        "params": {"a": np.ones(2)},
        "batch_stats": {"mean": np.ones(2)},
    }
    joined = initialization.with_backbone(variables, imported, "w.npz")
    assert joined["params"]["backbone"]["a"].tolist() == [1, 1]
    assert joined["params"]["fpn"]["b"].tolist() == [0]
    assert joined["batch_stats"]["backbone"]["mean"].tolist() == [1, 1]
    imported["params"]["a"] = np.ones(3)
    with pytest.raises(ValueError, match=r"w\.npz: .*params/a \(3,\) \(config: \(2,\)\)"):
        initialization.with_backbone(variables, imported, "w.npz")


def test_a_missing_weights_file_is_told_before_anything_compiles(config, tmp_path, monkeypatch):
    config.init.path = str(tmp_path / "absent.npz")
    monkeypatch.setattr(initialization, "initialize", lambda *_: pytest.fail("compiled"))
    with pytest.raises(FileNotFoundError, match=r"absent\.npz does not exist; scripts/get_resnet"):
        initialization.initial_state(config, COCO_CATEGORIES, make_optimizer(config))


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(config, tmp_path, name, value):
    finite = {"loss": 2.0, "loss/classification": 1.0, "loss/box": 1.0, "gradient_norm": 3.0}
    metrics = finite | {name: value}
    with (
        MetricWriter(tmp_path, start_step=0, total_steps=100, writes=True) as report,
        pytest.raises(
            FloatingPointError, match=f"the {name} became {value} within steps 41..60 .*lower"
        ) as e,
    ):
        loop.log_step(60, metrics, config, report)
    assert "\n" not in str(e.value)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every", "evaluate_every"])
def test_every_zero_steps_is_refused_before_anything_is_opened(config, tmp_path, name):
    config[name] = 0
    with pytest.raises(ValueError, match=rf"config\.{name}=0 must be at least 1"):
        loop.train(config, tmp_path, evaluates=True)


# ---- whole runs

TIMES = {"images_per_second", "data_wait"}


def logged(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def steps_of(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_run(one: pathlib.Path, other: pathlib.Path, step: int):
    """Bit for bit: logged numbers, parameters, statistics, and AP."""
    assert logged(one) == logged(other)
    ours, theirs = (
        checkpoint.load(workdir / "checkpoints" / str(step)).variables for workdir in (one, other)
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    name = f"eval/{step}.json"
    assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())


@pytest.mark.slow
def test_what_a_run_tells(tiny_run):
    lines = [
        json.loads(line) for line in (tiny_run.workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert set(line) == {
            "step",
            "loss",
            "loss/classification",
            "loss/box",
            "learning_rate",
            "num_foreground",
            "gradient_norm",
            "dropped_boxes",
            *TIMES,
        }
        assert line["loss"] == pytest.approx(line["loss/classification"] + line["loss/box"])
        assert line["num_foreground"] == int(line["num_foreground"]) > 0
        assert line["dropped_boxes"] == 0
        assert 0 <= line["data_wait"] <= 1
        assert min(line[name] for name in set(line) - {"dropped_boxes", "data_wait"}) > 0
    assert steps_of(tiny_run.workdir) == [4, 8]
    for said in ("280,418 parameters", "16 training and 8 evaluation images of 6 categories"):
        assert said in tiny_run.stdout
    assert "4 steps an epoch" in tiny_run.stdout
    assert "scaled to batch 4" in tiny_run.stdout
    assert "steps 0 to 8, from random parameters" in tiny_run.stdout
    assert "step 8/8 (100%)" in tiny_run.stdout


# Where a run is killed: (files below the workdir, how many lines one must have).
MOMENTS = {
    "before the first checkpoint": ("metrics.jsonl", 2),
    "between evaluation and checkpoint": ("eval/4.json", 0),
    "while a checkpoint is written": ("checkpoints/*tmp*/variables*/*", 0),
    "after the first checkpoint": ("metrics.jsonl", 6),
    "while the last checkpoint is begun": ("checkpoints/8*tmp*", 0),
}


def kill_at(process, workdir: pathlib.Path, pattern: str, lines: int) -> bool:
    """SIGKILL at once when such a file appears or changes; False where the run was over before."""
    started = time.time_ns()

    def reached() -> bool:
        try:
            return any(
                path.stat().st_mtime_ns > started
                and (not lines or path.read_text().count("\n") >= lines)
                for path in workdir.glob(pattern)
            )
        except FileNotFoundError:  # moved away while we looked
            return False

    try:
        while process.poll() is None:
            if reached():
                os.kill(process.pid, signal.SIGKILL)
                return True
            time.sleep(0.002)
        return False
    finally:
        process.communicate()


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny_run, program, tmp_path):
    """SIGKILL again and again, then the same command to its end."""
    workdir = tmp_path / "killed"
    workdir.mkdir()
    # A copy: a kill may leave half a file in it.
    shutil.copytree(tiny_run.workdir / "compilation_cache", workdir / "compilation_cache")
    command = ("main", *tiny_run.arguments, f"--workdir={workdir}")
    for moment, (pattern, lines) in MOMENTS.items():
        assert kill_at(program.start(*command), workdir, pattern, lines), moment
    status, _, stderr = program.run(*command)
    assert status == 0, stderr
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    assert steps_of(workdir) == [4, 8]
    assert_same_run(workdir, tiny_run.workdir, 8)


@pytest.fixture
def finetune_config(toy_config, drawn):
    """configs/finetune.py on one's own pictures, a share held out, with a toy network."""
    own = finetune.get_config().unlock()
    own.update(total_steps=6, log_every=1, checkpoint_every=2, evaluate_every=6)
    own.data.update(
        batch_size=4,
        buckets=((64, 64),),
        short_sides=(48, 64),
        eval_short_side=64,
        long_side=64,
        validation_fraction=0.3,
        scale_jitter=(0.8, 1.2),
    )
    own.data.train.update(
        source="coco", annotations=str(drawn / "instances.json"), images=str(drawn / "images")
    )
    own.data.eval.update(source="coco", annotations="", images="")
    own.init.update(source="", path="")
    own.model.update(toy_config.model)
    own.model.update(norm="frozen_batch", frozen_stages=2)
    own.detections.score_threshold = 0.001
    return own


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_own_pictures_a_held_out_share_and_a_run_that_is_interrupted(
    finetune_config, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    loop.train(finetune_config, whole, evaluates=True)

    # AP is that of the pictures held out, and of them alone.
    train_data, held_out = input_pipeline.open_sources(finetune_config, whole)
    results = json.loads((whole / "eval/6_detections.json").read_text())
    assert {one["image_id"] for one in results} == set(held_out.image_ids)
    assert not set(train_data.image_ids) & set(held_out.image_ids)
    assert len(logged(whole)) == 6
    before, after = (
        checkpoint.load(whole / f"checkpoints/{step}").variables for step in steps_of(whole)[-2:]
    )
    assert optax.global_norm(jax.tree.map(np.subtract, before["params"], after["params"])) > 0
    for name, leaves in after["params"]["backbone"].items():
        same = jax.tree.all(
            jax.tree.map(np.array_equal, before["params"]["backbone"][name], leaves)
        )
        assert same == name.startswith(("stem", "stage2")), name
    # Frozen norms' statistics stay, though the network trains.
    jax.tree.map(np.testing.assert_array_equal, before["batch_stats"], after["batch_stats"])

    # The same run, ended by an error in its fifth step, then started again.
    stopped.mkdir()
    log_step = loop.log_step

    def failing(step, *rest):
        if step == 5:
            raise OSError("no space left")
        log_step(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "log_step", failing)
        with pytest.raises(OSError, match="no space left"):
            loop.train(finetune_config, stopped, evaluates=True)
    assert [line["step"] for line in logged(stopped)] == [1, 2, 3, 4]
    loop.train(finetune_config, stopped, evaluates=True)
    assert_same_run(stopped, whole, 6)

    # Once more: it is done, and stays as it is.
    written = (stopped / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(evaluator, "write", lambda *_: pytest.fail("evaluated again"))
    loop.train(finetune_config, stopped, evaluates=True)
    assert (stopped / "metrics.jsonl").read_bytes() == written

    # Data of other classes are refused, whichever way they come.
    content = json.loads(pathlib.Path(finetune_config.data.train.annotations).read_text())
    content["categories"].append({"id": 99, "name": "egg"})
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    finetune_config.data.train.annotations = str(other)
    monkeypatch.setattr(evaluator, "build_model", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=r"trained on 6 categories, the data has 7; .*egg"):
        evaluator.evaluate(finetune_config, stopped)


@pytest.mark.parametrize(("steps", "warned"), [(199, True), (200, False)])
def test_a_warmup_that_takes_most_of_the_run_is_told(config, capsys, steps, warned):
    config.optimizer.warmup_steps, config.total_steps = 100, steps
    loop.warn_of_long_warmup(config)
    assert ("rises for 100 of 199 steps; lower" in capsys.readouterr().out) == warned
