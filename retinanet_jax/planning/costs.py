"""Sums up what a compiled program does: arithmetic, memory traffic and collectives, by group."""

import collections
import re
from collections.abc import Mapping
from typing import NamedTuple

from retinanet_jax.planning import hlo
from retinanet_jax.planning.arithmetic import arithmetic

# The groups of operations, by the names that their `op_name` contains: those of Flax modules, of
# `jax.named_scope` and of arguments. The first match counts.
GROUPS = {
    "optimizer": r"optimizer|opt_state",
    "targets": r"targets|batch\.(?:boxes|classes|mask|crowd_boxes|crowd_mask)",
    "loss": r"loss",
    "detections": r"detections",
    "input": r"input|batch\.images",
    "heads": r"classification_head|box_head",
    "fpn": r"fpn",
    "backbone": r"backbone",
}
OTHER = "other"
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Cost(NamedTuple):
    """What one device does for a group of operations in one run of the program."""

    flops: int = 0  # of convolutions and matrix products, without products with padding
    traffic: int = 0  # bytes that operations read from and write to the main memory
    cycles: int = 0  # as the compiler for TPUs estimates them; 0 for other devices

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Exchange(NamedTuple):
    """The collectives of one name and type in one run of the program."""

    opcode: str
    dtype: str
    count: int
    size: int  # bytes of the arrays on one device


class Costs(NamedTuple):
    """The costs of a program, for one device."""

    groups: dict[str, Cost]  # only those that occur
    exchanges: list[Exchange]  # those with the most bytes first

    @property
    def total(self) -> Cost:
        """The costs of all groups."""
        return sum(self.groups.values(), Cost())  # pyright: ignore[reportCallIssue]


def program_costs(text: str) -> Costs:
    """Return the costs of a compiled program.

    Args:
        text: What `as_text()` of a compiled function returns.
    """
    module = hlo.read_module(text)
    groups: dict[str, Cost] = collections.defaultdict(Cost)
    sizes: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for computation, times in hlo.executed(module):
        scope = module.computations[computation]
        for instruction in scope.values():
            cost = Cost(
                traffic=times * hlo.traffic(module, computation, instruction),
                cycles=times * int(instruction.attribute(r'"estimated_cycles":"(\d+)"', "0")),
            )
            groups[group_of(module, scope, instruction)] += cost
        for inner in hlo.with_fusions(module, computation):
            scope = module.computations[inner]
            for instruction in scope.values():
                flops = times * arithmetic(scope, instruction)
                if flops:
                    groups[group_of(module, scope, instruction)] += Cost(flops)
                for key, size in exchanged(scope, instruction):
                    sizes[key] += [size] * times
    exchanges = [Exchange(*key, len(values), sum(values)) for key, values in sizes.items()]
    names = [name for name in (*GROUPS, OTHER) if any(groups[name])]
    return Costs(
        {name: groups[name] for name in names},
        sorted(exchanges, key=lambda exchange: -exchange.size),
    )


def group_of(
    module: hlo.Module, scope: Mapping[str, hlo.Instruction], instruction: hlo.Instruction
) -> str:
    """Return the group of an instruction: by its own name, or else that of what it computes from.

    Args:
        module: The program.
        scope: The instructions of the same computation.
        instruction: The instruction. The compiler's own copies and conversions have no name.
    """
    visited: set[str] = set()
    while True:
        inner = [module.computations[name].values() for name in module.called(instruction)]
        names = [instruction.op_name, *(each.op_name for group in inner for each in group)]
        for name in names:
            if "/" in name or "." in name:
                return group_of_name(name)
        visited.add(instruction.name)
        sources = [name for name in instruction.operands if name in scope and name not in visited]
        if not sources:
            return OTHER
        instruction = scope[sources[0]]


def group_of_name(op_name: str) -> str:
    """Return the group of an operation with this `op_name`."""
    for group, pattern in GROUPS.items():
        if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", op_name):
            return group
    return OTHER


def exchanged(
    scope: Mapping[str, hlo.Instruction], instruction: hlo.Instruction
) -> list[tuple[tuple[str, str], int]]:
    """Return ((name, type), bytes) of a collective for each type of its arrays; [] if it is none.

    The bytes are those of the whole arrays on one device: the operands of a reduction, the results
    of a gathering.

    Args:
        scope: The instructions of the same computation.
        instruction: The instruction.
    """
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in COLLECTIVES:
        return []
    arrays = [array for name in instruction.operands for array in scope[name].result]
    if opcode == "all-gather":
        arrays = list(instruction.result[-len(arrays) :])
    sizes: dict[str, int] = collections.Counter()
    for array in arrays:
        sizes[array.dtype] += array.size
    return [((opcode, dtype), size) for dtype, size in sizes.items()]
