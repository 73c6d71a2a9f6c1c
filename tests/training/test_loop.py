"""The training loop: whole runs, and runs that resume bit for bit after any interruption."""

import json
import os
import pathlib
import shutil
import signal
import time
import types

import jax
import numpy as np
import optax
import pytest
from time_metrics import TIME_METRICS

from retinanet_jax import checkpoint, datasets, input_pipeline, sharding
from retinanet_jax.checkpoint import integrity
from retinanet_jax.config import load_config
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.evaluation import evaluator
from retinanet_jax.training import evaluations, loop, summary
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.step import TrainState
from retinanet_jax.training.steps import is_due
from retinanet_jax.training.tripwire import Tripwire
from retinanet_jax.utils.files import write_json

# ---- parts of the loop


def test_an_action_every_few_steps_is_also_due_at_the_last_step():
    assert [step for step in range(1, 12) if is_due(step, 5, 11)] == [5, 10, 11]
    assert [step for step in range(1, 4) if is_due(step, 100, 3)] == [3]


@pytest.mark.parametrize(
    ("name", "value"),
    [("total_steps", 0), ("log_every", 0), ("epochs", -1), ("checkpoint_every", -1)],
)
def test_a_length_without_steps_is_refused_before_anything_is_opened(config, tmp_path, name, value):
    config[name] = value
    with pytest.raises(ValueError, match=rf"config\.{name}={value} must be at least {value + 1}"):
        loop.train(config, tmp_path, evaluates=True)


def test_settings_are_checked_before_the_data_also_if_the_run_sets_its_length(config, tmp_path):
    config.update(epochs=1, loggers=("paper",))  # and there is no such data
    with pytest.raises(ValueError, match="loggers"):
        loop.train(config, tmp_path, evaluates=True)


@pytest.mark.parametrize("total", [8, 7])
def test_a_run_without_steps_left_ends_in_one_line_before_anything_is_opened(
    tmp_path, error_line, total
):
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    integrity.write_digests(tmp_path / "checkpoints" / "8", {})
    line = error_line(
        "train",
        "--config=configs/shapes.py:tiny",
        f"--config.total_steps={total}",
        "--config.data.train.source=coco",  # without such files
        f"--workdir={tmp_path}",
    )
    assert line.startswith(f"error: already done; the newest checkpoint in {tmp_path} is that of ")
    assert f"step 8, and config.total_steps={total}. Give a larger --config.total_steps" in line


@pytest.mark.parametrize(("steps", "warns"), [(199, True), (200, False)])
def test_a_warmup_over_most_of_the_run_prints_a_warning(config, capsys, steps, warns):
    config.optimizer.warmup_steps, config.total_steps = 100, steps
    summary.warn_of_long_warmup(config)
    assert ("rises for 100 of 199 steps; lower" in capsys.readouterr().out) == warns


@pytest.mark.parametrize(("platform", "warns"), [("tpu", True), ("cpu", False)])
def test_few_images_a_chip_print_a_warning(config, capsys, platform, warns):
    devices = np.array([[types.SimpleNamespace(platform=platform)]] * 4)
    mesh = types.SimpleNamespace(devices=devices, shape={"data": 4, "space": 1})
    config.data.batch_size = 16
    summary.warn_of_few_images(config, mesh)
    assert ("warning: 4 images a chip" in capsys.readouterr().out) == warns


class Device:
    """Runs at most one step at a time, as a device does, and only when its result is waited for."""

    def __init__(self) -> None:
        self.waiting = 0

    def start(self):
        """Start a step and return its result."""
        self.waiting += 1
        return self

    def __bool__(self):
        self.waiting -= 1
        return True


def test_the_program_is_at_most_two_steps_ahead_of_the_devices():
    """Each step that waits has a batch in the device's memory, whatever log_every is."""
    device, most = Device(), 0
    tripwire = Tripwire(types.SimpleNamespace(skips=False))
    for step in range(1, 101):
        most = max(most, device.start().waiting)
        tripwire.watch(step, None, None, {"is_finite": device})
        assert device.waiting <= 2
        assert tripwire.last_finite == (step - 2 if step > 2 else -1)
    assert most == 3  # the third is the one being started
    tripwire.finish()
    assert device.waiting == 0
    assert tripwire.last_finite == 100


class Step:
    """A compiled step that records its calls, and changes and deletes its state as a real one."""

    def __init__(self) -> None:
        self.prepared: list[tuple[int, int]] = []
        self.called: list[tuple[int, int]] = []

    def prepare(self, state, batches):
        self.prepared += [batch.images.shape[1:3] for batch in batches]

    def __call__(self, state, batch):
        self.called.append(batch.images.shape[1:3])
        # Nothing changes in a state that has stopped.
        after = jax.tree.map(lambda x: x + 1 if state.is_finite else x.copy(), state)
        jax.tree.map(lambda x: x.delete(), state)
        return after, {}


def mixed_config(config, synthetic_dataset):
    """A config with three buckets; square images use the smallest two."""
    config.data.train.update(
        source="coco",
        annotations=str(synthetic_dataset / "instances.json"),
        images=str(synthetic_dataset / "images"),
    )
    config.data.update(
        batch_size=8,
        short_sides=(64, 96),
        eval_short_side=64,
        long_side=96,
        buckets=((64, 64), (96, 96), (128, 128)),
    )
    return config


@pytest.fixture
def start(config, synthetic_dataset):
    """A function `(first step, steps) -> (step, evaluated shapes)` that begins a run."""
    config = mixed_config(config, synthetic_dataset)
    source = datasets.open_training(config, pathlib.Path())
    plan = input_pipeline.train_plan(config, source)
    mesh = sharding.make_mesh(1)
    state = sharding.put_replicated(
        TrainState(np.int32(3), {"kernel": np.float32([1.5, 2])}, {}, (), np.float32(1)), mesh
    )

    def start(is_largest_first, num_steps=1000, eval_pixels=0):
        first = next(
            step
            for step in range(100)
            if (plan.batch(step).bucket == plan.largest_bucket) == is_largest_first
        )
        step, evaluated = Step(), []
        largest = np.broadcast_to(np.uint8(0), (eval_pixels,))
        evaluator = types.SimpleNamespace(
            largest_batch=types.SimpleNamespace(images=largest),
            run_largest=lambda variables: evaluated.append(variables),
        )
        steps = range(first, first + num_steps)
        after = loop.run_largest_shapes(step, evaluator, state, source, plan, steps, mesh)
        assert jax.tree.map(np.asarray, after).params["kernel"].tolist() == [1.5, 2]
        assert int(after.step) == 3
        assert after.is_finite
        assert after.params["kernel"].sharding == sharding.replicated(mesh)
        return step, evaluated

    return start


def test_a_run_begins_with_the_largest_shape_which_changes_nothing(start):
    """Too little memory is an error in the first minute and not after hours."""
    step, evaluated = start(is_largest_first=False)
    assert step.called == [(96, 96)]
    assert step.prepared[0] == (96, 96)
    assert set(step.prepared) == {(64, 64), (96, 96)}  # never a shape that cannot occur
    assert not evaluated


def test_the_largest_shape_is_not_run_twice(start):
    step, _ = start(is_largest_first=True)
    assert step.called == []
    assert step.prepared[0] == (96, 96)
    step, _ = start(is_largest_first=False, num_steps=0)  # a finished run
    assert step.called == step.prepared == []


@pytest.mark.parametrize(("eval_pixels", "is_run"), [(8 * 96 * 96 * 3, False), (10**9, True)])
def test_an_evaluation_that_is_larger_than_training_is_run_too(start, eval_pixels, is_run):
    _, evaluated = start(is_largest_first=False, eval_pixels=eval_pixels)
    assert len(evaluated) == is_run


# ---- whole runs


def logged(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without the values that depend on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIME_METRICS} for line in lines]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_run(first: pathlib.Path, second: pathlib.Path, step: int):
    """Bit for bit: logged numbers, parameters, statistics, and AP."""
    assert logged(first) == logged(second)
    first_variables, second_variables = (
        checkpoint.load(workdir / "checkpoints" / str(step)).variables
        for workdir in (first, second)
    )
    assert jax.tree.structure(first_variables) == jax.tree.structure(second_variables)
    jax.tree.map(np.testing.assert_array_equal, first_variables, second_variables)
    name = f"eval/{step}.json"
    assert json.loads((first / name).read_text()) == json.loads((second / name).read_text())


@pytest.mark.slow
def test_a_run_logs_every_step_and_prints_a_summary(tiny_run):
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
            *TIME_METRICS,
        }
        assert line["loss"] == pytest.approx(line["loss/classification"] + line["loss/box"])
        assert line["num_foreground"] == int(line["num_foreground"]) > 0
        assert line["dropped_boxes"] == 0
        assert 0 <= line["data_wait"] <= 1
        may_be_zero = {"dropped_boxes", "data_wait", "time/data", "time/host", "time/compile"}
        assert min(line[name] for name in set(line) - may_be_zero) > 0
    assert saved_steps(tiny_run.workdir) == [4, 8]
    for text in ("280,418 parameters", "16 training and 8 evaluation images of 6 categories"):
        assert text in tiny_run.stdout
    assert "4 steps per epoch" in tiny_run.stdout
    assert "4 images, learning rate 0.001 (0.002 for 8 images)" in tiny_run.stdout
    assert "training from step 0 to 8, starting from random parameters" in tiny_run.stdout
    assert "step 8/8 (100%)" in tiny_run.stdout


# When a run is killed: (pattern of files below the workdir, how many lines such a file must have).
MOMENTS = {
    "before the first checkpoint": ("metrics.jsonl", 2),
    "between evaluation and checkpoint": ("eval/4_detections.json", 0),
    "while a checkpoint is written": ("checkpoints/*tmp*/variables*/*", 0),
    "after the first checkpoint": ("metrics.jsonl", 6),
    "while the last checkpoint is begun": ("checkpoints/8*tmp*", 0),
}


def kill_at(process, workdir: pathlib.Path, pattern: str, num_lines: int) -> bool:
    """SIGKILL as soon as such a file appears or changes; False if the run ended before."""
    started = time.time_ns()

    def is_reached() -> bool:
        try:
            return any(
                path.stat().st_mtime_ns > started
                and (not num_lines or path.read_text().count("\n") >= num_lines)
                for path in workdir.glob(pattern)
            )
        except FileNotFoundError:  # moved away between the two calls
            return False

    try:
        while process.poll() is None:
            if is_reached():
                os.kill(process.pid, signal.SIGKILL)
                return True
            time.sleep(0.002)
        return False
    finally:
        process.communicate()


@pytest.mark.slow
@pytest.mark.exhaustive  # the campaign has a test with random moments
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(
    tiny_run, program, tmp_path
):
    """SIGKILL at each of the moments, then the same command to its end."""
    workdir = tmp_path / "killed"
    workdir.mkdir()
    # A copy: a kill may leave half a file in it.
    shutil.copytree(tiny_run.workdir / "compilation_cache", workdir / "compilation_cache")
    command = ("main", *tiny_run.arguments, f"--workdir={workdir}")
    for moment, (pattern, num_lines) in MOMENTS.items():
        assert kill_at(program.start(*command), workdir, pattern, num_lines), moment
    status, _, stderr = program.run(*command)
    assert status == 0, stderr
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    assert saved_steps(workdir) == [4, 8]
    assert_same_run(workdir, tiny_run.workdir, 8)


@pytest.fixture
def finetune_config(toy_config, synthetic_dataset):
    """configs/finetune.py with a toy network and a fraction of the data for validation."""
    config = load_config("configs/finetune.py").unlock()
    config.update(total_steps=6, log_every=1, checkpoint_every=2, evaluate_every=6)
    config.data.update(
        batch_size=4,
        buckets=((64, 64),),
        short_sides=(48, 64),
        eval_short_side=64,
        long_side=64,
        validation_fraction=0.3,
        scale_jitter=(0.8, 1.2),
    )
    config.data.train.update(
        source="coco",
        annotations=str(synthetic_dataset / "instances.json"),
        images=str(synthetic_dataset / "images"),
    )
    config.data.eval.update(source="coco", annotations="", images="")
    config.init.update(source="", path="")
    config.model.update(toy_config.model)
    config.model.update(norm="frozen_batch", frozen_stages=2)
    config.optimizer.ema_decay = 0.9
    config.detections.score_threshold = 0.001
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_fine_tuning_with_a_validation_fraction_and_an_interruption(
    finetune_config, tmp_path, monkeypatch, capsys
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    loop.train(finetune_config, whole, evaluates=True)

    # AP is that of the validation images, and of no others.
    train_data, validation_data = datasets.open_sources(finetune_config, whole)
    results = json.loads((whole / "eval/6_detections.json").read_text())
    assert {result["image_id"] for result in results} == set(validation_data.image_ids)
    assert not set(train_data.image_ids) & set(validation_data.image_ids)
    assert len(logged(whole)) == 6
    before, after = (
        checkpoint.load(whole / f"checkpoints/{step}").variables for step in saved_steps(whole)[-2:]
    )
    assert optax.tree.norm(jax.tree.map(np.subtract, before["params"], after["params"])) > 0
    for name, leaves in after["params"]["backbone"].items():
        same = jax.tree.all(
            jax.tree.map(np.array_equal, before["params"]["backbone"][name], leaves)
        )
        assert same == name.startswith(("stem", "stage2")), name
    # Frozen norms' statistics stay, though the network trains.
    jax.tree.map(np.testing.assert_array_equal, before["batch_stats"], after["batch_stats"])

    # As if it had been killed while the AP of its last step was computed.
    own = (whole / "eval/6.json").read_bytes()
    ap = checkpoint.saved_ap(whole / "checkpoints/6")
    assert json.loads(own)["AP"] == ap > 0
    (whole / "eval/6.json").unlink()
    shutil.rmtree(whole / "checkpoints/6/metrics")
    loop.train(finetune_config, whole, evaluates=True)
    assert (whole / "eval/6.json").read_bytes() == own
    assert checkpoint.saved_ap(whole / "checkpoints/6") == ap

    # A separate evaluation repeats that of training; one with other settings does not replace it.
    evaluator.evaluate(finetune_config, whole)
    assert (whole / "eval/6.json").read_bytes() == own
    strict = finetune_config.copy_and_resolve_references()
    strict.detections.max_detections = 1
    evaluator.evaluate(strict, whole)
    assert (whole / "eval/6.json").read_bytes() == own
    (other,) = (whole / "eval").glob("*/6.json")
    assert json.loads(other.read_text())["settings"]["detections.max_detections"] == 1
    assert f"written to {other}" in capsys.readouterr().out

    # The same run, ended by an error in its fifth step, then started again. Its folder contains an
    # evaluation of a deleted checkpoint of step 2; the new one is not evaluated.
    (stopped / "eval").mkdir(parents=True)
    for name in ("2.json", "2.jpg", "2_detections.json"):
        shutil.copy(whole / "eval" / name.replace("2", "6"), stopped / "eval" / name)
    write_step = MetricWriter.write_step

    def failing(self, step, *arguments):
        if step == 5:
            raise OSError("no space left")
        write_step(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write_step", failing)
        with pytest.raises(OSError, match="no space left"):
            loop.train(finetune_config, stopped, evaluates=True)
    assert [line["step"] for line in logged(stopped)] == [1, 2, 3, 4]
    loop.train(finetune_config, stopped, evaluates=True)
    assert not list((stopped / "eval").glob("2*"))
    assert_same_run(stopped, whole, 6)

    # A finished run that is started again is an error, and nothing changes.
    written = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"^already done; "):
        loop.train(finetune_config, stopped, evaluates=True)
    assert (stopped / "metrics.jsonl").read_bytes() == written

    # A dataset of other categories is refused, however it is given.
    content = json.loads(pathlib.Path(finetune_config.data.train.annotations).read_text())
    content["categories"].append({"id": 99, "name": "egg"})
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    finetune_config.data.train.annotations = str(other)
    monkeypatch.setattr(evaluator, "build_model", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=r"trained on 6 categories, the dataset has 7; .*egg"):
        evaluator.evaluate(finetune_config, stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "during", ["training", pytest.param("evaluation", marks=pytest.mark.exhaustive)]
)
def test_an_error_of_the_data_is_raised_when_the_steps_before_it_are_saved(
    finetune_config, tmp_path, monkeypatch, during
):
    """The run that follows, when the data is mended, is that after any other interruption."""
    finetune_config.update(checkpoint_every=6)
    batches = input_pipeline.batches

    def broken_batches(source, plan, **options):
        is_training = isinstance(plan, TrainPlan)
        for step, batch in enumerate(batches(source, plan, **options)):
            if is_training == (during == "training") and step == 4 * is_training:
                raise OSError("17.jpg is truncated")
            yield batch

    monkeypatch.setattr(input_pipeline, "batches", broken_batches)
    with pytest.raises(OSError, match="is truncated"):
        loop.train(finetune_config, tmp_path, evaluates=True)
    assert saved_steps(tmp_path) == [4 if during == "training" else 6]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_ends_early_also_after_a_kill_and_continues_with_more_patience(
    finetune_config, tmp_path, monkeypatch, capsys
):
    finetune_config.update(evaluate_every=2, patience=1)
    write_evaluation = evaluations.write_evaluation

    def with_planted_ap(results, source, step, folder, config, description):
        evaluation = write_evaluation(results, source, step, folder, config, description)
        evaluation.metrics["AP"] = {2: 0.5, 4: 0.4, 6: 0.6}[step]
        write_json(folder / f"{step}.json", {**evaluation.metrics, **description})
        return evaluation

    monkeypatch.setattr(evaluations, "write_evaluation", with_planted_ap)

    def early_ends():
        return [line for line in capsys.readouterr().out.splitlines() if "ends early" in line]

    line = (
        "the run ends early: 1 evaluation without a better AP (config.patience=1); the best "
        "checkpoint is that of step 2, AP 0.500"
    )
    assert loop.train(finetune_config, tmp_path, evaluates=True) == 0
    assert early_ends() == [line]
    assert saved_steps(tmp_path) == [2, 4]
    with pytest.raises(ValueError, match=r"^already done; .* better AP than that of step 2,"):
        loop.train(finetune_config, tmp_path, evaluates=True)

    # As if it had been killed before its last AP was known.
    digests = integrity.read_digests(tmp_path / "checkpoints/4")
    del digests["metrics/metrics"]
    integrity.write_digests(tmp_path / "checkpoints/4", digests)
    (tmp_path / "eval/4.json").unlink()
    assert loop.train(finetune_config, tmp_path, evaluates=True) == 0
    assert early_ends() == [line]
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]

    finetune_config.patience = 2
    assert loop.train(finetune_config, tmp_path, evaluates=True) == 0
    assert early_ends() == []
    assert [line["step"] for line in logged(tmp_path)] == [*range(1, 7)]
    assert checkpoint.find(tmp_path).name == "6"
