"""What `plan` prints and writes: tables of the programs, and warnings about the config."""

from collections.abc import Sequence
from typing import Any

from retinanet_jax import sharding
from retinanet_jax.planning.costs import Costs, Exchange
from retinanet_jax.planning.largest_batch import LargestBatch
from retinanet_jax.planning.programs import (
    BATCH_FIELDS,
    Program,
    Workload,
    train_state_shapes,
    tree_bytes,
)
from retinanet_jax.planning.topologies import (
    GIB,
    GPU_FRACTION_VARIABLE,
    Topology,
)

NOT_MEASURED = (
    "Nothing was run on these devices. Memory is what the compiler reserves; times are lower "
    "bounds from published peaks, not predictions."
)


def program_text(program: Program, topology: Topology, num_data: int) -> str:
    """Return the table of one program.

    Args:
        program: The program.
        topology: The devices.
        num_data: The number of devices that split the batch.
    """
    height, width = program.bucket
    per_device = program.batch_size / num_data
    limit = topology.usable_memory
    least = "" if program.memory else "at least "
    lines = [
        f"{height} x {width}, batch size {program.batch_size} ({per_device:g} images a device)",
        f"  memory a device  {least}{gib(program.needed)} of {gib(limit)} GiB: "
        + ("fits" if program.fits(limit) else "does not fit"),
        f"  compile time     {program.seconds:.0f} s",
    ]
    if program.memory and program.costs:
        uses = ", ".join(f"{use} {gib(size)}" for use, size in program.memory.items())
        lines.insert(2, f"                   {uses}")
        lines += cost_lines(program.costs, topology)
    return "\n".join(lines)


def cost_lines(costs: Costs, topology: Topology) -> list[str]:
    """Return the lines on arithmetic, memory traffic and collectives, and the table of groups.

    Args:
        costs: The costs of a program.
        topology: The devices.
    """
    chip, total = topology.chip, costs.total
    tflop, traffic = total.flops / 1e12, total.traffic / 1e9
    lines = [
        f"  arithmetic       {tflop:.3g} TFLOP: at least {tflop / chip.tflops * 1e3:.3g} ms at "
        f"{chip.tflops} TFLOP/s (bfloat16)",
        f"  memory traffic   {traffic:.3g} GB: at least {traffic / chip.memory_bandwidth * 1e3:.3g}"
        f" ms at {chip.memory_bandwidth:g} GB/s",
        *(
            f"  {'collectives' if i == 0 else '':<16} {exchange_text(exchange)}"
            for i, exchange in enumerate(costs.exchanges)
        ),
    ]
    has_cycles = total.cycles > 0
    header = f"  {'group':<12}{'TFLOP':>9}{'GB':>9}"
    lines.append(header + (f"{'Mcycles (estimated by the compiler)':>37}" if has_cycles else ""))
    for name, cost in costs.groups.items():
        line = f"  {name:<12}{cost.flops / 1e12:>9.3f}{cost.traffic / 1e9:>9.2f}"
        lines.append(line + (f"{cost.cycles / 1e6:>10.2f}" if has_cycles else ""))
    return lines


def exchange_text(exchange: Exchange) -> str:
    """Return the number, the type and the bytes of the collectives of one name."""
    return (
        f"{exchange.count} {exchange.opcode} of {exchange.dtype}, {exchange.size / 1e6:.3g} MB "
        "in all"
    )


def largest_batch_text(largest: LargestBatch, topology: Topology, num_data: int) -> str:
    """Return the line on the largest batch size, and on how it was found.

    Args:
        largest: The largest batch size.
        topology: The devices.
        num_data: The number of devices that split the batch.
    """
    sizes = " and ".join(str(size) for size, _ in largest.compiled[:2])
    if not largest.batch_size:
        return "largest batch size: none; even the smallest does not fit"
    how = "its program was compiled" if largest.is_verified else "its program was not compiled"
    return (
        f"largest batch size: {largest.batch_size} ({largest.batch_size / num_data:g} images a "
        f"device), {gib(largest.needed)} of {gib(topology.usable_memory)} GiB; estimated from the "
        f"memory at batch sizes {sizes}, {how}"
    )


def warnings(workload: Workload, programs: Sequence[Program], topology: Topology) -> list[str]:
    """Return the warnings about a config on these devices.

    Args:
        workload: What was compiled.
        programs: The programs of all buckets.
        topology: The devices.
    """
    config, chip = workload.config, topology.chip
    field = f"data.{BATCH_FIELDS[workload.mode]}"
    images = sharding.images_warning(
        field, workload.batch_size, workload.mesh, workload.num_parts, chip.platform
    )
    texts = [images] if images else []
    if config.dtype == "float32":
        texts.append(
            "dtype=float32 takes about twice the memory and memory traffic of bfloat16, in which "
            "accelerators are fastest; try --config.dtype=bfloat16."
        )
    texts += memory_warnings(workload, programs, topology)
    return texts


def memory_warnings(
    workload: Workload, programs: Sequence[Program], topology: Topology
) -> list[str]:
    """Return the warnings about memory: what would let a program fit that does not.

    Args:
        workload: What was compiled.
        programs: The programs of all buckets.
        topology: The devices.
    """
    config, limit = workload.config, topology.usable_memory
    num_data = workload.mesh.shape["data"]
    most = max(programs, key=lambda program: program.needed)
    texts = []
    if topology.chip.platform == "cuda":
        texts.append(
            "without a device there are no workspaces of cuDNN in these figures; leave some "
            "GiB free."
        )
        if not most.fits(limit) and most.fits(int(topology.chip.memory * GIB)):
            texts.append(
                f"jax reserves {gib(limit)} of {topology.chip.memory} GiB for programs; it may fit "
                f"with {GPU_FRACTION_VARIABLE}=0.95."
            )
    if workload.mode == "train" and num_data > 1 and not config.shard_optimizer:
        state = tree_bytes(train_state_shapes(config, workload.num_classes).opt_state)
        saved = state - state // num_data
        if not most.fits(limit) and most.needed - saved <= limit:
            texts.append(
                f"it would fit with --config.shard_optimizer=True, which saves {gib(saved)} GiB "
                "a device."
            )
    if workload.mode == "train" and not most.fits(limit):
        texts.append(
            f"--config.optimizer.accumulate={2 * workload.num_parts} computes half as many images "
            "at once, and --config.model.remat=\"('c2','c3','c4','c5')\" stores less of each; both "
            "leave the batch size as it is."
        )
    return texts


def as_json(
    workload: Workload,
    topology: Topology,
    programs: Sequence[Program],
    texts: Sequence[str],
    largest: LargestBatch | None,
) -> dict[str, Any]:
    """Return everything that `plan` found, as JSON.

    Args:
        workload: What was compiled.
        topology: The devices.
        programs: The programs of all buckets.
        texts: The warnings.
        largest: The largest batch size; None if it was not searched.
    """
    return {
        "note": NOT_MEASURED,
        "mode": workload.mode,
        "topology": {
            "name": topology.name,
            "devices": topology.num_devices,
            "mesh": dict(workload.mesh.shape),
            "usable_memory": topology.usable_memory,
            **topology.chip._replace(target="")._asdict(),
        },
        "num_classes": workload.num_classes,
        "num_boxes": workload.num_boxes,
        "programs": [program_json(program, topology) for program in programs],
        "largest_batch": largest and largest._asdict(),
        "warnings": list(texts),
        "config": workload.config.to_dict(),
    }


def program_json(program: Program, topology: Topology) -> dict[str, Any]:
    """Return one program as JSON.

    Args:
        program: The program.
        topology: The devices.
    """
    fields = {**program._asdict(), "fits": program.fits(topology.usable_memory)}
    if costs := program.costs:
        fields["costs"] = {
            "total": costs.total._asdict(),
            "groups": {name: cost._asdict() for name, cost in costs.groups.items()},
            "collectives": [exchange._asdict() for exchange in costs.exchanges],
        }
    return fields


def gib(size: float) -> str:
    """Return bytes as GiB with two decimals, without the unit."""
    return f"{size / GIB:.2f}"
