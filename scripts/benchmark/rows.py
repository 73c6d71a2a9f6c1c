"""The rows of the benchmark's table: their selection, measurement and formatting."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from scripts.benchmark import torchvision_reference
from scripts.benchmark.timing import (
    Ceilings,
    compile_call,
    count_flops,
    median_ratio,
    time_interleaved,
)
from scripts.benchmark.workloads import (
    GROUPS,
    Call,
    Setting,
    Workload,
    make_workload,
    with_plain_convolutions,
    with_plain_padding,
)


class Column(NamedTuple):
    """A column of the table."""

    title: str
    field: str  # the key of the figure in a row
    format: str
    factor: float = 1  # from the unit of the figure to that of the column

    @property
    def width(self) -> int:
        """The number of characters of the column."""
        return int(self.format.split(".")[0])


COLUMNS = (
    Column("lower s", "lower_s", "8.1f"),
    Column("compile s", "compile_s", "10.1f"),
    Column("ms", "seconds", "10.2f", 1e3),
    Column("images/s", "images_per_second", "9.2f"),
    Column("GFLOP", "flops", "9.1f", 1e-9),
    Column("TFLOP/s", "flops_per_second", "8.3f", 1e-12),
    Column("of matmul", "fraction_of_matmul", "10.0%"),
    Column("GB", "bytes", "8.2f", 1e-9),
    Column("of copy", "fraction_of_copy", "8.0%"),
    Column("GiB", "memory", "7.2f", 2**-30),
)
REFERENCE_COLUMNS = (
    Column("reference ms", "reference_seconds", "13.2f", 1e3),
    Column("ours/reference", "ratio", "15.3f"),
)


class PlannedRow(NamedTuple):
    """A row of the table before it is measured."""

    name: str
    make_call: Callable[[Workload], Call]
    setting: Setting


def plan_rows(groups: Sequence[str], settings: Sequence[Setting]) -> list[PlannedRow]:
    """Return the rows of some GROUPS; inference is also measured with single images."""
    return [
        PlannedRow(name, make_call, setting._replace(batch=batch))
        for setting in settings
        for group in groups
        for name, make_call in GROUPS.get(group, {}).items()
        for batch in sorted({setting.batch, 1} if group == "inference" else {setting.batch})
    ]


def measure_row(row: PlannedRow, rounds: int, ceilings: Ceilings) -> dict[str, Any]:
    """Compile and time a row, in turn with the reference implementation if that can be measured.

    Args:
        row: The row to measure.
        rounds: The number of rounds, of which the median is taken.
        ceilings: The device's highest rates, for comparison.

    Returns:
        The fields of all columns, and the seconds of each round.
    """
    name, make_call, setting = row
    workload = make_workload(setting)
    run, facts = compile_call(make_call(workload))
    facts["flops"] = count_flops(make_call(with_plain_convolutions(workload)))
    run()
    functions, variant = {"ours": run}, ""
    if setting.reference == "plain":
        functions["reference"], _ = compile_call(make_call(with_plain_padding(workload)))
    elif setting.reference == "torchvision":
        variant, reference = torchvision_reference.fastest_variant(name, workload)
        functions |= {"reference": reference} if reference else {}
    seconds = time_interleaved(functions, rounds)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "name": name,
        **setting._asdict(),
        **facts,
        **derived_figures(seconds, setting, facts["flops"], facts["bytes"], ceilings),
        "device_peak": stats.get("peak_bytes_in_use"),
        "reference_variant": variant,
        "rounds": seconds,
    }


def derived_figures(
    seconds: dict[str, list[float]],
    setting: Setting,
    flops: float,
    num_bytes: float,
    ceilings: Ceilings,
) -> dict[str, float | None]:
    """Return the figures that follow from the seconds of the rounds.

    Args:
        seconds: The seconds of each round, for "ours" and, if it was measured, "reference".
        setting: The setting of the row.
        flops: The number of FLOPs of one call.
        num_bytes: The number of bytes that one call reads and writes.
        ceilings: The device's highest rates.
    """
    ours, reference = seconds["ours"], seconds.get("reference")
    median = statistics.median(ours)
    return {
        "seconds": median,
        "images_per_second": setting.batch / median,
        "flops_per_second": flops / median,
        "fraction_of_matmul": flops / median / ceilings.flops[setting.dtype],
        "bytes_per_second": num_bytes / median,
        "fraction_of_copy": num_bytes / median / ceilings.bytes,
        "reference_seconds": statistics.median(reference) if reference else None,
        "ratio": median_ratio(ours, reference) if reference else None,
    }


def table_head(columns: Sequence[Column]) -> str:
    """Return the first line of the table, with the titles of the columns."""
    titles = "".join(f"{column.title:>{column.width}}" for column in columns)
    return f"{'':26}{'size':9} batch  {'dtype':8}{titles}"


def table_line(row: dict[str, Any], columns: Sequence[Column]) -> str:
    """Return the line of the table for a measured row."""
    line = f"{row['name']:26}{Setting(row['size'], row['batch'], row['dtype'])}"
    for column in columns:
        value = row[column.field]
        blank = f"{'-':>{column.width}}"
        line += blank if value is None else f"{value * column.factor:{column.format}}"
    return f"{line}  {row['reference_variant']}".rstrip()
