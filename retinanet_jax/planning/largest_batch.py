"""Finds the largest batch size that fits into the memory of devices that are not here."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from retinanet_jax.planning.programs import Program

MAX_TRIES = 3  # compilations that verify an estimate
CLOSE = 1.05  # an estimate that is larger than a size that fits by less is not compiled
# Memory is not quite linear, and may even fall from one size to the next: estimates leave a little
# of it free, and are lower than a size that did not fit by more than one image.
TARGET, LOWER = 0.98, 0.95


class LargestBatch(NamedTuple):
    """The largest batch size that fits, and how it was found."""

    batch_size: int  # 0: not even the smallest fits
    needed: int  # bytes on each device; estimated unless verified
    compiled: list[tuple[int, int]]  # batch sizes that were compiled, and bytes that each needs
    is_verified: bool  # whether the program of this batch size was compiled


def find_largest_batch(
    compile_batch: Callable[[int], Program],
    first: Program,
    *,
    units: Sequence[int],
    limit: int,
    verifies: bool,
) -> LargestBatch:
    """Find the largest batch size: memory is linear in it, so two programs give an estimate.

    The estimate is then compiled, and improved by what its program needs, up to MAX_TRIES times.

    Args:
        compile_batch: Compiles the program of a batch size.
        first: The program of the config's batch size.
        units: Numbers of which a batch size is to be a multiple, the preferred one first; the last
            one divides all batch sizes that the devices can split.
        limit: Bytes that a program may use on a device.
        verifies: Whether to compile the program of the estimated batch size.
    """
    programs = {first.batch_size: first}

    def compile_once(batch_size: int) -> Program:
        if batch_size not in programs:
            programs[batch_size] = compile_batch(batch_size)
        return programs[batch_size]

    size = first.batch_size
    while compile_once(size).memory is None and size > units[-1]:
        size = multiple(size / 2, units) or units[-1]
    compile_once(multiple(size / 2, units[:1]) or 2 * size)
    estimate = estimated_size(programs, units, limit)
    for _ in range(MAX_TRIES if verifies else 0):
        fits = largest_fitting(programs, limit)
        if not estimate or estimate in programs or fits <= estimate < CLOSE * fits:
            break
        compile_once(estimate)
        estimate = estimated_size(programs, units, limit)
    return summary(programs, estimate, limit, verifies)


def multiple(batch_size: float, units: Sequence[int]) -> int:
    """Return the largest batch size up to this one that is a multiple of the first possible unit.

    Args:
        batch_size: The upper limit.
        units: As in `find_largest_batch`.
    """
    return next((n for n in (int(batch_size // unit) * unit for unit in units) if n > 0), 0)


def largest_fitting(programs: Mapping[int, Program], limit: int) -> int:
    """Return the largest batch size of the programs that fit; 0 if none does."""
    return max((size for size, program in programs.items() if program.fits(limit)), default=0)


def estimated_size(programs: Mapping[int, Program], units: Sequence[int], limit: int) -> int:
    """Return the largest batch size that fits, if memory is linear in it.

    Args:
        programs: Programs by their batch size.
        units: As in `find_largest_batch`.
        limit: Bytes that a program may use on a device.
    """
    fits, points = largest_fitting(programs, limit), measured(programs)
    # The line through the two sizes that are nearest to the limit.
    points = sorted(points, key=lambda point: abs(point[1] - limit))[:2]
    if len(points) < 2 or (points[0][1] - points[1][1]) * (points[0][0] - points[1][0]) <= 0:
        return fits  # nothing can be concluded
    slope = (points[0][1] - points[1][1]) / (points[0][0] - points[1][0])
    estimate = points[0][0] + (TARGET * limit - points[0][1]) / slope
    too_large = [size for size, program in programs.items() if not program.fits(limit)]
    return max(fits, multiple(min(estimate, LOWER * min(too_large, default=math.inf)), units))


def measured(programs: Mapping[int, Program]) -> list[tuple[int, int]]:
    """Return the batch sizes and the bytes of the programs that were compiled, in order."""
    return sorted((size, program.needed) for size, program in programs.items() if program.memory)


def summary(
    programs: Mapping[int, Program], estimate: int, limit: int, verifies: bool
) -> LargestBatch:
    """Return the result of a search.

    Args:
        programs: The programs that were compiled, by batch size.
        estimate: The batch size that was estimated last.
        limit: Bytes that a program may use on a device.
        verifies: Whether only programs that were compiled count.
    """
    fits, points = largest_fitting(programs, limit), measured(programs)
    largest = fits if verifies else max(estimate, fits)
    if largest == fits:
        needed = programs[largest].needed if largest else 0
    else:
        needed = line_through(points)(largest)
    return LargestBatch(largest, int(needed), points, is_verified=largest == fits)


def line_through(points: list[tuple[int, int]]) -> Callable[[int], float]:
    """Return the line through the last two points, as a function of the batch size.

    Args:
        points: Batch sizes and bytes, in order; at least two.
    """
    (x0, y0), (x1, y1) = points[-2:]
    return lambda x: y0 + (y1 - y0) / (x1 - x0) * (x - x0)
