"""Compare ways to train on a few hundred photographs: AP and AP50 by minute of training.

Run: python scripts/few_images.py runs/cards --train=cards/train.json --eval=cards/test.json
The same command resumes after an interruption: finished runs are not repeated.

Each row is `configs/finetune.py:imagenet` with further flags, "plain" without any, trained for the
same number of steps on the same images. The script writes few_images.json and the plot
few_images.png (requires matplotlib), and prints a table. The minutes are those of the training
steps: without compilations and evaluations.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

from retinanet_jax.checkpoint import newest_config
from retinanet_jax.utils.files import write_json

ROWS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "half the rate": ("--config.optimizer.learning_rate=1.4e-4",),
    "no augmentation": ("--config.data.augmentation=",),
    "medium": ("--config.data.augmentation=medium",),
    "strong": ("--config.data.augmentation=strong",),
    "mosaic": ("--config.data.mosaic=0.5",),
    "boxes count double": ("--config.loss.box_weight=2.0",),
    "ema": ("--config.optimizer.ema_decay=0.999",),
    "ema, medium": ("--config.optimizer.ema_decay=0.999", "--config.data.augmentation=medium"),
    "ema, strong": ("--config.optimizer.ema_decay=0.999", "--config.data.augmentation=strong"),
}
STEPS, EVALUATIONS = 2_500, 5
METRICS = ("AP", "AP50")


def train(options: argparse.Namespace, row: str, seed: int, workdir: pathlib.Path) -> None:
    """Train one row, in a process of its own, from its newest checkpoint if there is one."""
    every = options.steps // EVALUATIONS
    flags = {
        "config": "configs/finetune.py:imagenet",
        "workdir": workdir,
        "config.seed": seed,
        "config.total_steps": options.steps,
        "config.evaluate_every": every,
        "config.checkpoint_every": every,
        "config.data.validation_fraction": 0.0,
        "config.data.flip": options.flip,
        "config.data.train.annotations": options.train,
        "config.data.train.images": options.train.with_suffix(""),
        "config.data.eval.annotations": options.eval,
        "config.data.eval.images": options.eval.with_suffix(""),
    }
    command = [sys.executable, "-m", "retinanet_jax", "train"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run([*command, *ROWS[row]], check=True)


def read_run(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run: the steps, the minutes of training until then, AP, AP50.

    AP is 0 where it is undefined.

    Args:
        workdir: The run's working directory.
    """
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "images_per_second" in line]
    speeds = sorted(line["images_per_second"] for line in logged)
    config = newest_config(workdir)
    assert config is not None, "the run has finished"
    batch_size = config.data.batch_size
    # The median: the first steps, and those next to evaluations, wait for compilations.
    seconds_per_step = batch_size / speeds[len(speeds) // 2]
    evaluations = []
    for step in sorted(int(f.stem) for f in (workdir / "eval").glob("*.json") if f.stem.isdigit()):
        metrics = json.loads((workdir / "eval" / f"{step}.json").read_text())
        minutes = step * seconds_per_step / 60
        evaluations.append(
            {"step": step, "minutes": minutes} | {name: metrics[name] or 0.0 for name in METRICS}
        )
    return evaluations


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of all rows and seeds; each finished run is read, not repeated."""
    results = []
    for seed, row in itertools.product(options.seeds, options.rows):
        workdir = options.output / f"{row.replace(', ', '-')}-seed{seed}-{options.steps}"
        if not (workdir / "eval" / f"{options.steps}.json").exists():
            print(f"\n== {row}, seed {seed}", flush=True)
            train(options, row, seed, workdir)
        results.append({"row": row, "seed": seed, "evaluations": read_run(workdir)})
        write_json(options.output / "few_images.json", results)
        plot(results, options.output / "few_images.png")
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return a table of the last evaluation of each run."""
    lines = [["row", "seed", "steps", "minutes", *METRICS]]
    lines.append(["---"] * len(lines[0]))
    for result in results:
        last = result["evaluations"][-1]
        values = (f"{last[name]:.3f}" for name in METRICS)
        cells = [result["row"], result["seed"], last["step"], f"{last['minutes']:.0f}", *values]
        lines.append([str(cell) for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(results: list[dict[str, Any]], file: pathlib.Path) -> None:
    """Draw AP and AP50 of each run by minute; runs of one row have one color.

    Args:
        results: As `run_all` returns.
        file: The PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots(1, len(METRICS))
    rows = list(dict.fromkeys(result["row"] for result in results))
    for axis, name in zip(axes, METRICS, strict=True):
        for result in results:
            minutes, values = zip(
                *((e["minutes"], e[name]) for e in result["evaluations"]), strict=True
            )
            index = rows.index(result["row"])
            is_first = result["seed"] == results[0]["seed"]
            label = result["row"] if is_first else None
            axis.plot(minutes, values, f"C{index}o{'-' if is_first else '--'}", label=label, ms=3)
        axis.set(xlabel="minutes of training", ylabel=name, ylim=(0, 1))
        axis.grid(alpha=0.3)
    has_other_seeds = any(result["seed"] != results[0]["seed"] for result in results)
    title = "solid: first seed" if has_other_seeds else None
    axes[0].legend(title=title, loc="lower right", fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run the rows and seeds that the command line selects, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="The folder of all runs and the results.")
    parser.add_argument(
        "--train",
        type=pathlib.Path,
        required=True,
        help="COCO's instances JSON of training; its images are in the folder of the same name.",
    )
    parser.add_argument(
        "--eval", type=pathlib.Path, required=True, help="The same of the evaluation."
    )
    parser.add_argument(
        "--flip", action="store_true", help="Flip images: not where left and right differ."
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="The rows.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="The seeds of each row.")
    parser.add_argument("--steps", type=int, default=STEPS, help="The training steps of each run.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"\n{table(run_all(options))}")


if __name__ == "__main__":
    main()
