"""Reads the text of a program that XLA compiled (HLO): its instructions, and what they cost."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Bits of a number of each type; others, such as token[], have no memory.
BITS = {
    "pred": 8,
    **{f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)},
    **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
    **{f"f8{variant}": 8 for variant in ("e4m3fn", "e5m2", "e4m3b11fnuz", "e4m3", "e8m0fnu")},
}
# type[dimensions]{minor_to_major:T(tile)S(memory space)}; TPUs pad the dimensions to whole tiles.
ARRAY = re.compile(
    r"(?P<type>[a-z]\w*)\[(?P<dims>[\d,<=]*)\](?:\{(?P<order>[\d,]*)(?P<layout>[^{}]*)\})?"
)
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?%?([\w.\-]+)")
# These move no data: their result is a name for memory that exists.
FREE = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple", "partition-id"}
SLICES = {"dynamic-slice", "slice", "gather"}


class Array(NamedTuple):
    """An array in a program: an operand or a part of a result."""

    dtype: str
    shape: tuple[int, ...]
    padded_shape: tuple[int, ...]  # with the padding to whole tiles
    is_in_main_memory: bool  # and not in a memory on the chip

    @property
    def size(self) -> int:
        """Bytes without padding."""
        return math.prod(self.shape) * BITS.get(self.dtype, 0) // 8

    @property
    def padded_size(self) -> int:
        """Bytes with padding."""
        return math.prod(self.padded_shape) * BITS.get(self.dtype, 0) // 8

    @property
    def traffic(self) -> int:
        """Bytes that reading or writing the array moves to or from the main memory."""
        return self.padded_size if self.is_in_main_memory else 0


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    result: tuple[Array, ...]  # several for a tuple
    operands: tuple[str, ...]  # names of instructions
    attributes: str  # the rest of the line: window, dim_labels, metadata, ...

    def attribute(self, pattern: str, default: str = "") -> str:
        """Return the first group of a pattern in the attributes, or else the default."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else default

    @property
    def op_name(self) -> str:
        """The path of the operation in the model: names of modules and scopes."""
        return self.attribute(r'op_name="([^"]*)"')


class Module(NamedTuple):
    """A program: computations, each with its instructions by name, in order."""

    entry: str
    computations: dict[str, dict[str, Instruction]]

    def called(self, instruction: Instruction) -> Iterator[str]:
        """Yield the computations that an instruction calls, without the condition of a loop."""
        yield from CALLED.findall(instruction.attributes)
        branches = instruction.attribute(r"branch_computations=\{([^}]*)\}")
        yield from re.findall(r"%?([\w.\-]+)", branches)


def read_module(text: str) -> Module:
    """Return the program of an HLO text.

    Args:
        text: What `as_text()` of a compiled function returns.
    """
    entry, computations = "", {}
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line and not line[0].isspace() and (header := COMPUTATION.match(line)):
            instructions = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif match := INSTRUCTION.match(line):
            instruction = read_instruction(*match.groups())
            instructions[instruction.name] = instruction
    return Module(entry, computations)


def read_instruction(name: str, result: str, opcode: str, rest: str) -> Instruction:
    """Return an instruction from the parts of its line.

    Args:
        name: The instruction's name.
        result: The type of its result.
        opcode: What it does.
        rest: Its operands, ")" and its attributes.
    """
    depth = 1
    for end, character in enumerate(rest):  # noqa: B007
        depth += (character == "(") - (character == ")")
        if depth == 0:
            break
    inside = rest[:end]
    if opcode in ("parameter", "constant"):
        operands, attributes = (), rest
    else:
        # Some versions print the type of each operand in front of its name.
        operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(
            part.split()[-1] for part in inside.split(", ") if part.strip()
        )
        attributes = rest[end + 1 :]
    return Instruction(name, opcode, tuple(read_arrays(result)), operands, attributes)


def read_arrays(text: str) -> Iterator[Array]:
    """Yield the arrays of a type, which may be a tuple: f32[8,128]{1,0:T(8,128)S(1)}."""
    for match in ARRAY.finditer(text):
        shape = tuple(int(side.lstrip("<=")) for side in match["dims"].split(",") if side)
        order = [int(axis) for axis in (match["order"] or "").split(",") if axis]
        layout = match["layout"] or ""
        tile = re.search(r"T\(([\d,]+)\)", layout)
        padded = list(shape)
        if tile and order:
            sides = [int(side) for side in tile[1].split(",")]
            for axis, side in zip(order, reversed(sides), strict=False):
                padded[axis] = -(-shape[axis] // side) * side
        is_in_main_memory = re.search(r"S\([1-9]", layout) is None
        yield Array(match["type"], shape, tuple(padded), is_in_main_memory)


def executed(module: Module, computation: str = "", times: int = 1) -> Iterator[tuple[str, int]]:
    """Yield each computation that runs by itself, and how often; those inside fusions do not.

    Args:
        module: The program.
        computation: Where to start; by default at the entry.
        times: How often `computation` runs.
    """
    computation = computation or module.entry
    yield computation, times
    for instruction in module.computations[computation].values():
        if instruction.opcode in ("while", "call", "conditional"):
            count = times * (
                trip_count(module, instruction) if instruction.opcode == "while" else 1
            )
            for called in module.called(instruction):
                yield from executed(module, called, count)


def with_fusions(module: Module, computation: str) -> Iterator[str]:
    """Yield a computation, and those of its fusions and asynchronous operations.

    Args:
        module: The program.
        computation: The name of a computation that `executed` yields.
    """
    yield computation
    for instruction in module.computations[computation].values():
        if instruction.opcode in ("fusion", "async-start"):
            for called in module.called(instruction):
                yield from with_fusions(module, called)


def trip_count(module: Module, loop: Instruction) -> int:
    """Return how often the body of a loop runs: as XLA writes it, or the bound in its condition."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition = module.computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), {})
    bounds = [
        int(number[1])
        for instruction in condition.values()
        if instruction.opcode == "constant"
        and (number := re.match(r"(\d+)\)", instruction.attributes))
    ]
    return max(bounds, default=1)


def traffic(module: Module, computation: str, instruction: Instruction) -> int:
    """Return the bytes that an instruction reads from and writes to the device's main memory.

    Of an array that a fusion only slices, the slices count; of one that it updates in place, the
    update.

    Args:
        module: The program.
        computation: The name of the computation that contains the instruction.
        instruction: The instruction.
    """
    opcode = instruction.opcode
    if opcode in FREE or opcode in ("while", "call", "conditional"):
        return 0
    scope = module.computations[computation]
    operands = [scope[name].result for name in instruction.operands if name in scope]
    read = [sum(array.traffic for array in arrays) for arrays in operands]
    written = sum(array.traffic for array in instruction.result)
    if opcode == "slice-start":  # its result: the operand, the slice and a token
        return instruction.result[1].padded_size
    if opcode.endswith("-start"):  # the transfer is a pair of instructions: one reads, one writes
        return sum(read)
    if opcode.endswith("-done"):
        return written
    if opcode in SLICES:
        return 2 * written + sum(read[1:])
    if opcode == "dynamic-update-slice":
        return 2 * read[1] + sum(read[2:])
    for called in module.called(instruction) if opcode == "fusion" else ():
        fused = list(module.computations[called].values())
        read = [min(size, sliced_bytes(fused, index, size)) for index, size in enumerate(read)]
        if fused[-1].opcode == "dynamic-update-slice":
            update = module.computations[called][fused[-1].operands[1]].result
            written = min(written, sum(array.traffic for array in update))
    return sum(read) + written


def sliced_bytes(fused: Sequence[Instruction], index: int, size: int) -> int:
    """Return the bytes that a fusion reads of an operand of which it may only use slices.

    Args:
        fused: The instructions of the fusion's computation.
        index: The index of the operand.
        size: The bytes of the whole operand.
    """
    names = [
        instruction.name
        for instruction in fused
        if instruction.opcode == "parameter" and instruction.attributes.startswith(f"{index})")
    ]
    users = [instruction for instruction in fused if set(names) & set(instruction.operands)]
    if not users:
        return size
    bytes_read = 0
    for user in users:
        if user.opcode in SLICES and user.operands[0] in names:
            bytes_read += sum(array.traffic for array in user.result)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] in names:
            continue  # updated in place
        else:
            return size
    return bytes_read
