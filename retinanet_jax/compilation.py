"""CompiledByShape for several shapes of picture, compiled side by side before their batches come."""

import contextlib
import itertools
import os
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import jax

from retinanet_jax.data.batch import Batch
from retinanet_jax.utils.files import make_writable

Compiler = futures.Executor  # threads that compile; XLA leaves Python to the others meanwhile
MAX_THREADS = 8  # each takes some 500 MB for a ResNet-50


@contextlib.contextmanager
def start_compiler() -> Iterator[Compiler]:
    """Threads that end with the run; what was not begun by then is left."""
    # Half of a program's compilation is parallel by itself: with one thread a core, the first
    # program, for which training waits, would come later.
    side_by_side = min((os.cpu_count() or 1) // 2, MAX_THREADS)
    threads = futures.ThreadPoolExecutor(max(1, side_by_side))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


class CompiledByShape:
    """A jitted `(state, batch) -> ...`, compiled once for each shape that the pictures have.

    All that differs among a run's batches is that shape. Shardings, donation and numbers are the
    jitted function's own. `name`: for the lines that tell how far compiling is.
    """

    def __init__(self, name: str, jitted: Any, compiler: Compiler) -> None:
        self._name, self._jitted, self._compiler = name, jitted, compiler
        self._programs: dict[tuple[int, ...], futures.Future[Any]] = {}
        self._tracing = threading.Lock()
        self._done = itertools.count(1)

    def prepare(self, state: Any, batches: Iterable[Batch]) -> None:
        """Begins to compile for batches like these, in their order; arrays' shapes suffice."""
        new = [batch for batch in batches if batch.images.shape not in self._programs]
        for batch in new:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
            self._programs[batch.images.shape] = self._compiler.submit(self._compile, *shapes)
        if new:
            print(f"compiling {self._name}, shapes of pictures: {len(new)}", flush=True)

    def __call__(self, state: Any, batch: Batch) -> Any:
        """What the jitted function gives; waits for the compiler where it must."""
        self.prepare(state, [batch])
        if jax.default_backend() != "cpu":
            # An accelerator's compiler times kernels on the device, which no step may disturb.
            futures.wait(self._programs.values())
        return self._programs[batch.images.shape].result()(state, batch)

    def _compile(self, state: Any, batch: Batch) -> Any:
        began = time.monotonic()
        # Tracing is Python: taking turns, the first program reaches the compiler soonest.
        with self._tracing:
            lowered = self._jitted.lower(state, batch)
        program = lowered.compile()
        height, width = batch.images.shape[1:3]
        print(
            f"compiled {self._name} {next(self._done)}/{len(self._programs)}: {height} x {width}, "
            f"{time.monotonic() - began:.1f} s",
            flush=True,
        )
        return program


def use_compilation_cache() -> None:
    """The next start finds compiled what this one compiles; for programs without a workdir.

    In $JAX_COMPILATION_CACHE_DIR, else in $XDG_CACHE_HOME/retinanet_jax (~/.cache/retinanet_jax);
    nowhere, where that cannot be written.
    """
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    wanted = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(user, "retinanet_jax")
    folder = pathlib.Path(os.path.expanduser(wanted))
    try:
        make_writable(folder)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
