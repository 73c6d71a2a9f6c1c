"""Write the golden checkpoint of this version, which later versions must read and resume.

Run, for each release: python scripts/make_golden_checkpoint.py
It trains a tiny detector twice, to step 196 and then to step 200, in less than a minute, and writes
tests/golden/checkpoint_VERSION.tar.xz (the checkpoint of step 196) and checkpoint_VERSION.json (its
detections, and the metrics of the steps after it). tests/test_checkpoint.py reads both.
"""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

import retinanet_jax
from retinanet_jax.detector import Detector

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
STEP, LAST_STEP = 196, 200
MIN_SCORE = 0.1
RUN = (
    "--config=configs/shapes.py:tiny",
    "--config.model.backbone_width=4",
    "--config.model.fpn_channels=8",
    "--config.data.rot90=True",
    f"--config.checkpoint_every={STEP}",
    "--config.log_every=1",
    "--config.keep_checkpoints=3",
    "--config.data.loader=numpy",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.05",
    "--config.detections.top_k=100",
    "--config.seed=3",
    f"--config.total_steps={LAST_STEP}",
    "--mode=train",
)


def versions() -> str:
    """Return the versions, the processor and the date that the numbers are of."""
    packages = ("jax", "flax", "orbax-checkpoint")
    numbers = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"retinanet_jax {retinanet_jax.__version__}, {numbers}, Python "
        f"{platform.python_version()}, {platform.machine()}, {datetime.date.today()}"
    )


def detections(folder: pathlib.Path, images: pathlib.Path) -> list[dict[str, Any]]:
    """Return a checkpoint's detections in a folder of images that score MIN_SCORE or more."""
    results = []
    paths = sorted(images.iterdir())
    for image_id, in_image in enumerate(Detector.load(folder).batch(paths), 1):
        results += in_image.to_coco(image_id)
    return [result for result in results if result["score"] >= MIN_SCORE]


def later_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Return the metrics of the steps after STEP, without those of speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    speeds = ("images_per_second", "data_wait", "goodput", "time/")
    return [
        {name: value for name, value in line.items() if not name.startswith(speeds)}
        for line in metrics
        if line["step"] > STEP
    ]


def main() -> None:
    """Write both files of this version."""
    name = f"checkpoint_{retinanet_jax.__version__}"
    if (GOLDEN / f"{name}.json").exists():
        sys.exit(f"tests/golden/{name}.json exists; a released checkpoint is never replaced.")
    with tempfile.TemporaryDirectory() as scratch:
        workdir = pathlib.Path(scratch) / "run"
        train = [sys.executable, "-m", "retinanet_jax.main", *RUN, f"--workdir={workdir}"]
        subprocess.run(train, cwd=ROOT, check=True)
        folder = workdir / "checkpoints" / str(STEP)
        (images,) = (workdir / "data").glob("shapes-1*/images")
        golden = {
            "source": versions(),
            "run": list(RUN),
            "contents": f"checkpoint of step {STEP}; detections that score {MIN_SCORE} or more on "
            f"the run's {len(list(images.iterdir()))} training images (shapes, seed 1, 96 pixels); "
            f"the metrics of steps {STEP + 1} to {LAST_STEP}",
            "metrics": later_metrics(workdir),
            "detections": detections(folder, images),
        }
        shutil.rmtree(workdir / "checkpoints" / str(LAST_STEP))
        with tarfile.open(GOLDEN / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(folder, f"checkpoints/{STEP}")
    # Each detection is on a line of its own.
    lines = ",\n".join(map(json.dumps, golden.pop("detections")))
    text = json.dumps(golden, indent=1).removesuffix("\n}")
    (GOLDEN / f"{name}.json").write_text(f'{text},\n "detections": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
