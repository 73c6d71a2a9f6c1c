"""Score thresholds in a checkpoint: they are stored completely or not, and prediction uses them."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import checkpoint, modeling
from retinanet_jax.checkpoint import CheckpointManager, DamagedError, Thresholds, store_thresholds
from retinanet_jax.checkpoint import thresholds as thresholds_module
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Category

CATEGORIES = (Category(3, "dog"), Category(7, "cat"), Category(9, "overall"))
THRESHOLDS = Thresholds(0.25, {"cat": 0.5})


@pytest.fixture
def folder(tmp_path, config) -> pathlib.Path:
    """Return the folder of a checkpoint with an AP."""
    variables = {"params": {"kernel": jnp.ones(3)}, "batch_stats": {}}
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        checkpoints.save(4, variables, {"step": jnp.int32(4)}, awaits_ap=True)
        checkpoints.confirm(4)
        checkpoints.record_ap(4, 0.5)
    return tmp_path / "checkpoints" / "4"


def test_thresholds_are_read_as_they_were_stored(folder):
    assert checkpoint.load(folder).thresholds is None
    assert checkpoint.load(folder).score_thresholds is None
    for thresholds in (THRESHOLDS, Thresholds(0.125, {}), Thresholds(0, {"overall": 0.75})):
        store_thresholds(folder, thresholds)
        assert checkpoint.load(folder).thresholds == thresholds
    assert checkpoint.load(folder).score_thresholds == (0, 0, 0.75)
    assert checkpoint.saved_ap(folder) == 0.5
    stored = json.loads((folder / "thresholds.json").read_text())
    assert stored == {"overall": 0, "categories": {"overall": 0.75}}


def test_a_category_without_a_threshold_has_the_overall_one():
    assert THRESHOLDS.by_class(CATEGORIES) == (0.25, 0.5, 0.25)


def test_altered_thresholds_are_damage(folder):
    store_thresholds(folder, THRESHOLDS)
    file = folder / "thresholds.json"
    content = file.read_text()
    for damage in (content.replace("0.5", "0.6"), ""):
        file.write_text(damage)
        with pytest.raises(DamagedError, match=r"thresholds\.json is damaged"):
            checkpoint.load(folder)
    file.unlink()
    with pytest.raises(DamagedError, match=r"thresholds\.json is missing"):
        checkpoint.load(folder)


@pytest.mark.parametrize("earlier", [None, Thresholds(0.75, {"dog": 0.875})])
@pytest.mark.parametrize("survived", range(4))
def test_a_crash_at_any_write_leaves_a_valid_checkpoint(folder, monkeypatch, earlier, survived):
    """It has the earlier thresholds, none, or the new ones."""
    if earlier:
        store_thresholds(folder, earlier)
    num_writes = 0

    def dies(write):
        def write_or_die(*arguments):
            nonlocal num_writes
            num_writes += 1
            if num_writes > survived:
                raise KeyboardInterrupt
            write(*arguments)

        return write_or_die

    integrity = thresholds_module.integrity
    monkeypatch.setattr(integrity, "write_digests", dies(integrity.write_digests))
    monkeypatch.setattr(thresholds_module, "write_json", dies(thresholds_module.write_json))
    needed = 3 if earlier else 2
    if survived < needed:
        with pytest.raises(KeyboardInterrupt):
            store_thresholds(folder, THRESHOLDS)
    else:
        store_thresholds(folder, THRESHOLDS)
    expected = earlier if survived == 0 else None if survived < needed else THRESHOLDS
    assert checkpoint.load(folder.parent.parent).thresholds == expected
    monkeypatch.undo()
    store_thresholds(folder, THRESHOLDS)
    assert checkpoint.load(folder).thresholds == THRESHOLDS


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0.5", None])
@pytest.mark.parametrize("name", ["all", "dog\n"])
def test_a_threshold_out_of_range_is_refused_and_named(folder, value, name):
    thresholds = Thresholds(0.5, {name: value}) if name != "all" else Thresholds(value, {})
    with pytest.raises(ValueError, match=f"threshold of '{name.strip()}.*at least 0 and") as error:
        store_thresholds(folder, thresholds)
    assert "\n" not in str(error.value)
    assert checkpoint.load(folder).thresholds is None


@pytest.mark.parametrize("content", ["[]", '{"overall": 2, "categories": {}}', '{"overall": 0.5}'])
def test_other_content_is_damage_also_in_a_checkpoint_without_digests(folder, config, content):
    (folder / "digests.json").unlink()
    stored = json.loads((folder / "config" / "metadata").read_text())
    (folder / "config" / "metadata").write_text(json.dumps({**stored, "config_version": 4}))
    assert thresholds_module.read_thresholds(folder) is None
    store_thresholds(folder, THRESHOLDS)
    assert thresholds_module.read_thresholds(folder) == THRESHOLDS
    assert not (folder / "digests.json").exists()  # which would have too few files
    (folder / "thresholds.json").write_text(content)
    with pytest.raises(DamagedError, match="it has no thresholds"):
        thresholds_module.read_thresholds(folder)


def test_a_copy_has_the_thresholds_and_the_next_ap_leaves_them(folder, tmp_path, config):
    store_thresholds(folder, THRESHOLDS)
    assert checkpoint.load(shutil.copytree(folder, tmp_path / "copy")).thresholds == THRESHOLDS
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        checkpoints.record_ap(4, 0.75)
    assert checkpoint.load(folder).thresholds == THRESHOLDS


def test_without_stored_thresholds_the_program_is_the_same(toy_config):
    model = modeling.build_model(toy_config, 2)
    variables = jax.eval_shape(lambda: modeling.initialize(toy_config, 2, seed=0))
    images, sizes = np.zeros((2, 64, 64, 3), np.uint8), np.full((2, 2), 64, np.float32)
    batch = Batch.of_images(images, sizes, np.ones_like(sizes))

    def program(**options) -> str:
        def detect(variables, batch):
            return modeling.detect(variables, batch, model, toy_config, **options)

        return jax.jit(detect).lower(variables, batch).as_text()

    assert program(score_thresholds=None) == program()
    assert program(score_thresholds=(0.25, 0.5)) != program()
