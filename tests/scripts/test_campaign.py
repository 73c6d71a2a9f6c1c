"""The campaign: what it plans, what it counts as a problem, and a small one of each part."""

import collections
import os
import pathlib

import numpy as np
import pytest

from retinanet_jax import checkpoint
from scripts.campaign import alterations, disks, hosts, kills, runs
from scripts.campaign.runs import Ended, Reference


def test_kills_have_every_signal_at_every_moment_and_repeat():
    plans = [kills.plan_kills(0, number) for number in range(200)]
    assert plans == [kills.plan_kills(0, number) for number in range(200)]
    assert plans != [kills.plan_kills(1, number) for number in range(200)]
    counts = collections.Counter((k.signal, k.moment) for plan in plans for k in plan)
    assert len(counts) == len(runs.SIGNALS) * len(kills.MOMENTS)
    assert min(counts.values()) >= 10
    assert all(0 <= k.delay <= kills.MOMENTS[k.moment][1] for plan in plans for k in plan)
    assert sum(kills.num_processes(number) == 2 for number in range(200)) == 40


def test_steps_of_a_start_are_read_from_its_output():
    stdout = "training from step 3 to 12, starting from checkpoint 3\nstep 4/12 (33%)\n"
    assert Ended(143, stdout, "", 1.0).first_step == 3
    assert Ended(143, stdout, "", 1.0).last_step == 4
    assert Ended(143, stdout, "stopping after step 5\n", 1.0).last_step == 5
    assert Ended(-15, "", "", 1.0).first_step is None


@pytest.mark.parametrize(
    ("signal", "status", "stderr", "problems"),
    [
        ("SIGTERM", 143, "stopped; the same command resumes\n", []),
        ("SIGKILL", -9, "", []),
        ("SIGTERM", 1, "", ["status 1 after SIGTERM"]),
        ("SIGTERM", -6, "", ["status -6 after SIGTERM", "ended by signal 6"]),
        ("SIGINT", 130, "Traceback (most recent call last):\n", ["a traceback or a hang"]),
        ("SIGINT", 130, "a\nb\nc\nd\n", ["4 lines on stderr"]),
        ("SIGTERM", 143, "[Gloo] Rank 0\nstopped\n", []),  # a line of the collectives' library
    ],
)
def test_problems_of_a_kill(signal, status, stderr, problems):
    kill = kills.Kill(signal, "step", occurrence=1, delay=0.0, process=0)
    assert kills.problems_of_kill(kill, [Ended(status, "", stderr, 1.0)]) == problems


@pytest.mark.parametrize(("step", "problems"), [(11, ["status 0 after SIGINT"]), (12, [])])
def test_only_a_signal_after_the_last_step_may_be_without_effect(step, problems):
    kill = kills.Kill("SIGINT", "step", occurrence=1, delay=0.0, process=0)
    ended = Ended(0, "", "", 1.0, stdout_at_signal=f"step {step}/12 (99%)\n")
    assert kills.problems_of_kill(kill, [ended]) == problems


def test_arrays_are_equal_only_bit_for_bit():
    zero = {"a": np.zeros(2, np.float32), "b": np.full(1, np.nan)}
    assert runs.same_arrays(zero, {name: array.copy() for name, array in zero.items()})
    assert not runs.same_arrays(zero, {**zero, "a": -zero["a"]})
    assert not runs.same_arrays(zero, {**zero, "a": zero["a"].astype(np.float64)})
    assert not runs.same_arrays(zero, {"a": zero["a"]})


def test_an_alteration_flips_one_bit_or_truncates(tmp_path):
    file, content = tmp_path / "file", bytes(range(200))
    random, methods = np.random.default_rng(0), collections.Counter()
    for _ in range(100):
        file.write_bytes(content)
        method = alterations.alter(file, random)
        methods[method] += 1
        altered = file.read_bytes()
        if method == "truncated":
            assert altered == content[: len(altered)]
            assert len(altered) < len(content)
        else:
            flipped = [a ^ b for a, b in zip(altered, content, strict=True)]
            assert sum(x.bit_count() for x in flipped) == 1
    assert min(methods.values()) >= 10


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one line"), "detected"),
        (ValueError("two\nlines"), "traceback"),
        (KeyError("a"), "traceback"),
    ],
)
def test_only_errors_of_one_line_count_as_detected(monkeypatch, error, expected):
    def load(_):
        raise error

    monkeypatch.setattr(checkpoint, "load", load)
    assert alterations.outcome(pathlib.Path(), None, {})[0] == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="module")
def reference(folder):
    cache = pathlib.Path(__file__).parents[2] / ".cache" / "campaign"
    cache.mkdir(parents=True, exist_ok=True)
    (folder / "cache").symlink_to(cache)
    return Reference(folder / "reference-1", folder / "cache")


def problems(records):
    """Return the problems by the name of the record, for those that have any."""
    return {record["name"]: record["problems"] for record in records if record["problems"]}


@pytest.mark.slow
def test_killed_runs_end_like_runs_without_kills(folder, reference):
    records = list(kills.run(folder, {1: reference}, count=2, seed=0, jobs=1))
    assert sum(len(record["kills"]) for record in records) >= 3
    assert not problems(records)
    assert "2 runs ended bit-equal" in kills.table(records)


@pytest.mark.slow
def test_altered_checkpoints_are_detected(folder, reference):
    records = list(alterations.run(folder, reference, count=60, seed=0))
    assert not problems(records)
    assert sum(record["outcome"] == "detected" for record in records) > 50


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the disks")
@pytest.mark.parametrize(
    "name",
    [
        "disk full: step 1",
        pytest.param("read-only: step 2", marks=pytest.mark.exhaustive),
        pytest.param("workdir removed: step 5", marks=pytest.mark.exhaustive),
        # tests/test_damaged_checkpoints.py has it with the checkpoints of no run.
        pytest.param("checkpoint: a bit of the parameters flipped", marks=pytest.mark.exhaustive),
    ],
)
def test_trouble_with_a_disk_is_one_line_and_the_next_run_is_right(folder, reference, name):
    assert not problems(disks.run(folder, reference, chosen={name}))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_end_together(folder, reference):
    """And no step is lost but by SIGKILL."""
    names = {"one image cannot be read", "SIGTERM to host 1", "SIGKILL of host 1"}
    assert not problems(hosts.run(folder, chosen=names))
