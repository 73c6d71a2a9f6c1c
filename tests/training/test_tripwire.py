"""Steps that are not finite: each planted number is named, stored, and found again by a replay."""

import errno
import json
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from random_batches import NUM_CLASSES, make_batch

from retinanet_jax import checkpoint, input_pipeline, sharding
from retinanet_jax.config import load_config
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Category
from retinanet_jax.modeling import build_model
from retinanet_jax.training import loop, replay
from retinanet_jax.training.diagnosis import (
    PARTS,
    Diagnosis,
    ImageName,
    make_diagnose,
    nonfinite_arrays,
)
from retinanet_jax.training.initialization import random_train_state
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, count_steps, jit_train_step
from retinanet_jax.training.tripwire import MAX_SKIPPED, Tripwire

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


@pytest.mark.slow
def test_a_finite_step_changes_the_state_and_is_finite_in_its_replay(
    step, small_config, tmp_path, monkeypatch, capsys
):
    after, metrics = run(step, step.state, step.batch)
    assert metrics["is_finite"]
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
        "the batch: pixels of image 80 (b.jpg)",
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.exhaustive  # those of another norm are among what is planted above
@pytest.mark.parametrize("name", ["mean", "var", "scale", "bias"])
def test_each_array_of_a_frozen_norm_is_named(small_config, compiled, name):
    small_config.model.norm = "frozen_batch"
    step = make_step(small_config, compiled)
    planted = f"backbone/stem_norm/{name}"
    state = TrainState(**plant(replay.saved_part(step.state), planted, np.nan))
    _, metrics = run(step, state, step.batch)
    assert not metrics["is_finite"]
    diagnosis = step.diagnose(state, step.batch, 1, metrics, IMAGES)
    assert f"cause: batch statistics before the step: {planted}; " in diagnosis.summary()
    assert "gradients" in {array.part for array in diagnosis.arrays}


def test_the_counters_of_the_steps_are_those_of_state_and_schedule(step):
    """A skipped step has the number and the learning rate of a step."""
    after, _ = run(step, step.state, step.batch)
    for state in (after, count_steps(step.state, 1)):
        assert state.step == 1
        assert optax.tree.get(state.opt_state, "count") == 1
    jax.tree.map(np.testing.assert_array_equal, count_steps(count_steps(after, 1), -1), after)


# ---- one line, whatever the number and the length of names


def diagnosis_of(counts, images=IMAGES, loss=np.nan, norm=np.nan) -> Diagnosis:
    """A diagnosis of the parts in `counts`; all other parts are finite."""
    parts = {part: counts.get(part, {}) for part in PARTS}
    arrays = tuple(nonfinite_arrays(parts, images))
    metrics = {"loss": loss, "gradient_norm": norm}
    return Diagnosis(9, metrics, arrays, len(images), ("a lower rate", "a longer warmup"))


def test_the_line_of_a_diagnosis_is_short(tmp_path):
    images = [ImageName(i, "folder/" * 500 + "\n.jpg") for i in range(1000)]
    counts = np.arange(1000)  # the first image is finite
    many = {f"{'module/' * 100}{i}": np.int32(7) for i in range(1000)}
    diagnosis = diagnosis_of(
        {"batch": {"boxes": counts}, "parameters": many, "gradients": many}, images
    )
    line = diagnosis.summary()
    assert len(line) < 1000
    assert "\n" not in line
    assert "and 996 more" in line
    assert "boxes of image 1 (..." in line
    written = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert written["metrics"]["loss"] == "nan"
    assert len(written["arrays"]["gradients"]) == 1000
    assert len(written["arrays"]["batch"]["boxes"]["images"]) == 999


def test_an_effect_is_not_named_as_the_cause_and_a_divergence_has_its_remedies():
    effects = {"gradients": {"fpn": {"kernel": np.int32(4)}, "backbone": {"stem": np.int32(4)}}}
    outputs = {"outputs": {"logits of level 3": np.int32([0, 5])}}
    line = diagnosis_of(outputs | effects).summary()
    assert "cause: outputs of the network: logits of level 3 of image 80 (b.jpg); " in line
    assert line.endswith("the training diverges: try a lower rate or a longer warmup")
    both = {"outputs": {"logits of level 3": np.int32([1, 5])}}
    assert "logits of level 3 of all 2 images" in diagnosis_of(both).summary()
    # The backward pass reaches the pyramid before the backbone.
    assert "gradients of parameters: fpn/kernel, backbone/stem;" in diagnosis_of(effects).summary()


def test_a_step_that_is_finite_when_computed_again_has_no_wrong_cause():
    line = diagnosis_of({}).summary()
    assert "computed again, all numbers are finite" in line
    assert "device may be defective" in line
    line = diagnosis_of({}, loss=3e30, norm=np.inf).summary()
    assert "the norm of the gradient overflows" in line
    assert "the training diverges" in line


# ---- the tripwire


class FakeExaminer:
    """Names steps, and remembers those that are skipped."""

    def __init__(self, skips):
        self.skips, self.skipped = skips, []

    @property
    def num_skipped(self):
        return len(self.skipped)

    def examine(self, started, state):
        return f"step {started.step} in state {state}", []

    def record_skipped(self, step, summary, images):
        self.skipped.append(step)


def test_the_first_step_that_is_not_finite_is_examined_in_the_state_before_it():
    wire = Tripwire(FakeExaminer(skips=False))
    assert wire.num_skipped is None
    for step, is_finite in enumerate([True, True, False, True], start=1):
        wire.watch(step, f"batch {step}", f"after {step}", {"is_finite": is_finite})
    # With "stop" the state of step 4 is that before step 3.
    with pytest.raises(FloatingPointError, match=r"^step 3 in state after 4$"):
        wire.finish()
    assert (wire.last_finite, wire.finite_batch) == (2, "batch 2")


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    wire = Tripwire(FakeExaminer(skips=True))
    outcomes = [False] * (MAX_SKIPPED - 1) + [True] + [False] * (MAX_SKIPPED - 1)
    for step, is_finite in enumerate(outcomes, start=1):
        wire.watch(step, step, step, {"is_finite": is_finite})
    assert wire.num_skipped == 2 * (MAX_SKIPPED - 1)
    assert wire.last_finite == wire.finite_batch == MAX_SKIPPED
    with pytest.raises(FloatingPointError, match=f"{MAX_SKIPPED} steps in a row .*: step 99 in"):
        wire.watch(99, 99, 99, {"is_finite": False})


# ---- the file


def test_any_damage_of_the_file_is_one_line_or_changes_nothing(step, small_config, tmp_path):
    path, damaged = tmp_path / "step_1.npz", tmp_path / "damaged.npz"
    store(step, small_config, step.state, step.batch, path)
    original, rng = path.read_bytes(), np.random.default_rng(0)
    whole = replay.read_arrays(path)
    num_detected = 0
    for i in range(60):
        content = bytearray(original)
        # Half of them near the end, where the zip file's table of contents is.
        position = rng.integers(len(content) - 40_000 if i % 2 else 0, len(content))
        content[position] ^= 1 << rng.integers(8)
        damaged.write_bytes(content if i % 3 else content[:position])
        message, arrays = "", whole
        try:
            arrays = replay.read_arrays(damaged)
        except ValueError as error:
            message, num_detected = str(error), num_detected + 1
        jax.tree.map(np.testing.assert_array_equal, arrays, whole)
        assert message.startswith(f"--replay={damaged}: " if message else "")
        assert len(message) < 500
        assert "\n" not in message
    assert num_detected > 30


def test_a_file_of_another_network_or_program_is_refused(step, small_config, tmp_path):
    path = tmp_path / "step_1.npz"
    store(step, small_config, step.state, step.batch, path)
    with pytest.raises(ValueError, match=r"another network or optimizer .* and \d+ more differ"):
        replay.read_step(path, {"model.fpn_channels": 32})
    with pytest.raises(ValueError, match=r"^config\.optimizer\.accumulate=5 must divide"):
        replay.replay(path, {"optimizer.accumulate": 5})
    with pytest.raises(FileNotFoundError, match="no such file"):
        replay.read_step(tmp_path / "step_2.npz", {})
    np.savez(path, weights=np.ones(3))
    with pytest.raises(ValueError, match=r"no file of a step, or it is damaged \(KeyError"):
        replay.read_step(path, {})


@pytest.mark.parametrize("flag", ["--config=configs/shapes.py", "--workdir=x", "--mode=train"])
def test_flags_that_a_replay_does_not_use_are_refused(error_line, flag):
    line = error_line("train", "--replay=step_1.npz", flag)
    assert f"{flag.partition('=')[0]} has no effect with --replay; leave it out." in line


# ---- whole runs


@pytest.fixture
def run_config(small_config):
    """A run of 8 steps on synthetic images, with a checkpoint and a line after each."""
    config = load_config("configs/shapes.py:tiny").unlock()
    config.model.update(small_config.model)
    config.anchors.update(small_config.anchors)
    config.data.update(batch_size=4, resize="bilinear_float")
    config.update(total_steps=8, log_every=1, checkpoint_every=1, nonfinite="skip")
    return config


def poison(monkeypatch, steps) -> None:
    """Plant NaN in a pixel of the second image of the batches of these steps."""
    host_batches = input_pipeline.host_batches

    def poisoned(config, source, plan, step_range, *arguments):
        batches = host_batches(config, source, plan, step_range, *arguments)
        for step, batch in zip(step_range, batches, strict=True):
            if step + 1 in steps:
                images = batch.images.copy()
                images[1, 3, 3, 0] = np.nan
                batch = batch._replace(images=images)
            yield batch

    monkeypatch.setattr(input_pipeline, "host_batches", poisoned)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("one_device")
def test_a_run_skips_poisoned_steps_and_counts_them_after_a_resume(
    run_config, tmp_path, monkeypatch, capsys
):
    poison(monkeypatch, {3, 4, 7, 8})
    run_config.total_steps = 5
    loop.train(run_config, tmp_path, evaluates=False)
    run_config.total_steps = 8
    loop.train(run_config, tmp_path, evaluates=False)
    printed = capsys.readouterr().out
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(1, 9)]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 2, 2, 2, 3, 4]
    assert [line["loss"] is None for line in lines] == [
        step in (3, 4, 7, 8) for step in range(1, 9)
    ]
    skipped = lines_of(tmp_path / "skipped_steps.jsonl")
    assert [line["step"] for line in skipped] == [3, 4, 7, 8]
    for line in skipped:
        (image,) = line["images"]
        assert f"image {image['image_id']} ({image['file_name']})" in line["summary"]
        assert f"so far): {line['summary']}" in printed
    assert sorted(path.name for path in (tmp_path / "replay").glob("*.npz")) == [
        "step_3.npz",
        "step_7.npz",
    ]
    # The state of the last step is that of step 6, and is confirmed by a finite batch.
    before, after = (checkpoint.load(tmp_path / f"checkpoints/{step}") for step in (7, 8))
    assert (before.step, after.step) == (7, 8)
    jax.tree.map(np.testing.assert_array_equal, before.variables, after.variables)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("disk_is_full", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_run_stops_at_the_first_poisoned_step_though_it_logs_later(
    run_config, tmp_path, monkeypatch, capsys, disk_is_full
):
    run_config.update(nonfinite="stop", log_every=8, checkpoint_every=8)
    poison(monkeypatch, {3, 4})
    if disk_is_full:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(replay, "write_step", full)
    with pytest.raises(
        FloatingPointError, match=r"^step 3 is not finite .*pixels of image "
    ) as error:
        loop.train(run_config, tmp_path, evaluates=False)
    assert not list((tmp_path / "checkpoints").glob("*"))
    file = tmp_path / "replay/step_3.npz"
    if disk_is_full:
        assert f"{file} could not be written (No space left on device)" in str(error.value)
        return
    assert str(error.value).endswith(f"python -m retinanet_jax.main --replay={file}")
    diagnosis = json.loads(file.with_suffix(".json").read_text())
    assert diagnosis["summary"] in str(error.value)
    assert set(diagnosis["arrays"]) >= {"batch", "outputs", "losses", "gradients"}

    # Without the dataset, in a process of its own, as the message proposes.
    capsys.readouterr()
    with pytest.raises(FloatingPointError) as again:
        replay.replay(file, {})
    assert str(again.value) == diagnosis["summary"]
    assert "not finite in losses:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("one_device")
def test_a_lower_learning_rate_gets_a_run_out_of_a_divergence(run_config, tmp_path):
    run_config.update(total_steps=4, nonfinite="stop")
    loop.train(run_config, tmp_path, evaluates=False)
    run_config.total_steps = 60
    run_config.optimizer.update(learning_rate=1e6, clip_norm=0.0, warmup_steps=0)
    message = "the training diverges: try a lower --config.*clip_norm=10;"
    with pytest.raises(FloatingPointError, match=message):
        loop.train(run_config, tmp_path, evaluates=False)
    newest = checkpoint.newest_step(tmp_path)
    run_config.total_steps = newest + 4
    run_config.optimizer.update(learning_rate=1e-4, clip_norm=10.0)
    loop.train(run_config, tmp_path, evaluates=False)
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(1, newest + 5)]
    assert all(0 < line["loss"] < 10 for line in lines)
