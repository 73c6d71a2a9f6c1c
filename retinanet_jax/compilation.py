"""Compilation of a function for several image shapes, in parallel and before batches arrive."""

import contextlib
import functools
import itertools
import os
import pathlib
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from retinanet_jax.data.batch import Batch
from retinanet_jax.stopping import Stopping
from retinanet_jax.utils.files import make_writable
from retinanet_jax.utils.progress import CLOCK, format_count
from retinanet_jax.utils.remote import local_folder
from retinanet_jax.utils.threads import wait_for

R = TypeVar("R")
Compiler = futures.Executor  # threads that compile; XLA releases Python's lock while it compiles
MAX_THREADS = 8  # each needs about 500 MB for a ResNet-50
# How libtpu reports that a program needs more memory than the chip has.
EXHAUSTED = re.compile(r"(?:temporaries \(|Used )([\d.]+)([KMG])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
# Options of XLA by platform. On a CPU: operations in the order that requires the least memory, and
# copies of what cannot be changed in place when it is changed instead of at the beginning.
MEMORY_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }
}


def memory_options(platform: str) -> dict[str, Any]:
    """Return options of XLA with which a program requires less memory in about the same time.

    Args:
        platform: Of the devices: "cpu", "gpu" or "tpu".
    """
    return known_options(MEMORY_OPTIONS.get(platform, {}))


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of XLA's options that the installed version knows.

    Args:
        options: Options that change only the speed or the memory of a program, not its results.
    """
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Return whether XLA compiles with an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        return False
    return True


@contextlib.contextmanager
def start_compiler() -> Iterator[Compiler]:
    """Start threads that compile; on exit, cancel the compilations that have not begun."""
    # Half of a program's compilation is parallel by itself: with one thread per core, the first
    # program, for which training waits, would be ready later.
    num_threads = min((os.cpu_count() or 1) // 2, MAX_THREADS)
    threads = futures.ThreadPoolExecutor(max(1, num_threads))
    try:
        yield threads
    finally:
        # Nothing can end a compilation that has begun. The process waits for it when it exits,
        # unless it was stopped.
        threads.shutdown(wait=False, cancel_futures=True)


class CompiledByShape:
    """A jitted function `(state, batch) -> ...`, compiled once for each shape of the images.

    The batches of a run differ only in that shape. Shardings, donation and results are those of
    the jitted function.

    Args:
        name: Name of the function in the progress lines.
        jitted: The jitted function.
        compiler: The threads that compile, from `start_compiler`.
        stopping: Ends a call that waits for its program, or is about to start it, after a signal.
    """

    def __init__(
        self,
        name: str,
        jitted: Any,
        compiler: Compiler,
        stopping: Stopping | None = None,
    ) -> None:
        self.name, self._jitted, self._compiler = name, jitted, compiler
        self._stopping = stopping or Stopping()
        self._programs: dict[tuple[int, ...], futures.Future[Any]] = {}
        self._tracing = threading.Lock()
        self._num_compiled = itertools.count(1)

    def prepare(self, state: Any, batches: Iterable[Batch]) -> None:
        """Start to compile for the shapes of these batches, in their order.

        Args:
            state: The function's first argument; arrays or shapes.
            batches: One batch of each shape; arrays or shapes.
        """
        new = {batch.images.shape: batch for batch in batches}
        new = {shape: batch for shape, batch in new.items() if shape not in self._programs}
        for shape, batch in new.items():
            structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
            self._programs[shape] = self._compiler.submit(self._compile, *structs)
        if new:
            shapes = format_count(len(new), "image shape")
            print(f"compiling {self.name} for {shapes}", flush=True)

    def __call__(self, state: Any, batch: Batch) -> Any:
        """Return the jitted function's result, after waiting for the compiler if necessary."""
        self.prepare(state, [batch])
        with CLOCK.stopped():
            if jax.default_backend() != "cpu" and not self._stopping.is_ending:
                # An accelerator's compiler times kernels on the device, which no step may disturb.
                wait_for(self._programs.values(), self._stopping.check)
            wait_for([self._programs[batch.images.shape]], self._stopping.check)
            program = self._programs[batch.images.shape].result()
        self._stopping.launch(self.name)
        return program(state, batch)

    def _compile(self, state: Any, batch: Batch) -> Any:
        """Return the compiled function for the shapes of a state and a batch."""
        start = time.monotonic()
        # Tracing is Python: one at a time, so that the first program reaches the compiler soonest.
        with self._tracing:
            lowered = self._jitted.lower(state, batch)
        program = lowered.compile()
        height, width = batch.images.shape[1:3]
        print(
            f"compiled {self.name} {next(self._num_compiled)}/{len(self._programs)}: "
            f"{height} x {width}, {time.monotonic() - start:.1f} s",
            flush=True,
        )
        return program


def black_batch(like: Batch, bucket: tuple[int, int]) -> Batch:
    """Return a batch of black images without objects, which needs the memory of a real one.

    Args:
        like: A batch with the number of images, the number of boxes and the dtypes.
        bucket: Height and width of the images.
    """
    count = len(like.images)
    return Batch.of_images(
        np.zeros((count, *bucket, 3), like.images.dtype),
        sizes=np.full((count, 2), bucket, np.float32),
        scales=np.ones((count, 2), np.float32),
        num_boxes=like.boxes.shape[1],
        num_crowd=like.crowd_boxes.shape[1],
    )


class Measured(NamedTuple):
    """A compiled program, and the memory that it needs on each device."""

    program: Any  # None if the compiler rejected it because of its memory
    needed: int  # bytes; at least this much if the compiler rejected the program
    memory: dict[str, int] | None  # bytes by use; None if the compiler rejected the program


def compile_measured(lowered: Any, compiler_options: Mapping[str, Any] | None = None) -> Measured:
    """Compile a program, and measure the memory that it needs.

    Args:
        lowered: What `lower` of a jitted function returns.
        compiler_options: Of XLA.
    """
    try:
        program = lowered.compile(compiler_options=compiler_options or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Measured(None, exhausted_bytes(str(error)), None)
    memory = memory_of(program.memory_analysis())
    return Measured(program, memory["peak"] + memory["program"], memory)


def memory_of(analysis: Any) -> dict[str, int]:
    """Return the bytes of a compiled program on each device, by use.

    Args:
        analysis: From `memory_analysis()`.
    """
    return {
        "peak": analysis.peak_memory_in_bytes,  # of all arrays at once
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }


def exhausted_bytes(message: str) -> int:
    """Return the bytes that a program needs, from the compiler's message that they are too many."""
    match = EXHAUSTED.search(message)
    return int(float(match[1]) * UNITS[match[2]]) if match else 0


def compiled_off_the_clock(jitted: Callable[..., R]) -> Callable[..., R]:
    """Return a jitted function that compiles while the clock of progress lines is stopped.

    Args:
        jitted: The jitted function. JAX compiles it at the first call with arrays of given shapes.
    """
    compiled: set[tuple[tuple[int, ...], ...]] = set()

    def call(*arguments: Any) -> R:
        shapes = tuple(np.shape(array) for array in jax.tree.leaves(arguments))
        is_new = shapes not in compiled
        compiled.add(shapes)
        with CLOCK.stopped() if is_new else contextlib.nullcontext():
            return jitted(*arguments)

    return call


def use_compilation_cache() -> None:
    """Store compiled programs on disk, where all commands and runs of the user find them.

    The folder is $JAX_COMPILATION_CACHE_DIR, else $XDG_CACHE_HOME/retinanet_jax, else
    ~/.cache/retinanet_jax. If it is not writable, nothing is stored. A program's key contains all
    that it was compiled from, so runs cannot disturb each other.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    default = os.path.join(user_cache, "retinanet_jax")
    path = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default
    folder = pathlib.Path(os.path.expanduser(path))
    try:
        make_writable(folder)
    except OSError:
        return
    store_programs(folder)


def use_run_cache(workdir: pathlib.Path) -> None:
    """Store the compiled programs of a run, as `use_compilation_cache` does.

    Several processes use a folder in the working directory instead, which all of them can access,
    because JAX stores only the programs of the first one. So does a run that has this folder.
    $JAX_COMPILATION_CACHE_DIR counts more than that.

    Args:
        workdir: The run's working directory.
    """
    folder = local_folder(workdir, "compilation_cache")
    is_in_workdir = jax.process_count() > 1 or folder.is_dir()
    if is_in_workdir and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        store_programs(folder)
    else:
        use_compilation_cache()


def store_programs(folder: pathlib.Path) -> None:
    """Store compiled programs in a folder; if one cannot be written, it is compiled again."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A warning for each program. If the disk is full, what the command writes next reports it.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache", UserWarning)
