"""Measurements of whole processes: the peak memory, the largest batch size and the startup time."""

import functools
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from retinanet_jax.config import CONFIGS
from scripts.benchmark import torchvision_reference
from scripts.benchmark.timing import compile_call
from scripts.benchmark.workloads import Setting, make_workload, training_step

PROGRAM = pathlib.Path(__file__).parent  # `python FOLDER` runs the benchmark
OURS, REFERENCE = "ours", "reference"
NUM_STEPS = 3  # training steps of which the peak memory is measured
STARTUP = (  # R50-FPN on synthetic images of 256 x 256, one step
    f"--config={CONFIGS / 'r50_fpn.py'}:tiny",
    "--mode=train",
    *(f"--config.{name}=1" for name in ("total_steps", "checkpoint_every", "evaluate_every")),
    *(f"--config.data.{name}=256" for name in ("train.image_size", "eval_short_side", "long_side")),
    *("--config.data.short_sides=(256,)", "--config.data.buckets=((256,256),)"),
    *("--config.data.loader=numpy", "--config.model.norm=frozen_batch"),
    *("--config.model.backbone=resnet50", "--config.model.backbone_width=64"),
    *("--config.model.fpn_channels=256", "--config.model.head_depth=4"),
)


def process_memory(field: str) -> int:
    """Return the resident memory of this process in bytes, as Linux reports it.

    Args:
        field: "VmRSS" for the current number, "VmHWM" for the peak since it was last reset.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def training_peak(implementation: str, setting: Setting) -> int:
    """Return the peak number of bytes of a training state and its steps in this process.

    The process must not have done anything else before.

    Args:
        implementation: OURS or REFERENCE.
        setting: The inputs.
    """
    workload = make_workload(setting)
    device = torchvision_reference.prepare_torch()
    import torch
    import torchvision  # noqa: F401

    if implementation == OURS:
        call = training_step(workload)
        run, _ = compile_call(call)
        # Memory that tracing has allocated is not part of training.
        before = process_memory("VmRSS") - sum(x.nbytes for x in jax.tree.leaves(call.arguments))
    else:
        before = process_memory("VmRSS")
        variant = torchvision_reference.Variant(channels_last=True, compiled=False)
        reference = torchvision_reference.make_reference(workload, variant)
        run = torchvision_reference.make_training_step(reference)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(NUM_STEPS):
        run()
    if device == "cpu":
        return process_memory("VmHWM") - before
    if implementation == OURS:
        return (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"]
    return torch.cuda.max_memory_allocated()


def compare_peaks(setting: Setting) -> dict[str, Any]:
    """Return the peak memory of training, ours and the reference's, each in a separate process."""
    height, width = setting.size
    command = [
        sys.executable,
        str(PROGRAM),
        f"--sizes={height}x{width}",
        f"--batch={setting.batch}",
    ]
    command += [f"--dtypes={setting.dtype}", f"--backbone={setting.backbone}"]
    command += [f"--reference={setting.reference}"]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}

        def peak(implementation: str) -> int:
            output = subprocess.check_output(
                [*command, f"--peak_of={implementation}"], env=environment
            )
            return int(output.splitlines()[-1])

        peak(OURS)  # only to compile, which needs additional memory; the next process does not
        ours, reference = peak(OURS), peak(REFERENCE)
    figures = {"ours_bytes": ours, "reference_bytes": reference, "ratio": ours / reference}
    return {**setting._asdict(), **figures}


def largest_batch(memory_of: Callable[[int], float], limit: float) -> int:
    """Return the largest batch size within a memory limit, 0 if not even one image fits.

    Args:
        memory_of: Returns the bytes that a batch size needs. Each call compiles a program, and each
            further image needs nearly the same number of bytes.
        limit: The limit in bytes.
    """
    memory_of = functools.cache(memory_of)
    if memory_of(1) > limit:
        return 0
    batch = 1 + max(0, int((limit - memory_of(1)) // (memory_of(2) - memory_of(1))))
    while memory_of(batch) > limit:
        batch -= 1
    while memory_of(batch + 1) <= limit:
        batch += 1
    return batch


def find_largest_batch(setting: Setting, limit_gib: float) -> Setting:
    """Return the setting with the largest batch size for training, by XLA's memory analysis.

    Args:
        setting: The inputs; its batch is ignored.
        limit_gib: The limit in GiB; 0 for the device's own.

    Raises:
        ValueError: If there is no limit, because the device does not report one.
    """
    stats = jax.devices()[0].memory_stats() or {}
    limit = limit_gib * 2**30 or stats.get("bytes_limit")
    if not limit:
        raise ValueError("this device reports no memory limit; give --limit_gib=NUMBER.")

    def memory_of(batch: int) -> float:
        workload = make_workload(setting._replace(batch=batch))
        return compile_call(training_step(workload))[1]["memory"]

    return setting._replace(batch=largest_batch(memory_of, limit))


def startup_seconds(folder: pathlib.Path) -> dict[str, list[float]]:
    """Return the seconds from a command to its first step or image.

    Args:
        folder: An empty folder for the run.

    Returns:
        For training ("main") and prediction ("predict"): the seconds with an empty cache of
        compiled programs, then those with the programs that the first run left.
    """
    image, workdir = folder / "image.png", folder / "run"
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(image)
    train = ["retinanet_jax.main", *STARTUP, f"--workdir={workdir}"]
    cold = seconds_to_line("step 1/", train, folder)
    shutil.rmtree(workdir)
    seconds = {"main": [cold, seconds_to_line("step 1/", train, folder)]}
    predict = ["retinanet_jax", "predict", f"--checkpoint={workdir}", f"--output={folder}"]
    predict.append(str(image))
    seconds["predict"] = [seconds_to_line("predicting: 1/1", predict, folder) for _ in range(2)]
    return seconds


def seconds_to_line(start: str, command: list[str], folder: pathlib.Path) -> float:
    """Return the seconds from the start of a command to a line of its output.

    Args:
        start: The beginning of the line.
        command: A module, which is run with `python -m`, and its arguments.
        folder: The folder of the cache of compiled programs.

    Raises:
        ValueError: If the command fails or does not print such a line.
    """
    line = [sys.executable, "-m", *command]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    began, seconds = time.perf_counter(), None
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for output in process.stdout or ():
            if seconds is None and output.startswith(start):
                seconds = time.perf_counter() - began
    if seconds is None or process.returncode:
        raise ValueError(
            f"{shlex.join(line)} must print a line that starts with {start!r} and end with status "
            f"0, but ended with status {process.returncode}; run it to see its output."
        )
    return seconds
