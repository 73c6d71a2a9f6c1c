"""Checkpoints are complete or absent and restored bit for bit, also those of older versions."""

import functools
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import retinanet_jax
from retinanet_jax import checkpoint, sharding, stored_config
from retinanet_jax.checkpoint import CheckpointManager
from retinanet_jax.checkpoint.failures import silence_orbax
from retinanet_jax.checkpoint.manager import steps_to_preserve
from retinanet_jax.data.sources import synthetic
from retinanet_jax.data.sources.base import Category
from retinanet_jax.detector import Detector

GOLDEN = pathlib.Path(__file__).parent / "golden"

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
            checkpoints.save(step, variables(step), training(step), awaits_ap=ap is not None)
            checkpoints.confirm(step)
            if ap is not None:
                checkpoints.record_ap(step, ap)


def steps(workdir):
    return sorted(int(folder.name) for folder in checkpoint.step_folders(workdir / "checkpoints"))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), a, b)


def test_restoring_inverts_saving(tmp_path, config):
    save(tmp_path, config, {5: None})
    mesh = sharding.make_mesh(2)
    target = sharding.put_replicated((variables(0), training(0)), mesh)
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        assert checkpoints.latest_step() == 5
        restored = checkpoints.restore(5, *target)
    assert_same(restored, (variables(5), training(5)))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == sharding.replicated(mesh)


def test_a_checkpoint_has_all_that_prediction_needs(tmp_path, config):
    save(tmp_path, config, {5: None})
    loaded = checkpoint.load(tmp_path)
    assert_same(jax.tree.map(jnp.asarray, loaded.variables), variables(5))
    assert loaded.categories == CATEGORIES
    assert (loaded.step, loaded.folder) == (5, tmp_path / "checkpoints" / "5")
    assert loaded.config.to_json() == config.to_json()
    checkpoint.check_model(loaded.folder, loaded.config, config)


@pytest.mark.slow
def test_a_checkpoint_of_8_devices_loads_on_1(tmp_path, config):
    saved = sharding.put_replicated((variables(5), training(5)), sharding.make_mesh(1))
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        checkpoints.save(5, *saved)
        checkpoints.confirm(5)
    load = (
        "import sys, jax\n"
        "from retinanet_jax import checkpoint\n"
        "loaded = checkpoint.load(sys.argv[1])\n"
        "kernel = loaded.variables['params']['backbone']['kernel']\n"
        "print(jax.device_count(), loaded.step, type(kernel).__name__, kernel.sum())"
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
    loaded = checkpoint.load(copy)
    assert (loaded.step, loaded.folder) == (5, copy)
    assert_same(jax.tree.map(jnp.asarray, loaded.variables), variables(5))


def test_the_newest_and_the_best_checkpoints_remain(tmp_path, config):
    config.keep_checkpoints = 2
    save(tmp_path, config, {1: 0.1, 2: 0.5, 3: None, 4: 0.2})
    assert steps(tmp_path) == [2, 3, 4]
    # A restarted run knows the best of before.
    save(tmp_path, config, {5: 0.3, 6: None, 7: 0.4})
    assert steps(tmp_path) == [2, 6, 7]
    save(tmp_path, config, {8: 0.6, 9: None, 10: None})
    assert steps(tmp_path) == [8, 9, 10]


@pytest.mark.parametrize(
    ("aps", "preserved"),
    [
        ({1: 0.5, 2: 0.4, 3: 0.3}, {1, 3}),
        ({1: 0.5, 2: 0.5, 3: 0.3}, {2, 3}),  # of equal ones the newer
        ({1: None, 2: 0.4, 3: 0.3}, {1, 2, 3}),  # 1 may be the best
        ({1: None, 2: None, 3: None}, {1, 2, 3}),
        ({1: -1.0, 2: -1.0, 3: -1.0}, {3}),
        ({1: 0.0, 2: -1.0}, {1, 2}),
        ({}, set()),
    ],
)
def test_which_checkpoints_are_preserved(aps, preserved):
    assert steps_to_preserve(aps, num_newest=1) == preserved


def test_an_ap_that_is_known_late_still_decides(tmp_path, config):
    config.keep_checkpoints = 1
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        for step, awaits_ap in ((1, True), (2, False), (3, True), (4, False)):
            checkpoints.save(step, variables(step), training(step), awaits_ap=awaits_ap)
        checkpoints.save(5, variables(5), training(5))
        checkpoints.record_ap(1, 0.5)
        assert steps(tmp_path) == [1, 3, 4]
        assert checkpoint.load(tmp_path).step == 1
        checkpoints.record_ap(3, 0.6)
        assert steps(tmp_path) == [3, 4]
        checkpoints.confirm(5)
    assert steps(tmp_path) == [3, 5]
    assert checkpoint.load(tmp_path).step == 3
    assert checkpoint.newest_step(tmp_path) == 5


def test_the_best_is_loaded_or_else_the_newest(tmp_path, config):
    config.keep_checkpoints = 5
    save(tmp_path, config, {1: None, 2: None})
    assert checkpoint.load(tmp_path).step == 2
    save(tmp_path, config, {3: 0.4, 4: 0.5, 5: 0.5, 6: -1.0, 7: None})
    assert checkpoint.load(tmp_path).step == 5
    assert checkpoint.saved_ap(tmp_path / "checkpoints" / "4") == 0.5
    assert checkpoint.saved_ap(tmp_path / "checkpoints" / "7") == checkpoint.NOT_MEASURED
    for folder in ("checkpoints", "checkpoints/5"):
        assert checkpoint.load(tmp_path / folder).step == 5
    np.testing.assert_array_equal(
        checkpoint.load(tmp_path / "checkpoints/3").variables["params"]["backbone"]["kernel"], 3
    )
    # Training resumes from the newest, whatever its AP.
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        assert checkpoints.latest_step() == 7


def test_a_partial_checkpoint_does_not_count_and_is_removed(tmp_path, config):
    save(tmp_path, config, {1: None})
    partial = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (partial / "variables").mkdir(parents=True)
    assert checkpoint.load(tmp_path).step == 1
    checkpoint.recover(tmp_path)
    assert not partial.exists()
    assert steps(tmp_path) == [1]
    save(tmp_path, config, {2: None})
    assert checkpoint.load(tmp_path).step == 2


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_checkpoint_is_an_error(tmp_path, make):
    folder = tmp_path / "run"
    if make:
        (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run: no checkpoint here; give the work") as e:
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
            r"5: weights of another network; 2 arrays differ: batch_stats/backbone/mean \(3,\) "
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
        (CATEGORIES[:1], r"trained on 2 categories, the dataset has 1; .*first in .*cat"),
        ((*CATEGORIES, Category(9, "cow")), r"trained on 2 categories, the dataset has 3; .*cow"),
        ((CATEGORIES[0], Category(7, "cow")), "they differ first in .*cat"),
        (CATEGORIES[::-1], "they differ first in their order"),
    ],
)
def test_other_categories_are_refused(tmp_path, config, categories, message):
    save(tmp_path, config, {5: None})
    with CheckpointManager(tmp_path, config, categories) as checkpoints:
        refused(checkpoints, (variables(0), training(0)), message)


def test_categories_of_the_same_names_are_the_same_with_other_ids(tmp_path):
    """The ids are those of a dataset's files, or the numbers of an imported detector's outputs."""
    other_ids = [Category(100 + id_, name) for id_, name in CATEGORIES]
    checkpoint.check_categories(tmp_path, CATEGORIES, other_ids)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "stride_in_1x1", False),
        ("anchors", "ratios", (1.0, 0.5, 2.0)),
        ("input", "mean", (0.0, 0.0, 0.0)),
    ],
)
def test_another_meaning_of_the_same_weights_is_refused(tmp_path, config, section, field, value):
    """None of these changes the shape of an array. Evaluation and resuming both refuse."""
    save(tmp_path, config, {5: None})
    loaded = checkpoint.load(tmp_path)
    config[section][field] = value
    message = f"5: trained with config.{section}.{field}=.*, this run has .*use the config it"
    with pytest.raises(ValueError, match=message):
        checkpoint.check_model(loaded.folder, loaded.config, config)
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        refused(checkpoints, (variables(0), training(0)), message)


def test_other_changes_of_the_config_are_printed_in_one_line(tmp_path, config, capsys):
    save(tmp_path, config, {5: None})
    restored = []

    def resume():
        with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
            restored.append(checkpoints.restore(5, variables(0), training(0)))

    resume()
    assert capsys.readouterr().out == ""
    config.seed = 3
    config.data.update(batch_size=8, short_sides=(640, 800))
    config.model.remat = ("c3",)  # a device with less memory
    resume()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "5: resuming with config.data.batch_size=8 (was 16), "
        "config.data.short_sides=[640, 800] (was [800]), config.model.remat=['c3'] (was []), "
        "config.seed=3 (was 0)"
    )
    assert_same(*restored)


def test_a_checkpoint_of_a_newer_version_names_it_and_the_field(tmp_path, config, monkeypatch):
    config = config.unlock()
    config.loss.novel = 1.0
    with monkeypatch.context() as newer:
        newer.setattr(retinanet_jax, "__version__", "9.1.0")
        newer.setattr(stored_config, "CONFIG_VERSION", 99)
        save(tmp_path, config, {5: None})
    message = (
        r"checkpoints/5: written by retinanet_jax 9\.1\.0, read by .*: config\.loss\.novel is not "
        r"a config field.* Install retinanet_jax 9\.1\.0 to read it"
    )
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        refused(checkpoints, (variables(0), training(0)), message)


class Released(NamedTuple):
    """A checkpoint that a released version wrote, and that version's results with it."""

    folder: pathlib.Path  # of the step
    golden: dict[str, Any]
    version: str


MIDDLE_VERSIONS = [
    pytest.param(version, marks=pytest.mark.exhaustive)
    for version in [f"0.{minor}.0" for minor in range(2, 13)]
]


@pytest.fixture(params=["0.1.0", *MIDDLE_VERSIONS, "0.13.0"])
def released(request, tmp_path) -> Released:
    golden = json.loads((GOLDEN / f"checkpoint_{request.param}.json").read_text())
    with tarfile.open(GOLDEN / f"checkpoint_{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    return Released(folder, golden, request.param)


@pytest.mark.slow
def test_a_checkpoint_of_each_released_version_has_its_detections(released, tmp_path):
    """Up to float32's rounding in 23 convolutions, possibly on another processor."""
    dataset = synthetic.write_shapes(tmp_path / "shapes", seed=1, num_images=16, image_size=96)
    detector = Detector.load(released.folder)
    results = []
    paths = sorted((dataset / "images").iterdir())
    for image_id, detections in enumerate(detector.batch(paths), 1):
        results += detections.to_coco(image_id)
    unmatched = list(results)
    for expected in released.golden["detections"]:
        same = [
            result
            for result in unmatched
            if result["image_id"] == expected["image_id"]
            and result["category_id"] == expected["category_id"]
            and abs(result["score"] - expected["score"]) < 1e-4
            and np.abs(np.subtract(result["bbox"], expected["bbox"])).max() < 0.01
        ]
        assert same, expected
        unmatched.remove(same[0])
    lowest = min(result["score"] for result in released.golden["detections"])
    assert all(result["score"] < lowest + 1e-4 for result in unmatched)


@pytest.mark.slow
def test_a_checkpoint_of_each_released_version_resumes_as_it_did(released, program):
    workdir = released.folder.parent.parent
    program.use_shared_cache(workdir)
    renamed = {"quarter_turns": "rot90"}
    arguments = [
        functools.reduce(lambda text, old: text.replace(old, renamed[old]), renamed, argument)
        for argument in released.golden["run"]
    ]
    if released.version in ("0.1.0", "0.2.0"):
        status, _, stderr = program.run("main", *arguments, f"--workdir={workdir}")
        assert status == 1  # the default has changed since, and would give other detections
        assert "use the config it was trained with (--config.model.padding=plain)" in stderr
        # Then the config is the same, under whatever names, except for how AP is computed.
        arguments += ["--config.model.padding=plain", "--config.evaluator=pycocotools"]
    if released.version in ("0.1.0", "0.2.0", "0.3.0"):
        arguments += ["--config.data.exif=applied", "--config.data.split_groups=none"]
    status, stdout, stderr = program.run("main", *arguments, f"--workdir={workdir}")
    assert status == 0, stderr
    assert "resuming with" not in stdout
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == [197, 198, 199, 200]
    for line, expected in zip(metrics, released.golden["metrics"], strict=True):
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=1e-4), (name, line["step"])


def test_imported_weights_load_and_never_resume(tmp_path, config):
    checkpoint.write_imported(tmp_path / "run", variables(2), config, CATEGORIES)
    loaded = checkpoint.load(tmp_path / "run")
    assert_same(jax.tree.map(jnp.asarray, loaded.variables), variables(2))
    assert (loaded.step, loaded.categories) == (0, CATEGORIES)
    config.model.fpn_channels = 7  # this error comes before that of another network
    with CheckpointManager(tmp_path / "run", config, CATEGORIES[:1]) as checkpoints:
        assert checkpoints.latest_step() == 0
        refused(
            checkpoints,
            (variables(0), training(0)),
            "run/checkpoints/0: imported weights, which training cannot resume from; .* give "
            rf"--config\.init\.source=checkpoint --config\.init\.path={tmp_path}/run and another",
        )


def test_a_run_keeps_its_validation_images(config, tmp_path):
    config.data.eval.update(annotations="", images="")
    config.data.validation_fraction = 0.2
    saved = config.copy_and_resolve_references()
    checkpoint.check_split(tmp_path, saved, config)
    saved.data.split_groups = "none"  # as in versions before 0.4.0
    with pytest.raises(ValueError, match=r"add --config.data.split_groups=none, or give another"):
        checkpoint.check_split(tmp_path, saved, config)
    config.data.validation_fraction = 0.0  # the run has evaluation data of its own
    checkpoint.check_split(tmp_path, saved, config)


@pytest.mark.parametrize(
    ("file", "is_logged"), [("orbax/checkpoint/path.py", False), ("a.py", True)]
)
def test_errors_of_orbaxs_tasks_are_not_logged_and_those_of_others_are(caplog, file, is_logged):
    silence_orbax()
    try:
        exec(compile("raise OSError(28, 'No space left on device')", file, "exec"))
    except OSError as error:
        future = f"Future exception was never retrieved: {error!r}"
        logging.getLogger("asyncio").error(future, exc_info=error)
    assert bool(caplog.records) == is_logged
