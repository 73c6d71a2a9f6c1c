"""Measure the speed of the detector, of its parts and of the input pipeline on this machine.

Run: python scripts/benchmark [--what=train,inference,forward,parts,startup,input_pipeline]
         [--sizes=256x256,512x512,800x1344] [--dtypes=float32,bfloat16] [--batch=N] [--repeat=N]
         [--reference=torchvision|plain] [--memory] [--json=FILE]

docs/benchmark.md describes the measurements and their results. Only the input pipeline requires
TensorFlow.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

if not __package__:  # run as `python scripts/benchmark`
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

import jax

from retinanet_jax import compilation
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.progress import format_duration, one_line
from scripts.benchmark import input_pipeline, processes
from scripts.benchmark.rows import (
    COLUMNS,
    REFERENCE_COLUMNS,
    PlannedRow,
    measure_row,
    plan_rows,
    table_head,
    table_line,
)
from scripts.benchmark.timing import measure_ceilings
from scripts.benchmark.workloads import GROUPS, Setting

T = TypeVar("T")
DTYPES = ("float32", "bfloat16")
BY_DEFAULT = (*GROUPS, "startup")
ON_REQUEST = ("input_pipeline",)  # requires TensorFlow
INPUT_PIPELINE_BATCH = 8
# The default batch sizes for images of up to 256 x 256 pixels, up to 512 x 512, and larger.
BATCHES = {"cpu": (2, 2, 1), "other": (64, 32, 16)}
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "tensorflow")


class Parser(argparse.ArgumentParser):
    """A parser that raises an error instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message."""
        raise ValueError(message)


class Record:
    """All measured figures, written to a JSON file whenever a figure is added."""

    def __init__(self, path: pathlib.Path | None, figures: dict[str, Any]):
        """Start with some figures; nothing is written if `path` is None."""
        self.path = path
        self.figures = figures

    def add(self, name: str, figure: Any) -> None:
        """Append a figure to the list of that name."""
        self.figures.setdefault(name, []).append(figure)
        if self.path:
            write_json(self.path, self.figures)


def new_file(text: str) -> pathlib.Path:
    """Parse the path of a file to write; raise ArgumentTypeError if it exists."""
    if os.path.lexists(text):
        raise argparse.ArgumentTypeError(f"{text} exists; give another file.")
    return pathlib.Path(text)


def image_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH; raise ArgumentTypeError if a side is not a multiple of 32."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) % 32 == int(width) % 32 == 0):
        raise argparse.ArgumentTypeError(
            f"size {text!r} must be HEIGHTxWIDTH, multiples of 32; try 256x256."
        )
    return int(height), int(width)


def positive(text: str) -> int:
    """Parse an integer; raise ArgumentTypeError if it is less than 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1.")
    return int(text)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Return a parser of a name, which raises ArgumentTypeError if it is not among the choices."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(choices)}.")
        return text

    return parse


def comma_separated(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a parser of a list, separated by commas."""
    return lambda text: [parse(part) for part in text.split(",")]


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python scripts/benchmark", description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add(
        "--what",
        type=comma_separated(one_of((*BY_DEFAULT, *ON_REQUEST))),
        help=f"What to measure: some of {','.join((*BY_DEFAULT, *ON_REQUEST))}. The default is all "
        f"except {','.join(ON_REQUEST)}, or nothing with --memory.",
    )
    add(
        "--repeat",
        type=positive,
        default=7,
        help="The number of rounds; medians over them are printed. The default is %(default)s.",
    )
    add(
        "--batch",
        type=positive,
        help="The number of images per batch. The default depends on image size and device.",
    )
    add("--json", type=new_file, help="The JSON file to write all figures to; it must not exist.")
    add_detector_arguments(parser)
    add_pipeline_arguments(parser)
    return parser


def add_detector_arguments(parser: Parser) -> None:
    """Add the arguments that affect only the measurements of the detector."""
    add = parser.add_argument_group("detector").add_argument
    add(
        "--sizes",
        type=comma_separated(image_size),
        default="256x256,512x512,800x1344",
        help="The image sizes, HEIGHTxWIDTH in pixels. The default is %(default)s.",
    )
    add(
        "--dtypes",
        type=comma_separated(one_of(DTYPES)),
        help="The data types: float32, bfloat16 or both. The default is float32 on a CPU and both "
        "on an accelerator.",
    )
    add(
        "--backbone",
        choices=list(ARCHITECTURES),
        default="resnet50",
        help="The backbone. The default is %(default)s.",
    )
    add(
        "--reference",
        choices=["torchvision", "plain"],
        default="",
        help="Measure torchvision, or the network without masked padding, in the same rounds.",
    )
    add("--memory", action="store_true", help="Determine the largest batch size for training.")
    add(
        "--limit_gib",
        type=float,
        default=0,
        help="The memory limit for --memory, in GiB. The default is the device's.",
    )
    add("--cached", action="store_true", help="Reuse the programs that earlier runs compiled.")
    # Only for `processes`: print the peak memory of training in this process.
    add("--peak_of", choices=[processes.OURS, processes.REFERENCE], help=argparse.SUPPRESS)


def add_pipeline_arguments(parser: Parser) -> None:
    """Add the arguments that affect only the measurements of the input pipeline."""
    add = parser.add_argument_group("input pipeline").add_argument
    default = "The default is %(default)s."
    add("--images", type=pathlib.Path, help="A folder of JPEGs. By default they are generated.")
    add(
        "--num_generated",
        type=positive,
        default=64,
        help=f"The number of generated images. {default}",
    )
    add(
        "--short_side",
        type=positive,
        default=800,
        help=f"The short side of resized images in pixels. {default}",
    )
    add(
        "--long_side",
        type=positive,
        default=1333,
        help=f"The largest long side of resized images in pixels. {default}",
    )
    add(
        "--seconds",
        type=float,
        default=4.0,
        help=f"The seconds that each stage is measured in each round. {default}",
    )


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ValueError: If an argument is invalid.
    """
    options = make_parser().parse_args(arguments)
    if options.what is None:
        options.what = [] if options.memory else list(BY_DEFAULT)
    if options.dtypes is None:
        options.dtypes = ["float32"] if jax.default_backend() == "cpu" else list(DTYPES)
    return options


def default_batch(size: tuple[int, int], backend: str) -> int:
    """Return the default batch size for an image size on one of jax's backends."""
    index = sum(size[0] * size[1] > side**2 for side in (256, 512))
    return BATCHES.get(backend, BATCHES["other"])[index]


def environment() -> dict[str, Any]:
    """Return a description of the machine, the packages and the command, for the JSON file."""
    cpu_info = pathlib.Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "processor": [*names, platform.machine()][0],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
    }


def run(options: argparse.Namespace) -> None:
    """Measure and print everything that the options select."""
    backend = jax.default_backend()
    settings = [
        Setting(
            size,
            options.batch or default_batch(size, backend),
            dtype,
            options.backbone,
            options.reference,
        )
        for dtype in options.dtypes
        for size in options.sizes
    ]
    figures = environment() | {"backbone": options.backbone, "repeat": options.repeat}
    record = Record(options.json, figures)
    print(f"{figures['device']}; {figures['processor']}, {figures['cores']} cores", flush=True)
    rows = plan_rows(options.what, settings)
    if rows:
        run_rows(rows, options, record)
    if options.reference == "torchvision" and "train" in options.what:
        run_peaks(settings, record)
    for setting in settings if options.memory else ():
        largest = processes.find_largest_batch(setting, options.limit_gib)
        print(f"{'largest batch to train':26}{largest}", flush=True)
        record.add("largest_batches", largest._asdict())
    if "startup" in options.what:
        run_startup(record)
    if "input_pipeline" in options.what:
        fields = {name: getattr(options, name) for name in input_pipeline.Options._fields}
        fields["batch"] = options.batch or INPUT_PIPELINE_BATCH
        pipeline_options = input_pipeline.Options(**fields)
        figures = input_pipeline.measure_input_pipeline(pipeline_options, options.repeat)
        record.add("input_pipeline", figures)


def run_rows(rows: Sequence[PlannedRow], options: argparse.Namespace, record: Record) -> None:
    """Measure the rows of the table; print the table to stdout and progress to stderr.

    Args:
        rows: The rows to measure.
        options: The command line.
        record: The record of all figures.
    """
    ceilings = measure_ceilings(options.dtypes, options.repeat)
    record.add("ceilings", ceilings._asdict())
    products = (f"{x / 1e12:.3f} TFLOP/s in {name}" for name, x in ceilings.flops.items())
    print(f"at most {', '.join(products)} (matrix product), {ceilings.bytes / 1e9:.1f} GB/s")
    columns = COLUMNS + (REFERENCE_COLUMNS if options.reference else ())
    print(table_head(columns), flush=True)
    start = time.monotonic()
    for done, row in enumerate(rows):
        remaining = (time.monotonic() - start) / max(done, 1) * (len(rows) - done)
        progress = f"[{done + 1}/{len(rows)}] {row.name} {row.setting}"
        print(f"{progress}, {format_duration(remaining)} left", file=sys.stderr, flush=True)
        figures = measure_row(row, options.repeat, ceilings)
        print(table_line(figures, columns), flush=True)
        record.add("rows", figures)


def run_peaks(settings: Sequence[Setting], record: Record) -> None:
    """Compare the peak memory of training with that of the reference implementation."""
    for setting in settings:
        peaks = processes.compare_peaks(setting)
        ours, reference = peaks["ours_bytes"] / 2**30, peaks["reference_bytes"] / 2**30
        line = f"{'peak memory of training':26}{setting}  ours {ours:.2f} GiB, {setting.reference} "
        print(f"{line}{reference:.2f} GiB, ratio {peaks['ratio']:.3f}", flush=True)
        record.add("training_peaks", peaks)


def run_startup(record: Record) -> None:
    """Measure the time from a command to its first step or image."""
    with tempfile.TemporaryDirectory() as folder:
        startup = processes.startup_seconds(pathlib.Path(folder))
    for command, (cold, warm) in startup.items():
        print(f"startup of {command}: {cold:.1f} s cold, {warm:.1f} s warm", flush=True)
    record.add("startup", startup)


def main() -> None:
    """Run the benchmark; an invalid argument ends it with an error message of one line."""
    if "--reference=torchvision" in sys.argv:
        # Two libraries use the device: neither may reserve all of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        options = parse_arguments(sys.argv[1:])
        if options.peak_of:
            (size,), (dtype,) = options.sizes, options.dtypes
            setting = Setting(size, options.batch, dtype, options.backbone, options.reference)
            print(processes.training_peak(options.peak_of, setting))
            return
        if options.cached:
            compilation.use_compilation_cache()
        else:
            jax.config.update("jax_enable_compilation_cache", False)
        run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
