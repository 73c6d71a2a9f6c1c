"""CompiledByShape has the jitted function's results and compiles before the batches arrive."""

import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import compilation, input_pipeline
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.utils.progress import CLOCK


def batch_of(height, width):
    rest = {name: np.ones(2, np.float32) for name in Batch._fields}
    return Batch(**rest | {"images": np.full((2, height, width, 3), 7, np.uint8)})


class Traced:
    """A step that records the image shapes it was compiled for."""

    def __init__(self):
        self.shapes = []
        self.jitted = jax.jit(self._step, donate_argnums=0)

    def _step(self, state, batch):
        self.shapes.append(batch.images.shape[1:3])
        return state + batch.images.astype(jnp.float32).sum() * batch.weights.sum()


@pytest.fixture
def compiler():
    with compilation.start_compiler() as compiler:
        yield compiler


def test_each_shape_is_compiled_once_and_the_results_are_those_of_the_function(compiler, capsys):
    traced = Traced()
    programs = compilation.CompiledByShape("adding", traced.jitted, compiler)
    state, expected = jnp.zeros(4), 0
    prepared = [batch_of(8, 16), batch_of(16, 8)]
    programs.prepare(state, prepared)
    for height, width in ((16, 8), (8, 16), (16, 8), (32, 32)):  # the last was not prepared
        before, state = state, programs(state, batch_of(height, width))
        assert before.is_deleted()  # donated, as the jitted function specifies
        expected += 2 * height * width * 3 * 7 * 2
        assert state.tolist() == [expected] * 4
    assert sorted(traced.shapes) == [(8, 16), (16, 8), (32, 32)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compiling adding for 2 image shapes"
    assert sum("compiled adding" in line for line in lines) == 3
    assert "compiled adding 3/3: 32 x 32" in lines[-1]


def test_an_error_of_the_function_is_raised_where_it_is_called(compiler):
    def refuse(state, batch):
        raise ValueError("config.loss.box='l3' must be one of ...")

    programs = compilation.CompiledByShape("refusing", jax.jit(refuse), compiler)
    programs.prepare(jnp.zeros(1), [batch_of(8, 8)])
    with pytest.raises(ValueError, match="l3"):
        programs(jnp.zeros(1), batch_of(8, 8))


@pytest.mark.parametrize(("platform", "waits"), [("cpu", False), ("gpu", True)])
def test_no_step_disturbs_an_accelerators_compiler(compiler, monkeypatch, platform, waits):
    may_finish = threading.Event()

    def step(state, batch):
        if batch.images.shape[1] == 16:
            assert may_finish.wait(60)
        return state

    programs = compilation.CompiledByShape("waiting", jax.jit(step), compiler)
    monkeypatch.setattr(compilation.jax, "default_backend", lambda: platform)
    programs.prepare(jnp.zeros(1), [batch_of(8, 8), batch_of(16, 8)])
    stepped = threading.Thread(target=programs, args=(jnp.zeros(1), batch_of(8, 8)))
    stepped.start()
    stepped.join(0.5 if waits else 30)
    assert stepped.is_alive() == waits
    may_finish.set()
    stepped.join()


class SlowToCompile:
    """A jitted function that takes 0.5 s to compile and 0.1 s to run, and a program of it."""

    def __init__(self):
        self.compiled = set()

    def lower(self, state, batch):
        return self

    def compile(self):
        time.sleep(0.5)
        return lambda state, batch: time.sleep(0.1)

    def __call__(self, state, batch):
        if batch.images.shape not in self.compiled:
            self.compiled.add(batch.images.shape)
            self.compile()
        time.sleep(0.1)


@pytest.mark.parametrize("when", ["in advance", "at the first call"])
def test_compiling_does_not_count_in_the_speed_of_progress_lines(compiler, when):
    slow = SlowToCompile()
    if when == "in advance":
        call = compilation.CompiledByShape("adding", slow, compiler)
        running = 0.4
    else:
        call = compilation.compiled_off_the_clock(slow)
        running = 0.2  # a call that compiles does not count at all
    start = CLOCK.now()
    for height in (8, 8, 16, 8):
        call(jnp.zeros(1), batch_of(height, 8))
    # A busy machine sleeps longer; compiling would add 0.5 s or more.
    assert running - 0.01 <= CLOCK.now() - start < running + 0.4


def test_a_run_that_ends_cancels_compilations_that_have_not_begun(monkeypatch):
    monkeypatch.setattr(compilation, "MAX_THREADS", 1)
    traced = Traced()
    with compilation.start_compiler() as compiler:
        compiler.submit(time.sleep, 0.3)
        programs = compilation.CompiledByShape("adding", traced.jitted, compiler)
        programs.prepare(jnp.zeros(1), [batch_of(8, 8)])
    assert traced.shapes == []


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float"])
def test_the_prepared_shapes_are_those_of_the_batches(toy_config, synthetic_dataset, resize):
    """With their types, in order of appearance, and only those that a run uses."""
    toy_config.data.update(
        batch_size=4,
        eval_batch_size=4,
        short_sides=(32, 64),
        buckets=((32, 32), (64, 64), (96, 96)),
        long_side=64,
        resize=resize,
        loader="numpy",
    )
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")

    def shapes(batch):
        return jax.tree.map(lambda x: (x.shape, x.dtype), batch)

    for plan, num_steps, num_shapes in (
        (input_pipeline.train_plan(toy_config, source), 5, 2),
        (input_pipeline.eval_plan(toy_config, source.sizes, batch_size=4), 5, 1),
    ):
        steps = range(num_steps)
        batches = [shapes(b) for b in input_pipeline.host_batches(toy_config, source, plan, steps)]
        prepared = [shapes(b) for b in batch_shapes(source, plan, steps)]
        assert prepared == list(dict.fromkeys(batches))
        assert len(prepared) == num_shapes


@pytest.fixture
def user_folder(monkeypatch, tmp_path):
    """The folder of the user's caches; jax's setting is restored afterwards."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield tmp_path / "user"
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_cached_for_the_user(user_folder, monkeypatch, tmp_path):
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(user_folder / "retinanet_jax")
    assert (user_folder / "retinanet_jax").is_dir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_runs_use_the_cache_of_the_user_unless_several_processes_require_one_folder(
    user_folder, monkeypatch, tmp_path
):
    def folder():
        compilation.use_run_cache(tmp_path / "run")
        return jax.config.jax_compilation_cache_dir

    of_user, of_run = str(user_folder / "retinanet_jax"), str(tmp_path / "run/compilation_cache")
    assert folder() == of_user
    with monkeypatch.context() as several:
        several.setattr(jax, "process_count", lambda: 2)
        assert folder() == of_run
    assert folder() == of_user
    pathlib.Path(of_run).mkdir(parents=True)  # of a run that an earlier version started
    assert folder() == of_run
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    assert folder() == str(tmp_path / "own")


def test_without_a_writable_folder_nothing_is_cached_and_nothing_printed(user_folder, capsys):
    user_folder.write_text("not a folder")
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr() == ("", "")


def test_options_that_xla_does_not_know_are_left_out():
    options = {"xla_no_such_option": 1, "xla_cpu_scheduler_type": "NO_SUCH_TYPE"}
    assert compilation.known_options(options) == {}
    known = dict(compilation.MEMORY_OPTIONS["cpu"])
    assert compilation.memory_options("cpu") == compilation.known_options(options | known) == known
    assert compilation.memory_options("tpu") == {}
