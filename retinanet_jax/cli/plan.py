"""The command `retinanet-jax plan`, which compiles a config for devices that are not here."""

import functools
import math
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.cli.common import Command, define_config, output_path, require
from retinanet_jax.cli.device_variant import assume_batch_size
from retinanet_jax.config import CONFIGS
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.buckets import make_buckets
from retinanet_jax.planning import report
from retinanet_jax.planning.largest_batch import LargestBatch, find_largest_batch
from retinanet_jax.planning.programs import BATCH_FIELDS, Program, Workload
from retinanet_jax.planning.topologies import Topology, find_topology, make_devices
from retinanet_jax.utils.files import check_absent, make_writable, write_json

Bucket = tuple[int, int]


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `plan`."""
    define_config(
        values,
        argv,
        str(CONFIGS / "r50_fpn.py"),
        "The config, FILE or FILE:ARGUMENT, as of `train`. The default is configs/r50_fpn.py. "
        "--config.FIELD=VALUE overrides a field.",
    )
    flags.DEFINE_string(
        "topology",
        None,
        "The devices: a TPU slice as Google Cloud names it, such as v5e-16, v6e-256, v4-32 or "
        "v5p-128, v5e-256x4 for four slices, or v5e:4x4 by its chips; or h100, h200, a100, or "
        "several GPUs, h100x8. A wrong name prints the list.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        list(BATCH_FIELDS),
        "Whether to compile the training step, for config.data.batch_size images, or the "
        "detection of evaluation, for config.data.eval_batch_size. The default is train.",
        flag_values=values,
    )
    _define_program_flags(values)


def _define_program_flags(values: flags.FlagValues) -> None:
    """Define the flags of the programs to compile, and of the results."""
    flags.DEFINE_list(
        "buckets",
        [],
        "The shapes of the images to compile for, such as 800x1344,1344x800. The default is all "
        "of config.data.buckets; each takes minutes.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_classes", 80, "The number of classes. The default is COCO's 80.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_boxes",
        96,
        "The number of boxes that each image is padded to: the most in an image of the dataset, "
        "rounded up to a multiple of 8. The default is COCO's 96.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "largest_batch",
        "verify",
        ["none", "estimate", "verify"],
        "How to find the largest batch size that fits: not at all, from a second compilation, or "
        "by also compiling for the result. The default is verify.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "A JSON file to write with all results; it must not exist.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Compile for each bucket, and print what each program needs."""
    require(values, topology="v5e-16")
    config, topology = values.config, find_topology(values.topology)
    assume_batch_size(config)
    check_fields(config)
    buckets = parse_buckets(values.buckets, config)
    workload = make_workload(values, config, topology, buckets)
    output = output_path(values.output) if values.output else None
    if output:  # minutes before it is written
        check_absent(output, "file")
        make_writable(output.parent)
    # A program from jax's cache would have no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    print_summary(workload, topology)
    programs = [
        compile_bucket(workload, topology, bucket, f"{index}/{len(buckets)}")
        for index, bucket in enumerate(buckets, 1)
    ]
    warnings = report.warnings(workload, programs, topology)
    print(*(f"warning: {text}" for text in warnings), report.NOT_MEASURED, sep="\n", flush=True)
    results = functools.partial(report.as_json, workload, topology, programs, warnings)
    if output:  # now, too: the search takes minutes more
        write_json(output, results(None))
    if values.largest_batch != "none":
        verifies = values.largest_batch == "verify"
        largest = print_largest_batch(workload, topology, programs, verifies=verifies)
        if output:
            write_json(output, results(largest))
    if output:
        print(f"written to {values.output}")


def parse_buckets(items: list[str], config: ConfigDict) -> list[Bucket]:
    """Return the buckets to compile for, those with the most pixels first.

    Args:
        items: HEIGHTxWIDTH of --buckets; [] for all of the config.
        config: The config.

    Raises:
        ValueError: If a bucket is no HEIGHTxWIDTH or not one of the config.
    """
    known = [(height, width) for height, width in make_buckets(config.data.buckets).tolist()]
    names = {f"{height}x{width}": (height, width) for height, width in reversed(known)}
    for item in items:
        if item not in names:
            raise ValueError(f"--buckets={item} is no bucket of the config: {', '.join(names)}.")
    return [names[item] for item in items or names]


def make_workload(
    values: Any, config: ConfigDict, topology: Topology, buckets: list[Bucket]
) -> Workload:
    """Return what to compile, after the checks that training makes, too.

    Args:
        values: The flags.
        config: The config.
        topology: The devices.
        buckets: The buckets.

    Raises:
        ValueError: If a number is not positive, the compiler is not installed, or the devices
            cannot split the batch or the images.
    """
    for name in ("num_classes", "num_boxes"):
        if values[name].value < 1:
            raise ValueError(f"--{name}={values[name].value} must be at least 1.")
    mesh = sharding.make_mesh(config.space, devices=make_devices(topology))
    workload = Workload(
        config,
        values.mode,
        mesh,
        values.num_classes,
        values.num_boxes,
        topology.compiler_options,
    )
    field = f"data.{BATCH_FIELDS[values.mode]}"
    sharding.check_batch_size(field, workload.batch_size, mesh, workload.num_parts)
    sharding.check_heights(buckets, config.anchors.max_level, mesh)
    return workload


def print_summary(workload: Workload, topology: Topology) -> None:
    """Print what is compiled for which devices."""
    shape, chip = workload.mesh.shape, topology.chip
    program = {"train": "training step", "predict": "detection"}[workload.mode]
    parts = f" in {workload.num_parts} parts" if workload.num_parts > 1 else ""
    print(
        f"{program}{parts} on {topology.name}: {shape['data']} x {shape['space']} devices (data x "
        f"space), {report.gib(topology.usable_memory)} GiB for programs of each; "
        f"{workload.config.dtype}, {workload.num_classes} classes, {workload.num_boxes} boxes an "
        f"image\n{chip.platform} compiler on this machine's processor; no {chip.platform} device "
        "is used",
        flush=True,
    )


def compile_bucket(
    workload: Workload, topology: Topology, bucket: Bucket, position: str
) -> Program:
    """Compile for a bucket, and print progress and the table of the program.

    Args:
        workload: What is compiled.
        topology: The devices.
        bucket: Height and width of the images.
        position: Which of all buckets it is.
    """
    program = compile_with_progress(workload, bucket, position, workload.batch_size)
    print(report.program_text(program, topology, workload.mesh.shape["data"]), flush=True)
    return program


def compile_with_progress(
    workload: Workload, bucket: Bucket, position: str, batch_size: int
) -> Program:
    """Compile for a bucket and a batch size, with a line before and after it.

    Args:
        workload: What is compiled.
        bucket: Height and width of the images.
        position: Which compilation it is.
        batch_size: The number of images over all devices.
    """
    height, width = bucket
    name = f"{position}: {height} x {width}, batch size {batch_size}"
    print(f"compiling {name}; this takes minutes for a large network", flush=True)
    program = workload.compile(bucket, batch_size)
    needed = "too much memory" if program.memory is None else f"{report.gib(program.needed)} GiB"
    print(f"compiled {name}: {program.seconds:.0f} s, {needed}", flush=True)
    return program


def print_largest_batch(
    workload: Workload, topology: Topology, programs: list[Program], *, verifies: bool
) -> LargestBatch:
    """Find and print the largest batch size, for the bucket that needs the most memory.

    Args:
        workload: What is compiled.
        topology: The devices.
        programs: The programs of all buckets.
        verifies: Whether to compile the program of the result.
    """
    most = max(programs, key=lambda program: program.needed)
    num_data = workload.mesh.shape["data"]
    largest = find_largest_batch(
        functools.partial(compile_with_progress, workload, most.bucket, "largest batch"),
        most,
        units=batch_units(workload, topology),
        limit=topology.usable_memory,
        verifies=verifies,
    )
    print(report.largest_batch_text(largest, topology, num_data), flush=True)
    return largest


def batch_units(workload: Workload, topology: Topology) -> list[int]:
    """Return the numbers of which batch sizes are to be multiples, the preferred one first.

    Args:
        workload: What is compiled.
        topology: The devices.
    """
    unit = parts = workload.mesh.shape["data"] * workload.num_parts
    if workload.mode == "train" and workload.config.loss.ema_images:
        unit = math.lcm(unit, workload.config.loss.ema_images)
    if topology.chip.platform == "tpu":
        return [math.lcm(unit, parts * sharding.TPU_SUBLANES), unit]
    return [unit]


COMMAND = Command(
    usage=(
        "retinanet-jax plan --topology=NAME [--config=FILE[:ARGUMENT]] [--mode=train|predict] "
        "[--config.FIELD=VALUE ...]"
    ),
    description=(
        "Compiles the training step or the detection for TPUs or GPUs that are not here, and "
        "prints for each bucket whether it fits into their memory, the largest batch size that "
        "does, and what each device computes, reads and exchanges in a step. It needs no device "
        "and no dataset, but the extra `tpu` or `cuda`, and minutes for each program."
    ),
    define_flags=define_flags,
    run=run,
)
