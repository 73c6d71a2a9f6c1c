"""Boxes drawn on pictures, from a checkpoint.

python -m retinanet_jax.predict --checkpoint=DIR --output=DIR IMAGE_OR_FOLDER...

Writes OUTPUT/detections.json (COCO's results format and `file_name`, boxes in pixels of the
original picture) and every picture with its boxes drawn. Needs neither TensorFlow nor pycocotools.
"""

import functools
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from retinanet_jax import checkpoint, command, core, datasets, visualize
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.transforms import decode_image, pad, resize
from retinanet_jax.detector import build_model, detect
from retinanet_jax.evaluate import coco_results
from retinanet_jax.report import duration, write_json

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A working directory that training wrote, or one checkpoint in it."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where detections.json and the pictures go.")
_DRAW_THRESHOLD = flags.DEFINE_float(
    "draw_threshold", 0.5, "Score from which a box is drawn; detections.json holds all."
)


class Found(NamedTuple):
    """What was found on one picture."""

    image_id: int  # the picture's number in the list, from 1
    path: pathlib.Path
    image: np.ndarray  # H W 3 uint8
    detections: core.Detections  # boxes in pixels of `image`


class Predictor:
    """A trained detector for pictures of any size."""

    def __init__(self, trained: checkpoint.Trained) -> None:
        self.categories = trained.categories
        self._config = trained.config
        self._variables = jax.device_put(trained.variables)
        model = build_model(trained.config, len(trained.categories))
        self._detect = jax.jit(functools.partial(detect, model=model, config=trained.config))

    def __call__(self, image: np.ndarray) -> core.Detections:
        """Detections on one picture (H x W x 3 uint8 RGB), boxes in its pixels."""
        plan = datasets.eval_plan(self._config, np.array([image.shape[:2]]), batch_size=1)
        detections = self._detect(self._variables, one_image_batch(image, plan.batch(0)))
        return jax.tree.map(lambda x: x[0], jax.device_get(detections))


def one_image_batch(image: np.ndarray, rows) -> Batch:
    """A batch of one picture without ground truth, as evaluation would make it."""
    height, width = rows.resized[0]
    return Batch(
        images=pad(resize(image, height, width, kind=rows.resize), *rows.bucket)[None],
        sizes=np.array([[height, width]], np.float32),
        scales=(np.array([image.shape[:2]]) / (height, width)).astype(np.float32),
        boxes=np.zeros((1, 0, 4), np.float32),
        classes=np.zeros((1, 0), np.int32),
        mask=np.zeros((1, 0), bool),
        crowd_boxes=np.zeros((1, 0, 4), np.float32),
        crowd_mask=np.zeros((1, 0), bool),
        colors=np.array([[1, 1, 1, 0]], np.float32),
        dropped=np.zeros(1, np.int32),
        weights=np.ones(1, np.float32),
        index=np.zeros(1, np.int32),
    )


def find_pictures(paths: Iterable[str]) -> list[pathlib.Path]:
    """The picture files at `paths`; folders are searched to the bottom.

    Raises FileNotFoundError where a path does not exist or there is no picture at all.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such picture or folder.")
    if not found:
        raise FileNotFoundError(
            f"no picture ({', '.join(PICTURES)}) in {', '.join(paths) or 'an empty list'}; "
            "give pictures or folders after the flags."
        )
    return found


def predict_files(
    predictor: Predictor, pictures: Sequence[pathlib.Path], unreadable: list[str]
) -> Iterator[Found]:
    """Detections of each picture, with a progress line; what can't be read joins `unreadable`."""
    began = time.monotonic()
    for number, path in enumerate(pictures, 1):
        try:
            image = decode_image(path.read_bytes(), str(path))
            found = Found(number, path, image, predictor(image))
        except (OSError, ValueError) as error:
            unreadable.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        yield found
        each = (time.monotonic() - began) / number
        print(
            f"{number}/{len(pictures)} {path.name}  {1 / each:.1f} images/s  "
            f"{duration(each * (len(pictures) - number))} left",
            flush=True,
        )


def drawn(found: Found, names: Sequence[str], threshold: float) -> Image.Image:
    """The picture with its boxes that score at least `threshold`."""
    boxes, scores, classes, mask = found.detections
    kept = np.flatnonzero(mask & (scores >= threshold))
    labels = [f"{names[classes[i]]} {scores[i]:.2f}" for i in kept]
    return visualize.draw(found.image, boxes[kept], labels, classes[kept])


def output_name(path: pathlib.Path, taken: set[str]) -> str:
    """A file name for the drawn picture that no other has."""
    name, number = f"{path.stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{path.stem}-{number}.jpg"
    taken.add(name)
    return name


def run(checkpoint_path: str, output: pathlib.Path, paths: Sequence[str], threshold: float) -> int:
    """Predicts on all pictures; returns how many could not be read."""
    pictures = find_pictures(paths)
    trained = checkpoint.load(checkpoint_path)
    output.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(trained)
    names = [category.name for category in trained.categories]
    results, unreadable = [], []
    # Where the pictures lie in the output folder themselves, none of them is overwritten.
    taken = {path.name for path in pictures if path.resolve().parent == output.resolve()}
    for found in predict_files(predictor, pictures, unreadable):
        results += [
            {**result, "file_name": str(found.path)}
            for result in coco_results(found.detections, found.image_id, trained.categories)
        ]
        drawn(found, names, threshold).save(output / output_name(found.path, taken), quality=92)
    write_json(output / "detections.json", results)
    print(
        f"{len(results)} detections on {len(pictures) - len(unreadable)} pictures: "
        f"{output / 'detections.json'}"
    )
    for line in unreadable:
        logging.error("%s", line)
    return len(unreadable)


def main(argv: list[str]) -> None:
    """Exit status 1 where a picture could not be read, after all others are done."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    if not _CHECKPOINT.value or not _OUTPUT.value:
        sys.exit("error: give --checkpoint=DIR and --output=DIR, then pictures or folders.")
    output = pathlib.Path(_OUTPUT.value).expanduser()
    with command.told_in_one_line():
        failed = run(_CHECKPOINT.value, output, argv[1:], _DRAW_THRESHOLD.value)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app.run(main)
