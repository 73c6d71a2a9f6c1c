"""A trained detector in three lines of Python.

    detector = Detector.load("runs/mine")
    result = detector("street.jpg")
    result.draw().save("drawn.jpg")

Pictures are read, resized and padded as in evaluation, and so have evaluation's detections.
"""

import dataclasses
import difflib
import functools
import io
import itertools
import os
import pathlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from retinanet_jax import checkpoint, core, input_pipeline, visualize
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.image_files import Picture, _name, _pixels
from retinanet_jax.data.plan import BatchPlan
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.transforms import pad, resize
from retinanet_jax.evaluation.coco_metrics import coco_results
from retinanet_jax.modeling import build_model, detect
from retinanet_jax.utils.threads import WORKERS, ahead, grouped, in_order

PATIENCE = 4  # batches' worth of later pictures for which one waits until its batch is full
NOTEBOOK_SIDE = 1024  # pixels, of what a notebook shows


class Detection(NamedTuple):
    """One object that was found."""

    box: Float32[np.ndarray, "4"]  # x0 y0 x1 y1 in pixels of the picture
    score: float
    name: str
    category_id: int  # the data set's own


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What was found on one picture, best score first; iterating gives a `Detection` each."""

    image: UInt8[np.ndarray, "H W 3"]  # RGB, upright
    detections: core.Detections  # as the network numbers and places them; all rows are real
    categories: tuple[Category, ...]  # of the detector; class k is categories[k]

    @property
    def boxes(self) -> Float32[np.ndarray, "n 4"]:
        """(x0, y0, x1, y1) in pixels of the picture; the maximum is exclusive."""
        return core.yxyx_to_xyxy(np.asarray(self.detections.boxes))

    @property
    def scores(self) -> Float32[np.ndarray, " n"]:
        """From 0 to 1, falling."""
        return np.asarray(self.detections.scores)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the categories."""
        return tuple(self.categories[k].name for k in self.detections.classes)

    @property
    def category_ids(self) -> Int[np.ndarray, " n"]:
        """As the data set numbers them."""
        return np.array([self.categories[k].id for k in self.detections.classes], np.int64)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = self.boxes, self.scores.tolist(), self.names, self.category_ids.tolist()
        return itertools.starmap(Detection, zip(*columns, strict=True))

    def draw(self, threshold: float = 0.5) -> Image.Image:
        """The picture with the boxes that score `threshold` or more."""
        shown = self.scores >= threshold
        boxes, scores, classes, _ = (np.asarray(x)[shown] for x in self.detections)
        labels = [
            visualize.score_label(self.categories[k].name, score)
            for k, score in zip(classes, scores, strict=True)
        ]
        return visualize.draw(self.image, boxes, labels, classes)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """In COCO's results format: original category ids, boxes as x, y, width, height."""
        return coco_results(self.detections, image_id, self.categories)

    def __getitem__(self, number: int) -> Detection:
        return tuple(self)[number]

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        shown = [visualize.score_label(one.name, one.score) for one in itertools.islice(self, 5)]
        more = ", ..." if len(self) > len(shown) else ""
        found = f": {', '.join(shown)}{more}" if shown else ""
        return f"<{len(self)} detections on {width} x {height} pixels{found}>"

    def _repr_png_(self) -> bytes:
        picture, png = self.draw(), io.BytesIO()
        picture.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        picture.save(png, "PNG")
        return png.getvalue()


class _Prepared(NamedTuple):
    """A picture, and what the network reads of it."""

    image: UInt8[np.ndarray, "H W 3"]
    row: Batch  # of one


class Detector:
    """A trained detector for pictures of any size, on jax's default device.

    Attributes:
        trained: The checkpoint, its variables on the device, its config as it is used here.
    """

    def __init__(
        self,
        trained: checkpoint.Checkpoint,
        *,
        score_threshold: float | None = None,
        categories: Iterable[str] | None = None,
        max_detections: int | None = None,
    ) -> None:
        """What `load` says; `trained` is what `checkpoint.load` returns."""
        self._wanted = _wanted(trained, categories)
        config = _with_limits(trained.config, score_threshold, max_detections)
        variables = jax.device_put(trained.variables)
        self.trained = trained._replace(config=config, variables=variables)
        model = build_model(config, len(trained.categories))
        self._detect = jax.jit(functools.partial(detect, model=model, config=config))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        score_threshold: float | None = None,
        categories: Iterable[str] | None = None,
        max_detections: int | None = None,
    ) -> "Detector":
        """Reads a checkpoint: a working directory's best by AP (else newest), or a step's folder.

        Args:
            path: the folder.
            score_threshold: detections score more; None: as the checkpoint's config says.
            categories: names; of what was found, only these are given. None: all.
            max_detections: of a picture, before `categories` choose; None: as the config says.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: a limit is out of range, or a category unknown.
        """
        return cls(
            checkpoint.load(pathlib.Path(path)),
            score_threshold=score_threshold,
            categories=categories,
            max_detections=max_detections,
        )

    def __repr__(self) -> str:
        return f"<Detector of {len(self.names)} categories, {self.trained.folder}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all categories that it was trained on."""
        return tuple(category.name for category in self.trained.categories)

    def __call__(self, image: Picture) -> Detections:
        """What is on one picture: a file, a Pillow image, or an array.

        An array is uint8, H x W x 3 in RGB or H x W in grey. Each shape of input that the config
        resizes to is compiled when it is first met.
        Raises ValueError where the picture cannot be read or used.
        """
        (result,) = self.batch([image], batch_size=1)
        return result

    def batch(self, images: Iterable[Picture], batch_size: int = 8) -> Iterator[Detections]:
        """The results of many pictures, in their order; those of one input shape share a call.

        `images` is read as results are asked for, a few batches ahead, so that files are decoded
        while the device computes; it may be endless. A result comes once later pictures have
        filled its batch, or 4 * batch_size of them have not. Batches that stay short are
        completed with fillers: each input shape compiles once.
        Raises ValueError where a picture cannot be read or used, in its place.
        """
        return map(_result_or_raise, self.outcomes(images, batch_size))

    def outcomes(
        self, images: Iterable[Picture], batch_size: int = 8
    ) -> Iterator[Detections | ValueError]:
        """`batch`, with the error itself in the place of a picture that cannot be read or used."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1; try 1.")
        if isinstance(images, str | os.PathLike | Image.Image):
            raise ValueError("one picture is no batch; give a list, or call detector(picture).")
        prepared = ahead(self._prepare, images, count=batch_size + WORKERS)
        groups = grouped(prepared, _kind, size=batch_size, patience=PATIENCE * batch_size)
        return in_order(self._run(groups, batch_size))

    def _prepare(self, image: Picture) -> _Prepared | ValueError:
        name = _name(image)
        try:
            pixels = _pixels(image, name)
            sizes = np.array([pixels.shape[:2]])
            rows = input_pipeline.eval_plan(self.trained.config, sizes, batch_size=1).batch(0)
        except ValueError as error:
            return error if name in str(error) else ValueError(f"{name}: {error}")
        return _Prepared(pixels, one_image_batch(pixels, rows))

    def _run(
        self, groups: Iterable[list[tuple[int, _Prepared | ValueError]]], batch_size: int
    ) -> Iterator[list[tuple[int, Detections | ValueError]]]:
        """Each group's outcomes; the next group runs while one is read."""
        running = None
        for group in groups:
            yield [(number, one) for number, one in group if isinstance(one, ValueError)]
            rows = [(number, one) for number, one in group if isinstance(one, _Prepared)]
            if not rows:
                continue
            batch = _stacked([one.row for _, one in rows], batch_size)
            started = rows, self._detect(self.trained.variables, batch)
            if running is not None:
                yield self._results(*running)
            running = started
        if running is not None:
            yield self._results(*running)

    def _results(
        self, rows: Sequence[tuple[int, _Prepared]], detections: core.Detections
    ) -> list[tuple[int, Detections | ValueError]]:
        found = jax.device_get(detections)
        results = []
        for row, (number, prepared) in enumerate(rows):
            boxes, scores, classes, mask = (x[row] for x in found)
            kept = mask & self._wanted[classes]
            own = core.Detections(boxes[kept], scores[kept], classes[kept], mask[kept])
            results.append((number, Detections(prepared.image, own, self.trained.categories)))
        return results


def one_image_batch(image: UInt8[np.ndarray, "H W 3"], rows: BatchPlan) -> Batch:
    """A batch of one picture without ground truth, as evaluation would make it.

    `rows`: the evaluation plan's batch of this picture alone.
    """
    height, width = rows.resized[0].tolist()
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


def _kind(prepared: _Prepared | ValueError) -> Hashable:
    """What may share a call."""
    return prepared.row.images.shape if isinstance(prepared, _Prepared) else ValueError


def _stacked(rows: Sequence[Batch], batch_size: int) -> Batch:
    """One batch; the last picture again at weight 0 where there are too few."""
    filler = rows[-1]._replace(weights=np.zeros(1, np.float32))
    rows = [*rows, *[filler] * (batch_size - len(rows))]
    return Batch(*map(np.concatenate, zip(*rows, strict=True)))


def _result_or_raise(outcome: Detections | ValueError) -> Detections:
    if isinstance(outcome, ValueError):
        raise outcome
    return outcome


def _with_limits(
    config: ConfigDict, score_threshold: float | None, max_detections: int | None
) -> ConfigDict:
    """The config with what is not None in its section detections."""
    if score_threshold is not None and not 0 <= score_threshold < 1:
        raise ValueError(f"score_threshold={score_threshold} must be from 0 to 1; try 0.05.")
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections={max_detections} must be at least 1; try 100.")
    limits = {"score_threshold": score_threshold, "max_detections": max_detections}
    config = config.copy_and_resolve_references()
    given = {name: limit for name, limit in limits.items() if limit is not None}
    config.update({"detections": given})
    return config


def _wanted(trained: checkpoint.Checkpoint, names: Iterable[str] | None) -> np.ndarray:
    """For each class whether it is among `names`; ValueError where none has such a name."""
    known = [category.name for category in trained.categories]
    if names is None:
        return np.ones(len(known), bool)
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or known[:10]
            raise ValueError(
                f"{name!r} is none of the {len(known)} categories of {trained.folder}; there is, "
                f"for example, {', '.join(close)}."
            )
    return np.array([name in names for name in known])
