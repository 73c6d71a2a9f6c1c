"""A profile has the steps that were asked for, also if the run stops before the last of them."""

import gzip
import json

import jax.numpy as jnp
import pytest

from retinanet_jax.training.profiling import Profiler, check_profile, parse_profile


@pytest.mark.parametrize(
    ("text", "steps"), [("3:5", range(3, 6)), ("7:7", range(7, 8)), (None, None)]
)
def test_the_flag_has_the_first_and_the_last_step(text, steps):
    assert parse_profile(text) == steps


@pytest.mark.parametrize("text", ["5", "a:b", "5:3", "3:", "", "-1:4", "3:4:5", "1:" + "9" * 99])
def test_a_wrong_flag_is_an_error_with_an_example(text):
    with pytest.raises(ValueError, match=r"^--profile=.*such as --profile=100:104\.$"):
        parse_profile(text)


@pytest.mark.parametrize("steps", [range(4, 6), range(5, 12), range(20, 21)])
def test_steps_outside_the_run_are_an_error(steps):
    check_profile(range(5, 11), 4, 10)
    check_profile(None, 4, 10)
    with pytest.raises(ValueError, match=r"the run trains the steps 5 to 10; give two of them\."):
        check_profile(steps, 4, 10)


def run(workdir, profile, steps):
    """Profile a run of these steps, and return the numbers of the steps in the trace."""
    profiler = Profiler(workdir, profile)
    for step in steps:
        with profiler.step(step):
            result = jnp.ones(3) * step
        profiler.finish_step(step, result)
    profiler.close()
    traces = list(workdir.glob("profile/plugins/profile/*/*.trace.json.gz"))
    if not traces:
        return None
    (trace,) = traces
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]


def test_a_profile_has_its_steps_and_its_path_is_printed(tmp_path, capsys):
    assert run(tmp_path, range(3, 6), range(1, 9)) == [3, 4, 5]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"profile: {tmp_path}/profile/plugins/profile/")
    assert "ui.perfetto.dev" in line
    assert line.endswith(f"xprof --logdir={tmp_path}/profile")


def test_a_run_that_stops_within_the_steps_writes_those_it_has_done(tmp_path):
    assert run(tmp_path, range(3, 6), range(1, 5)) == [3, 4]


def test_a_run_without_a_profile_writes_nothing(tmp_path):
    assert run(tmp_path, None, range(1, 3)) is None
