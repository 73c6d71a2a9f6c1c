"""Compilation of a call, its number of operations, and the time of several functions in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from scripts.benchmark.workloads import Call, random_normal

T = TypeVar("T")


class Ceilings(NamedTuple):
    """The highest rates that were measured on this device."""

    flops: dict[str, float]  # per second, by dtype
    bytes: float  # read and written per second


def interleave(measurements: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return the results of each measurement in each round.

    In a round each measurement is taken once, so that other load on the machine affects all alike.
    """
    results: dict[str, list[T]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            results[name].append(measure())
    return results


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds that each function takes in each round."""

    def timed(function: Callable[[], Any]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start

        return seconds

    return interleave({name: timed(function) for name, function in functions.items()}, rounds)


def shortest_time(function: Callable[[], Any], rounds: int) -> float:
    """Return the seconds of the fastest of `rounds` calls, after one to warm up."""
    return min(time_interleaved({"": function}, 1 + rounds)[""][1:])


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def compile_call(call: Call) -> tuple[Callable[[], Any], dict[str, float]]:
    """Compile a call.

    Args:
        call: The function and its arguments.

    Returns:
        A function that runs the call and waits for its result, and figures: the seconds of lowering
        and of compilation, and the bytes of traffic and of memory by XLA's analysis.
    """
    jitted = jax.jit(call.function, donate_argnums=0 if call.donates_first else ())
    start = time.perf_counter()
    lowered = jitted.lower(*call.arguments)
    lowered_at = time.perf_counter()
    compiled: Any = lowered.compile(compiler_options=call.compiler_options)
    compile_s = time.perf_counter() - lowered_at
    arguments = list(call.arguments)

    def run():
        result = jax.block_until_ready(compiled(*arguments))
        if call.donates_first:
            arguments[0] = result[0]
        return result

    memory = compiled.memory_analysis()
    return run, {
        "lower_s": lowered_at - start,
        "compile_s": compile_s,
        "bytes": compiled.cost_analysis()["bytes accessed"],
        "memory": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def count_flops(call: Call) -> float:
    """Return the FLOPs of the program before XLA optimizes it.

    With plain convolutions the number is the same on every device.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), call.arguments)
    # Only the CPU backend analyzes a program that is not compiled.
    with jax.default_device(jax.devices("cpu")[0]):
        lowered: Any = jax.jit(call.function).lower(*shapes)
        return lowered.cost_analysis()["flops"]


def measure_ceilings(dtypes: Sequence[str], rounds: int) -> Ceilings:
    """Measure the rates of a large matrix product and of changing a large array in place."""
    side, length = (2048, 2**26) if jax.default_backend() == "cpu" else (8192, 2**28)
    rounds = max(rounds, 5)

    def seconds(call: Call) -> float:
        run, _ = compile_call(call)
        return shortest_time(run, rounds)

    products = {
        dtype: Call(jnp.matmul, (random_normal((side, side), dtype),) * 2) for dtype in dtypes
    }
    increment = Call(lambda x: (x + 1, ()), (jnp.zeros(length, jnp.float32),), donates_first=True)
    return Ceilings(
        {dtype: 2 * side**3 / seconds(product) for dtype, product in products.items()},
        2 * 4 * length / seconds(increment),
    )
