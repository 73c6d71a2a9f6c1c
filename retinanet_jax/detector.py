"""The Python API: a trained detector that returns the objects in an image.

    detector = Detector.load("torchvision_v2")  # or "runs/pets", which was trained here
    detections = detector("living_room.jpg")
    detections.draw().save("annotated.jpg")

Images are read, resized and padded as in evaluation, so the detections equal those of evaluation.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from retinanet_jax import core
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.compilation import compiled_off_the_clock
from retinanet_jax.data.image_files import ImageLike
from retinanet_jax.data.sources.base import DatasetImage
from retinanet_jax.evaluation.detections import Detection, Detections
from retinanet_jax.evaluation.limits import class_mask, with_limits
from retinanet_jax.inference.augmented import DEFAULT_MERGE, AugmentedDetector, view_limits
from retinanet_jax.inference.latency import compile_detect
from retinanet_jax.inference.network_inputs import (
    PATIENCE,
    Input,
    ScaledImage,
    check_images,
    concatenate,
    input_shape,
    prepare,
    raise_error,
)
from retinanet_jax.inference.tiled import OVERLAP, TILE, TiledDetector
from retinanet_jax.inference.views import DEFAULT_VIEWS, make_views
from retinanet_jax.modeling import build_model
from retinanet_jax.utils.threads import NUM_THREADS, grouped, in_order, map_ahead, one_in_flight
from retinanet_jax.weights import cached

__all__ = ["Detection", "Detections", "Detector"]

# Inputs of one shape, or images that cannot be used, each with its index among all images.
_Group = list[tuple[int, Input | ValueError]]


class Detector:
    """A trained detector for images of any size, on jax's default device.

    Attributes:
        checkpoint: The checkpoint, with its variables on the device and with the limits of this
            detector in its config. It has the score thresholds that it stores unless another one
            was given.
        class_mask: Whether the detections of each class are returned.

    Args:
        checkpoint: The checkpoint; it is not changed.
        score_threshold: As in `load`.
        iou_threshold: As in `load`.
        class_agnostic: As in `load`.
        max_detections: As in `load`.
        categories: As in `load`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
        categories: Iterable[str] | None = None,
    ) -> None:
        self.class_mask = class_mask(checkpoint, categories)
        if score_threshold is not None:
            checkpoint = checkpoint._replace(thresholds=None)
        config = with_limits(
            checkpoint.config,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            class_agnostic=class_agnostic,
            max_detections=max_detections,
        )
        variables = jax.device_put(checkpoint.variables)
        self.checkpoint = checkpoint._replace(config=config, variables=variables)
        model = build_model(config, len(checkpoint.categories))
        thresholds = checkpoint.score_thresholds
        self._detect = compiled_off_the_clock(
            compile_detect(variables, model, config, score_thresholds=thresholds)
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
        categories: Iterable[str] | None = None,
    ) -> "Detector":
        """Load a detector: one that was trained here, a file of another library, or one by name.

        Examples:
            >>> detector = Detector.load("runs/pets", score_threshold=0.3)
            >>> detector.class_names
            ('dog', 'cat')
            >>> Detector.load("torchvision_v2").class_names[:3]  # downloaded at the first use
            ('person', 'bicycle', 'car')

        Args:
            path: The working directory of a training run, of which the checkpoint with the highest
                AP is loaded (the newest if none was evaluated), or the folder of a checkpoint, such
                as runs/pets/checkpoints/2500; the file of a detector of torchvision or detectron2;
                or the name of a published one (`retinanet-jax predict --help` lists them). Files
                are downloaded and converted once, into ~/.cache/retinanet_jax.
            score_threshold: Only detections with a higher score are returned; at least 0 and less
                than 1. None for the threshold of each category that `retinanet-jax analyze` has
                stored in the checkpoint or, if it has not, the one in the checkpoint's config.
            iou_threshold: Non-maximum suppression removes a detection if its IoU with a better one
                of its class is higher; from 0 to 1. None for the threshold in the checkpoint's
                config.
            class_agnostic: Whether a detection also suppresses those of other classes. None for
                the choice in the checkpoint's config.
            max_detections: The largest number of detections per image, before `categories` are
                selected. None for the limit in the checkpoint's config.
            categories: Names of the categories to return. None for all.

        Raises:
            FileNotFoundError: If there is no such checkpoint, file or name.
            OSError: If the file cannot be downloaded; the message has the path to put it at.
            ValueError: If a limit is out of range or has no effect, a category is unknown, or the
                checkpoint or file cannot be read.
        """
        return cls(
            cached.load(path),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            class_agnostic=class_agnostic,
            max_detections=max_detections,
            categories=categories,
        )

    def __repr__(self) -> str:
        return f"<Detector of {len(self.class_names)} categories, {self.checkpoint.folder}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all categories that the detector was trained on, by class index."""
        return tuple(category.name for category in self.checkpoint.categories)

    def __call__(self, image: ImageLike) -> Detections:
        """Detect the objects in one image.

        Images are resized and padded to one of a few input shapes. The network is compiled when the
        first image of an input shape arrives.

        Examples:
            >>> detector = Detector.load("runs/pets")
            >>> detections = detector("living_room.jpg")
            >>> detections
            <2 detections on 640 x 480 pixels: cat 0.80, dog 0.20>
            >>> detections.boxes  # x0, y0, x1, y1
            array([[  0.,   0., 640., 480.],
                   [  0.,   0.,   2.,   2.]], dtype=float32)
            >>> for detection in detections:
            ...     print(detection.class_name, detection.category_id)
            cat 7
            dog 3
            >>> detections.draw(threshold=0.5).save("annotated.jpg")

        Args:
            image: An image file, as its path, its URL or an open file; a Pillow image; or a uint8
                array of shape (H, W, 3) in RGB or (H, W) in gray.

        Raises:
            ValueError: If the image cannot be read, or no bucket of the config can contain it.
        """
        (detections,) = self.batch([image], batch_size=1)
        return detections

    def batch(self, images: Iterable[ImageLike], batch_size: int = 8) -> Iterator[Detections]:
        """Detect the objects in many images, several at a time; return the detections in order.

        Images of one input shape are processed together. They are read by threads, a few batches
        ahead of the detections that are consumed, so `images` may be endless. An image waits until
        its batch is full or until 4 * batch_size later images have come. A batch that is not full
        is filled up with copies, so each input shape is compiled once.

        Examples:
            >>> detector = Detector.load("runs/pets")
            >>> paths = ["living_room.jpg", "garden.jpg"]
            >>> for path, detections in zip(paths, detector.batch(paths, batch_size=2)):
            ...     print(path, detections)
            living_room.jpg <2 detections on 640 x 480 pixels: cat 0.80, dog 0.20>
            garden.jpg <2 detections on 480 x 640 pixels: cat 0.60, dog 0.20>

        Args:
            images: Images as `__call__` accepts them: a list, a generator, or an array of shape
                (N, H, W, 3).
            batch_size: The number of images that the network processes at once.

        Raises:
            ValueError: If `batch_size` is less than 1 or `images` is a single image, also as an
                array; and, when its detections would be returned, if an image cannot be read or
                used.
        """
        return map(raise_error, self.batch_with_errors(images, batch_size))

    def batch_with_errors(
        self,
        images: Iterable[ImageLike | DatasetImage | ScaledImage],
        batch_size: int = 8,
        *,
        patience: int = PATIENCE,
    ) -> Iterator[Detections | ValueError]:
        """Do the same as `batch`, but return the error of an image that cannot be read or used.

        Args:
            images: Images as `__call__` accepts them, those of a dataset, or scaled ones.
            batch_size: The number of images that the network processes at once.
            patience: The largest number of batches of later images that an image waits for, until
                its batch is full.

        Returns:
            The detections of each image, or its error, in order.

        Raises:
            ValueError: If `batch_size` is less than 1 or `images` is a single image.
        """
        check_images(images, batch_size)
        prepared = functools.partial(prepare, config=self.checkpoint.config)
        inputs = map_ahead(prepared, images, num_ahead=batch_size + NUM_THREADS)
        groups = grouped(inputs, input_shape, size=batch_size, patience=patience * batch_size)
        started = (self._start(group, batch_size) for group in groups)
        return in_order(itertools.starmap(self._finish, one_in_flight(started)))

    def augmented(
        self, views: Iterable[str | float] = DEFAULT_VIEWS, *, merge: str = DEFAULT_MERGE
    ) -> AugmentedDetector:
        """Return a detector that sees each image in several views: test-time augmentation.

        Examples:
            >>> detector = Detector.load("runs/pets").augmented(["flip", 0.75, 1.25])
            >>> detector("living_room.jpg")
            <2 detections on 640 x 480 pixels: cat 0.80, dog 0.15>

        Args:
            views: The views in addition to the image itself: "flip" (left to right), "vflip"
                (upside down), "rot90", "rot180", "rot270", a scale, or both as in "flip@0.75". Each
                takes the time of an image of its size.
            merge: How the detections of the views are merged. "wbf": by weighted box fusion; the
                score is the mean over all views, of which one without the object counts as 0.
                "nms": by class-wise non-maximum suppression; the score is the best one. The limits
                of this detector apply after that.

        Raises:
            ValueError: If a view or `merge` is unknown, or the checkpoint's soft NMS requires
                "wbf".
        """
        of_views = Detector(self.checkpoint, **view_limits(self.checkpoint))
        return AugmentedDetector(self, of_views, make_views(views), merge)

    def tiled(
        self,
        image: ImageLike,
        tile: int = TILE,
        overlap: float = OVERLAP,
        *,
        merge: str = "owner",
        whole_image: bool = True,
        batch_size: int = 1,
    ) -> Detections:
        """Detect the objects in an image of any size, which is seen in overlapping windows.

        The network sees each window as it would see an image of that size, so that small objects
        stay as large as in training. Each object is returned once, also at a window's border. An
        image that fits in one window has the detections that it has without windows.

        `retinanet_jax.inference.tiled.TiledDetector` detects in many images.

        Examples:
            >>> detector = Detector.load("runs/ships")
            >>> detector.tiled("harbor.tif", tile=1024)
            <2 detections on 20000 x 10000 pixels: ship 0.80, ship 0.60>

        Args:
            image: As in `__call__`. Large files are not copied in memory, and memory maps work.
            tile: The side of a window in pixels of the image. All windows of an image have one
                size.
            overlap: The fraction of a window that its neighbor contains at least, above 0. Larger
                objects at a border are put together from their parts.
            merge: "owner": a window owns the objects with centers nearer to its middle than to
                a neighbor's, and what several windows see of one object becomes one detection.
                "nms": class-wise non-maximum suppression of the detections of all windows.
            whole_image: Whether to detect in the whole image, too, resized as without windows; of
                these detections, only those are used that are too large for a window.
            batch_size: The number of windows that the network processes at once.

        Raises:
            ValueError: If an argument is out of range, or as in `__call__`.
        """
        tiled = TiledDetector(
            self, tile=tile, overlap=overlap, merge=merge, whole_image=whole_image
        )
        return tiled(image, batch_size)

    def _start(self, group: _Group, batch_size: int) -> tuple[_Group, core.Detections | None]:
        """Start the detection of a group of images; return None if it consists of errors."""
        examples = [item.example for _, item in group if isinstance(item, Input)]
        if not examples:
            return group, None
        batch = concatenate(examples, batch_size)
        return group, self._detect(batch)

    def _finish(
        self, group: _Group, detections: core.Detections | None
    ) -> list[tuple[int, Detections | ValueError]]:
        """Wait for the detections of a group of images, and return those of each image."""
        arrays = jax.device_get(detections)
        outcomes: list[tuple[int, Detections | ValueError]] = []
        for example, (index, item) in enumerate(group):
            if isinstance(item, ValueError):
                outcomes.append((index, item))
            else:
                example_arrays = (array[example] for array in arrays)
                outcomes.append((index, self._detections(item.image, *example_arrays)))
        return outcomes

    def _detections(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float32[np.ndarray, "D 4"],
        scores: Float32[np.ndarray, " D"],
        classes: Int[np.ndarray, " D"],
        mask: Bool[np.ndarray, " D"],
    ) -> Detections:
        """Return the detections of one image that are of the requested categories."""
        keep = mask & self.class_mask[classes]
        xyxy_boxes = np.asarray(core.yxyx_to_xyxy(boxes[keep]))
        categories = self.checkpoint.categories
        return Detections(image, xyxy_boxes, scores[keep], classes[keep], categories)
