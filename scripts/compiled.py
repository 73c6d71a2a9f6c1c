"""Compile a program of the detector for TPUs or GPUs that are not here, and print what it costs.

Run: python scripts/compiled.py --topology=v5e:2x2 --config=configs/tpu_640.py --size=640x640

It requires minutes, but no device and no data; for TPUs the extra `tpu`, for GPUs `cuda`. Revisions
are compared by compiling each from its own checkout; the table then has a column for both:

    git worktree add ../before v0.9.0
    PYTHONPATH=../before python scripts/compiled.py --topology=v5e:2x2 --json=before.json
    PYTHONPATH=. python scripts/compiled.py --topology=v5e:2x2 --before=before.json

`retinanet-jax plan` answers other questions about one revision: what fits into the memory.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

import retinanet_jax
from retinanet_jax import sharding
from retinanet_jax.compilation import compile_measured
from retinanet_jax.config import load_config
from retinanet_jax.planning import hlo
from retinanet_jax.planning.costs import Costs, group_of, program_costs
from retinanet_jax.planning.programs import BATCH_FIELDS, Workload
from retinanet_jax.planning.topologies import GIB, find_topology, make_devices
from retinanet_jax.utils.files import check_absent, make_writable, write_json
from retinanet_jax.utils.progress import format_count

NUM_CLASSES, NUM_BOXES = 80, 96  # COCO's, as of `plan`
NOTE = (
    "Nothing was run on these devices. The cycles are the compiler's estimate, only for TPUs, "
    "without sorts, collectives and waiting. Figures are of one device and one run of the program; "
    "a loop of which the number of iterations depends on the data counts as --iterations={}."
)
# These start nothing on the device.
NOT_LAUNCHED = {*hlo.FREE, "while", "call", "conditional"}
SORT = re.compile(r'custom_call_target="[^"]*(?:TopK|Sort|PartialReduce)')


def compile_program(options: argparse.Namespace) -> dict[str, Any]:
    """Return the program of the command line and its figures, as {"program": .., "figures": ..}.

    Raises:
        ValueError: If the topology is unknown, its compiler is missing, or the devices cannot split
            the images.
    """
    topology = find_topology(options.topology)
    config = load_config(options.config).unlock()
    config.dtype = options.dtype or config.dtype
    mesh = sharding.make_mesh(config.space, devices=make_devices(topology))
    sharding.check_heights([options.size], config.anchors.max_level, mesh)
    # A program from jax's cache would have no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    workload = Workload(
        config, options.mode, mesh, NUM_CLASSES, NUM_BOXES, topology.compiler_options
    )
    program = {
        "topology": options.topology,
        "config": options.config,
        "mode": options.mode,
        "dtype": config.dtype,
        "size": list(options.size),
        "images a device": options.images,
        "iterations": options.iterations,
    }
    print(f"compiling {describe(program)}; this takes minutes", file=sys.stderr, flush=True)
    lowered = workload.lower(options.size, options.images * mesh.shape["data"])
    wall, cpu = time.monotonic(), time.process_time()
    compiled, needed, memory = compile_measured(lowered, topology.compiler_options)
    seconds = {
        "compiling, s": time.monotonic() - wall,
        "compiling, s of all cores": time.process_time() - cpu,
    }
    print(f"compiled in {seconds['compiling, s']:.0f} s", file=sys.stderr, flush=True)
    if memory is None:
        raise ValueError(
            f"{describe(program)} needs at least {needed / GIB:.2f} GiB of the "
            f"{topology.usable_memory / GIB:.2f} of a device; lower --images or --size."
        )
    sizes = {"memory, GiB": needed / GIB}
    sizes |= {"code, MB": memory["program"] / 1e6} if memory["program"] else {}  # 0 of GPUs
    text = compiled.as_text()
    figures = {**cost_figures(text, options.iterations), **sizes, **seconds}
    versions = {"retinanet_jax": retinanet_jax.__version__, "jax": jax.__version__}
    return {"program": program, "versions": versions, "figures": figures}


def cost_figures(text: str, iterations: int) -> dict[str, float]:
    """Return what a compiled program does on one device: numbers by a name with their unit.

    Args:
        text: What `as_text()` of a compiled function returns.
        iterations: How often to count loops of which the number of iterations depends on the data.
    """
    module = with_iterations(hlo.read_module(text), iterations)
    operations, sorts, numbers = 0, 0, 0
    traffic: dict[str, float] = collections.defaultdict(float)
    cycles: dict[str, float] = collections.defaultdict(float)
    for computation, times in hlo.executed(module):
        scope = module.computations[computation]
        for instruction in scope.values():
            part = part_of(module, scope, instruction)
            traffic[part] += times * hlo.traffic(module, computation, instruction) / 1e9
            estimated = instruction.attribute(r'"estimated_cycles":"(\d+)"', "0")
            cycles[part] += times * int(estimated) / 1e6
            for sort in filter(is_sort, with_fused(module, instruction)):
                sorts += times
                numbers += times * sort.result[0].size * 8 // hlo.BITS[sort.result[0].dtype]
            if not instruction.opcode.endswith(("-done", "-update")):
                operations += times * (instruction.opcode not in NOT_LAUNCHED)
    costs = program_costs(text)
    figures = {"arithmetic, TFLOP": costs.total.flops / 1e12, "operations": operations}
    figures |= {"sorts": sorts, "numbers sorted, millions": numbers / 1e6} if sorts else {}
    figures |= exchange_figures(costs)
    figures["traffic, GB"] = sum(traffic.values())
    unit, parts = "traffic, GB", traffic
    if any(cycles.values()):
        unit, parts = "estimated Mcycles", cycles
        figures[unit] = sum(cycles.values())
    figures |= {f"{unit}: {part}": parts[part] for part in sorted(parts) if parts[part]}
    return figures


def exchange_figures(costs: Costs) -> dict[str, float]:
    """Return the number and the bytes of the collectives of each name and type."""
    figures: dict[str, float] = {}
    for exchange in costs.exchanges:
        name = f"{exchange.opcode} of {exchange.dtype}"
        figures |= {name: exchange.count, f"{name}, MB": exchange.size / 1e6}
    return figures


def with_iterations(module: hlo.Module, iterations: int) -> hlo.Module:
    """Return a program in which loops of an unknown number of iterations have this one."""
    known = f', "known_trip_count":{{"n":"{iterations}"}}'

    def counted(instruction: hlo.Instruction) -> hlo.Instruction:
        is_unknown = instruction.opcode == "while" and hlo.trip_count(module, instruction) == 1
        attributes = instruction.attributes + known * is_unknown
        return instruction._replace(attributes=attributes)

    computations = {
        name: {key: counted(instruction) for key, instruction in scope.items()}
        for name, scope in module.computations.items()
    }
    return module._replace(computations=computations)


def part_of(
    module: hlo.Module, scope: Mapping[str, hlo.Instruction], instruction: hlo.Instruction
) -> str:
    """Return the part of the detector that an instruction belongs to.

    Args:
        module: The program.
        scope: The instructions of the same computation.
        instruction: The instruction.
    """
    group = group_of(module, scope, instruction)
    instructions = with_fused(module, instruction)
    if group in ("backbone", "fpn", "heads"):
        is_convolution = any(
            each.opcode == "convolution" or "__cudnn$conv" in each.attributes
            for each in instructions
        )
        return f"{group}, {'convolutions' if is_convolution else 'other operations'}"
    if group == "detections":
        if "/while/" in instruction.op_name:
            return "detections, NMS"
        return f"detections, {'sorts' if any(map(is_sort, instructions)) else 'rest'}"
    return group


def with_fused(module: hlo.Module, instruction: hlo.Instruction) -> list[hlo.Instruction]:
    """Return an instruction, and those that it contains if it is a fusion."""
    called = module.called(instruction) if instruction.opcode == "fusion" else ()
    return [instruction, *(each for name in called for each in module.computations[name].values())]


def is_sort(instruction: hlo.Instruction) -> bool:
    """Return whether an instruction sorts, or selects the largest numbers."""
    return instruction.opcode in ("sort", "topk") or bool(SORT.search(instruction.attributes))


def describe(program: Mapping[str, Any]) -> str:
    """Return a program in words."""
    height, width = program["size"]
    mode = {"train": "training step", "predict": "detection"}[program["mode"]]
    images = format_count(program["images a device"], "image")
    return (
        f"{mode} of {program['config']} for {program['topology']}, {images} of {height} x {width} "
        f"a device, {program['dtype']}"
    )


def table(after: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """Return the figures of a program as a table in Markdown.

    Args:
        after: The program, as `compile_program` returns it.
        before: The same program of another revision, which adds two columns.

    Raises:
        ValueError: If `before` is another program.
    """
    title = describe(after["program"])
    if before is None:
        rows = [[title, "figure"], ["---", "---:"]]
        rows += [[name, number(value)] for name, value in after["figures"].items()]
    else:
        if before["program"] != after["program"]:
            raise ValueError(
                f"--before is {describe(before['program'])}, but this is {title}; compile the same."
            )
        rows = [[title, "before", "after", "after / before"], ["---", "---:", "---:", "---:"]]
        for name in before["figures"] | after["figures"]:
            old, new = (each["figures"].get(name, 0) for each in (before, after))
            rows.append([name, number(old), number(new), f"{new / old:.2f}" if old else ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float) -> str:
    """Return a number with at least three digits, and no more than one needs."""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.0e}"


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 800x1344")
    return int(match[1]), int(match[2])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--topology", default="v5e:2x2", help="The devices, as of `plan`: v5e:2x2, v5e-1, h100.")
    add("--config", default="configs/r50_fpn.py", help="FILE or FILE:ARGUMENT, as of `train`.")
    add("--mode", default="train", choices=list(BATCH_FIELDS), help="The program.")
    add("--dtype", choices=["float32", "bfloat16"], help="The default is the config's.")
    add("--size", default=(800, 1344), type=parse_size, help="HEIGHTxWIDTH of the images.")
    add("--images", default=8, type=int, help="The number of images a device.")
    add("--iterations", default=1, type=int, help="Of loops that depend on the data.")
    add("--json", type=pathlib.Path, help="A new file for the figures.")
    add("--before", type=pathlib.Path, help="A file of --json, to compare with.")
    return parser.parse_args(arguments)


def main() -> None:
    """Compile the program of the command line, and print its table."""
    options = parse_arguments()
    try:
        before = json.loads(options.before.read_text()) if options.before else None
        if options.json:
            check_absent(options.json, "file")
            make_writable(options.json.parent)
        compiled = compile_program(options)
        if options.json:
            write_json(options.json, compiled)
        print(table(compiled, before))
        print(f"\n{NOTE.format(options.iterations)}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
