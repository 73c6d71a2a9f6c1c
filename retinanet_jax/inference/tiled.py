"""Detection in overlapping windows of an image, for images of any size."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retinanet_jax import input_pipeline
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.image_files import ImageLike, image_name
from retinanet_jax.data.sources.base import DatasetImage
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.detecting import ImageDetector, WrappingDetector
from retinanet_jax.inference.large_images import read_large, reduced, release_memory
from retinanet_jax.inference.merging import (
    ScoredBoxes,
    best_first,
    class_wise_nms,
    concatenate,
)
from retinanet_jax.inference.network_inputs import check_images
from retinanet_jax.inference.tiles import Grid, check_tiles, make_grid
from retinanet_jax.inference.window_merging import add_large, larger_than_windows, merge_by_owner
from retinanet_jax.utils.threads import map_ahead

TILE, OVERLAP = 1024, 0.2
MERGES = ("owner", "nms")
DRAWING_SIDE = 4096  # pixels: the longest side of a drawing; JPEG has at most 65,535

# Called with a name and a number of windows; what it returns, with the number that are done.
Report = Callable[[str, int], Callable[[int], None]]


class _Views(NamedTuple):
    """An image, and what the network sees of it."""

    pixels: UInt8[np.ndarray, "H W 3"]
    name: str
    grid: Grid  # a single window if the image fits in it
    factor: int  # by which the whole image is reduced; 0 if only the windows are seen

    def images(self) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        """Yield the windows and then the whole image."""
        for x0, y0, x1, y1 in self.grid.windows.tolist():
            yield self.pixels[y0:y1, x0:x1]
            release_memory(self.pixels)
        if self.factor:
            yield reduced(self.pixels, self.factor)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LargeImageDetections(Detections):
    """The objects detected in an image of any size. Its drawings have at most 4096 pixels a side.

    `image` may be mapped from a temporary file.
    """

    def draw(self, threshold: float = 0.5) -> Image.Image:
        """Return the image, reduced if it is large, with the boxes and labels of detections.

        Args:
            threshold: The lowest score that is drawn.
        """
        factor = math.ceil(max(self.image.shape) / DRAWING_SIDE)
        small = reduced(self.image, factor), self.boxes / factor
        return Detections(*small, self.scores, self.classes, self.categories).draw(threshold)


class TiledDetector(WrappingDetector):
    """A detector that sees an image in overlapping windows, so that small objects stay large.

    The network sees each window as it would see an image of that size, and an image that fits in
    one window exactly as without tiles. Each object is returned once, also at a window's border.

    Examples:
        >>> detector = TiledDetector(Detector.load("runs/ships"), tile=1024, overlap=0.2)
        >>> for path, detections in zip(paths, detector.batch(paths, batch_size=4)):
        ...     print(path, detections)
        harbor.tif <2 detections on 20000 x 10000 pixels: ship 0.80, ship 0.60>

    Attributes:
        checkpoint: That of the detector, with its limits in the config. `max_detections` limits
            those of a window, since a large image may contain any number.
        class_names: Those of the detector.

    Args:
        detector: The detector: a plain one, or one that wraps it.
        tile: As in `Detector.tiled`.
        overlap: As in `Detector.tiled`.
        merge: As in `Detector.tiled`.
        whole_image: As in `Detector.tiled`.
        report: Called for each image of several windows, for its progress.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        detector: ImageDetector,
        *,
        tile: int = TILE,
        overlap: float = OVERLAP,
        merge: str = "owner",
        whole_image: bool = True,
        report: Report = lambda name, count: lambda done: None,
    ) -> None:
        check_tiles(tile, overlap)
        if merge not in MERGES:
            raise ValueError(f"merge={merge!r} must be one of {', '.join(MERGES)}.")
        self._detector, self._report = detector, report
        self._tile, self._overlap, self._merge_by = tile, overlap, merge
        self._whole_image = whole_image

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the detector."""
        return self._detector.checkpoint

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all categories that the detector was trained on, by class index."""
        return self._detector.class_names

    def batch_with_errors(
        self, images: Iterable[ImageLike | DatasetImage], batch_size: int = 8
    ) -> Iterator[Detections | ValueError]:
        """Do the same as `batch`, but return the error of an image that cannot be read or used.

        Args:
            images: As in `batch`, or those of a dataset.
            batch_size: The number of windows that the network processes at once.

        Raises:
            ValueError: If `batch_size` is less than 1 or `images` is a single image.
        """
        check_images(images, batch_size)
        # One image is read ahead. Both iterators have each image: for its views, and its results.
        opened = map_ahead(self._open, images, num_ahead=1, num_threads=1)
        opened, awaited = itertools.tee(opened)
        views = itertools.chain.from_iterable(
            image.images() for image in opened if isinstance(image, _Views)
        )
        outcomes = self._detector.batch_with_errors(views, batch_size)
        return (
            self._detections(image, outcomes) if isinstance(image, _Views) else image
            for image in awaited
        )

    def _open(self, image: ImageLike | DatasetImage) -> _Views | ValueError:
        """Read an image, and divide it into windows."""
        pixels = read_large(image, self.checkpoint.config)
        if isinstance(pixels, ValueError):
            return pixels
        height, width = pixels.shape[:2]
        grid = make_grid(height, width, tile=self._tile, overlap=self._overlap)
        views = _Views(pixels, image_name(image), grid, factor=0)
        if len(grid.windows) == 1 or not self._whole_image:
            return views
        sizes = np.array([[height, width]])
        try:
            plan = input_pipeline.eval_plan(self.checkpoint.config, sizes, batch_size=1).batch(0)
        except ValueError as error:
            return ValueError(f"{views.name}: {error}")
        # The network's input is not larger than the reduced image, so that nothing is magnified.
        return views._replace(factor=max(1, (sizes // plan.resized).min().item()))

    def _detections(
        self, image: _Views, outcomes: Iterator[Detections | ValueError]
    ) -> Detections | ValueError:
        """Return the detections of an image; the next outcomes are those of its views."""
        count = len(image.grid.windows) + bool(image.factor)
        show_progress, of_views = self._report(image.name, count), []
        for done, outcome in enumerate(itertools.islice(outcomes, count), 1):
            if isinstance(outcome, ValueError):  # for the size, which all windows have
                outcome = ValueError(str(outcome).replace(image_name(image.pixels), image.name, 1))
            of_views.append(outcome)
            show_progress(done)
        if errors := [outcome for outcome in of_views if isinstance(outcome, ValueError)]:
            return errors[0]
        if count == 1:
            return of_views[0]
        merged = best_first(self._merge(image, list(map(_scored, of_views))))
        return LargeImageDetections(image.pixels, *merged, self.checkpoint.categories)

    def _merge(self, image: _Views, views: list[ScoredBoxes]) -> ScoredBoxes:
        """Return the detections of an image from those of its views."""
        grid, limits = image.grid, self.checkpoint.config.detections
        windows = views[: len(grid.windows)]
        offsets = grid.windows[:, [0, 1, 0, 1]].astype(np.float32)
        detected = concatenate(
            view._replace(boxes=view.boxes + offset)
            for view, offset in zip(windows, offsets, strict=True)
        )
        large = larger_than_windows(_of_whole(image, views[-1]), grid)
        if self._merge_by == "nms":
            return class_wise_nms(
                concatenate([detected, large]),
                iou_threshold=limits.iou_threshold,
                class_agnostic=limits.class_agnostic,
            )
        window = np.repeat(np.arange(len(windows)), [len(view.scores) for view in windows])
        objects, incomplete = merge_by_owner(
            detected, window, grid, class_agnostic=limits.class_agnostic
        )
        return add_large(objects, incomplete, large, class_agnostic=limits.class_agnostic)


def _scored(detections: Detections) -> ScoredBoxes:
    return ScoredBoxes(detections.boxes, detections.scores, detections.classes)


def _of_whole(image: _Views, detected: ScoredBoxes) -> ScoredBoxes:
    """Return the detections in the reduced image, in pixels of the image; none without one."""
    if not image.factor:
        return detected.take(np.arange(0))
    height, width = image.pixels.shape[:2]
    size = np.array([width, height, width, height], np.float32)
    return detected._replace(boxes=np.minimum(detected.boxes * np.float32(image.factor), size))
