"""Nothing is read from bits that were not written, and a failed save costs nothing."""

import contextlib
import json
import pathlib
import resource
import shutil
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import checkpoint, sharding
from retinanet_jax.checkpoint import CheckpointManager, DamagedError
from retinanet_jax.data.sources.base import Category

CATEGORIES = (Category(3, "dog"), Category(7, "cat"))
NOISE = np.random.default_rng(0).normal(size=4000).astype(np.float32)  # can hardly be compressed


def state(step: int):
    params = {"kernel": jnp.asarray(NOISE + step), "bias": jnp.zeros(3)}
    variables = {"params": params, "batch_stats": {"mean": jnp.ones(2)}}
    training = {
        "step": jnp.int32(step),
        "opt_state": ({"trace": jnp.ones(3)},),
        "normalizer": jnp.float32(7),
    }
    return variables, training


@pytest.fixture
def workdir(tmp_path, config) -> pathlib.Path:
    """Return the folder of a run that has saved after 1, 2 and 3 steps; 2 has the best AP."""
    config.keep_checkpoints = 3
    with CheckpointManager(tmp_path, config, CATEGORIES) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, *state(step))
        checkpoints.confirm(3)
        checkpoints.record_ap(1, 0.1)
        checkpoints.record_ap(2, 0.2)
    return tmp_path


def folder_of(workdir, step):
    return workdir / "checkpoints" / str(step)


def steps(workdir):
    return sorted(int(folder.name) for folder in checkpoint.step_folders(workdir / "checkpoints"))


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_a_bit(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = {"flip": flip_a_bit, "truncate": truncate, "remove": pathlib.Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_detected(workdir, damage, capsys):
    """Then the next best checkpoint is loaded, and the damaged one only if nothing else is."""
    folder = folder_of(workdir, 2)
    names = [file.relative_to(folder) for file in files(folder)]
    assert {"digests.json", "metrics/metrics", "config/metadata"} <= set(map(str, names))
    for name in names:
        content = (folder / name).read_bytes()
        if not content or (damage, name.name) == ("remove", "digests.json"):
            continue
        DAMAGES[damage](folder / name)
        assert checkpoint.load(workdir).step == 1
        (line,) = capsys.readouterr().out.splitlines()
        with pytest.raises(DamagedError) as error:
            checkpoint.load(folder)
        assert "\n" not in str(error.value)
        if name.name != "digests.json":  # its damage may look like that of another file
            assert line.startswith(f"{folder / name} is ")
            assert str(error.value).startswith(f"{folder / name} is ")
        assert line.endswith(f"skipped, {folder_of(workdir, 1)} is used")
        (folder / name).write_bytes(content)
    assert checkpoint.load(workdir).step == 2
    assert capsys.readouterr().out == ""


def test_a_run_resumes_from_the_one_before_and_renames_the_damaged_one(workdir, config, capsys):
    damaged = files(folder_of(workdir, 3) / "training")[0]
    flip_a_bit(damaged)
    checkpoint.recover(workdir)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{damaged} is damaged: its SHA-256 is not the one in digests.json; renamed to 3.damaged, "
        f"resuming from {folder_of(workdir, 2)}"
    )
    with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(3, *state(3))  # the damaged one is not in the way
        checkpoints.confirm(3)
    assert steps(workdir) == [1, 2, 3]
    flip_a_bit(files(folder_of(workdir, 3) / "training")[0])
    checkpoint.recover(workdir)
    assert {"3.damaged", "3.damaged-2"} <= {p.name for p in (workdir / "checkpoints").iterdir()}


def test_an_earlier_checkpoint_with_another_ap_is_renamed_too(workdir, capsys):
    file = folder_of(workdir, 2) / "metrics" / "metrics"
    file.write_text('{"AP": 0.9}')
    checkpoint.recover(workdir)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{file} is damaged: 11 bytes") or line.startswith(
        f"{file} is damaged: its SHA-256"
    )
    assert steps(workdir) == [1, 3]


def test_if_all_are_damaged_no_run_starts_from_the_beginning(workdir, capsys):
    for step in (1, 2, 3):
        truncate(folder_of(workdir, step) / "config" / "metadata")
    message = "3/config/metadata is damaged: .* bytes, and .* were written, and .* no other"
    with pytest.raises(DamagedError, match=message):
        checkpoint.recover(workdir)
    assert steps(workdir) == [1, 2, 3]  # nothing is renamed
    with pytest.raises(DamagedError, match="; 2 other checkpoints here are damaged, too; give"):
        checkpoint.load(workdir)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_without_digests_is_incomplete(workdir, capsys):
    (folder_of(workdir, 3) / "digests.json").unlink()
    assert steps(workdir) == [1, 2]
    with pytest.raises(FileNotFoundError, match="3: an incomplete checkpoint, which a run"):
        checkpoint.load(folder_of(workdir, 3))
    checkpoint.recover(workdir)
    assert not folder_of(workdir, 3).exists()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{folder_of(workdir, 3)}: removed, an earlier run ended before it was complete"


def make_old(folder: pathlib.Path) -> None:
    """Let a checkpoint be one that version 0.4.0 wrote."""
    (folder / "digests.json").unlink()
    file = folder / "config" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "config_version": 4}))


def test_checkpoints_of_earlier_versions_need_no_digests(workdir, config, capsys):
    for step in (1, 2, 3):
        make_old(folder_of(workdir, step))
    checkpoint.recover(workdir)
    assert checkpoint.load(workdir).step == 2
    assert capsys.readouterr().out == ""
    with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
        checkpoints.record_ap(3, 0.3)
        assert checkpoint.load(workdir).step == 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_an_earlier_versions_checkpoint_ends_in_one_line(workdir, damage, capsys):
    make_old(folder := folder_of(workdir, 3))
    (file,) = (folder / "variables" / "d").iterdir()
    assert file.stat().st_size > 100
    DAMAGES[damage](file)
    checkpoint.recover(workdir)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder} is damaged: it cannot be read (")
    assert "renamed to 3.damaged" in line


def test_a_diverged_checkpoint_of_an_earlier_version_is_not_resumed(workdir, monkeypatch, capsys):
    (folder_of(workdir, 3) / "digests.json").unlink()
    with monkeypatch.context() as earlier:
        earlier.setattr("retinanet_jax.checkpoint.manager.not_finite", lambda _: [])
        variables, training = state(4)
        variables["batch_stats"]["mean"] = jnp.array([1.0, jnp.nan])
        config = checkpoint.read_config(folder_of(workdir, 2))
        with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
            checkpoints.save(4, variables, training)
            checkpoints.confirm(4)
    make_old(folder_of(workdir, 4))
    checkpoint.recover(workdir)
    assert "4 has arrays that are not finite: batch_stats/mean; ren" in capsys.readouterr().out


def test_a_state_that_is_not_finite_is_not_saved(workdir, config):
    variables, training = sharding.put_replicated(state(4), sharding.make_mesh(2))
    training["opt_state"][0]["trace"] = training["opt_state"][0]["trace"].at[1].set(jnp.inf)
    variables["params"]["kernel"] = variables["params"]["kernel"].at[5].set(jnp.nan)
    message = (
        "^the checkpoint of step 4 is not saved, because these arrays are not finite: "
        r"opt_state/0/trace, params/kernel\.$"
    )
    with (
        pytest.raises(FloatingPointError, match=message),
        CheckpointManager(workdir, config, CATEGORIES) as checkpoints,
    ):
        checkpoints.save(4, variables, training)
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.startswith("4")] == []
    with pytest.raises(FloatingPointError):
        checkpoint.write_imported(workdir / "imported", variables, config, CATEGORIES)


def test_a_checkpoint_counts_when_the_next_step_is_finite(workdir, config, capsys):
    """Until then it supersedes no other one, and if the run ends it is removed."""
    config.keep_checkpoints = 1

    def diverge():
        with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
            checkpoints.save(4, *state(4))
            raise FloatingPointError("step 5 is not finite")

    with pytest.raises(FloatingPointError, match="step 5"):
        diverge()
    assert steps(workdir) == [1, 2, 3]
    assert not folder_of(workdir, 4).exists()
    out = capsys.readouterr().out
    assert out == f"{folder_of(workdir, 4)}: removed, no finite step has followed\n"
    with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
        checkpoints.save(4, *state(4))
        checkpoints.confirm(3)
        assert 4 not in steps(workdir)
        with pytest.raises(FloatingPointError, match="followed the evaluation of step 4"):
            checkpoints.record_ap(4, 0.5)
        checkpoints.confirm(4)
    assert steps(workdir) == [2, 4]  # the best and the newest


@pytest.fixture
def small_files():
    """Let no file be larger than 1,000 bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_is_one_line_at_the_next_logged_step(workdir, config, small_files, capfd):
    message = (
        rf"^{folder_of(workdir, 4)}: the checkpoint cannot be saved: File too large\. It needs "
        r"0 MB, \d+ MB are free in .*\. After that is mended, the same command resumes from step "
        r"3, the newest good checkpoint\.$"
    )
    with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
        checkpoints.save(4, *state(4))
        checkpoints._saving.outcome.exception()
        for _ in range(2):  # not only once
            with pytest.raises(OSError, match=message):
                checkpoints.check_for_errors()
        checkpoints._saving = None
    assert capfd.readouterr() == ("", "")
    checkpoint.recover(workdir)  # if a thread still wrote when the partial checkpoint was removed
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_an_incomplete_checkpoint_is_removed_while_a_thread_still_writes_to_it(workdir):
    """The threads of tensorstore do so for a moment after a save has failed."""
    item = workdir / "checkpoints/4.orbax-checkpoint-tmp/training.orbax-checkpoint-tmp"
    item.mkdir(parents=True)
    end = time.monotonic() + 0.3

    def write():
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                (item / str(time.monotonic_ns())).write_bytes(b"")

    with futures.ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(write) for _ in range(4)]
        checkpoint.recover(workdir)
        for thread in writing:
            thread.result()
    assert steps(workdir) == [1, 2, 3]
    assert not item.parent.exists()


def test_a_removed_folder_is_not_created_again(workdir, config):
    with CheckpointManager(workdir, config, CATEGORIES) as checkpoints:
        shutil.rmtree(workdir)
        message = r"4: .* cannot be saved: the working directory was rem.* no good checkpoint"
        with pytest.raises(OSError, match=message):
            checkpoints.save(4, *state(4))
    assert not workdir.exists()


def test_what_a_run_deletes_while_it_is_read_is_passed_over(workdir, monkeypatch):
    """The run has found a better checkpoint meanwhile."""
    check, deleted = checkpoint.reading.check, []

    def check_and_delete(folder):
        check(folder)
        if not deleted:
            deleted.append(folder)
            shutil.rmtree(folder)

    monkeypatch.setattr(checkpoint.reading, "check", check_and_delete)
    assert checkpoint.load(workdir).step == 1
    assert deleted == [folder_of(workdir, 2)]
    np.testing.assert_array_equal(
        jax.tree.leaves(checkpoint.load(workdir).variables["params"]["kernel"])[0], NOISE + 1
    )
