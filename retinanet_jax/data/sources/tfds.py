"""TFDS datasets: the files that `tfds.builder(...).download_and_prepare()` has written.

Every dataset of TFDS's catalog with the features `image`, `objects/bbox` and `objects/label` can be
read. Images are read from these files by index.

Use coco/2017 to reproduce the numbers of the paper. The paper trains on trainval35k, the 82,783
training images and 35,504 of the 40,504 validation images of COCO's release of 2014, and evaluates
on minival, the other 5,000. The release of 2017 divides the same images in the same way: its
training split is trainval35k, with 118,287 images, and its validation split is minival. coco/2014
has neither split: a detector trained on its train+validation, 123,287 images, has been trained on
minival and cannot be evaluated on it.
"""

import hashlib
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, Int32

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES, CocoContent, load_instances
from retinanet_jax.data.sources.instances import InstancesSource
from retinanet_jax.data.sources.objects import Objects, box_sides
from retinanet_jax.data.sources.tfds_index import Index, cached_index, to_pixels
from retinanet_jax.data.sources.tfds_info import detection_features, read_info
from retinanet_jax.data.sources.tfds_shards import open_shards
from retinanet_jax.utils.paths import cache_folder


class TfdsSource(InstancesSource):
    """The images and boxes of a dataset that TFDS has prepared as tfrecord or array_record.

    The order of the images is that of their ids, independently of the shards. Images without ids
    have the order of their file names and are numbered from 1. The id of a category is that of the
    same name in `official`; or in COCO, if there is no `official` and the builder is coco; or its
    label in TFDS plus 1. Difficult objects become crowd regions.

    The shards are read once to build an index, which is stored next to them, or in the user's cache
    if their folder is read-only. It is built again if they change.

    Boxes without an area inside their image are left out of training, and boxes that extend beyond
    their image are clipped; warnings report how many. `ground_truth` contains all boxes.
    """

    def __init__(
        self,
        builder: str,
        *,
        data_dir: str | os.PathLike | None,
        split: str,
        official: str | os.PathLike = "",
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Open the dataset, and build its index if it has none.

        Args:
            builder: The dataset's name as for `tfds.builder`, such as coco/2017 or voc/2007:5.0.0.
            data_dir: The folder that it was prepared in; None means TFDS's default.
            split: The name of a split, or several joined by "+".
            official: The COCO JSON file from which the boxes are read. If it is empty, those of the
                shards are used. For COCO, TFDS stores the published boxes, but truncates `area` to
                an integer.
            decoding: How the images are decoded. Sizes, and boxes as fractions of them, are those
                after the EXIF orientation.

        Raises:
            FileNotFoundError: If the dataset is not prepared or files are missing.
            ValueError: If the dataset is not for detection or contradicts `official`, or a package
                is missing.
        """
        name = f"{builder} {split}"
        info = read_info(builder, data_dir)
        features = detection_features(name, info.features)
        self._shards = open_shards(name, info, split)
        total = sum(info.splits[part].num_examples for part in split.split("+"))
        paths = _index_paths(pathlib.Path(info.data_dir), split)
        index = cached_index(name, self._shards, total, paths)
        order, image_ids = _order_images(name, index, "image/id" in features)
        sizes, self._spans = index.sizes[order], index.spans[order]
        labels = features["objects/label"].names
        truth = None
        if official:
            truth = CocoContent(str(official), load_instances(pathlib.Path(official)))
            _check_official(str(official), truth, name, image_ids, sizes)
        categories = _categories(name, info.name, labels, str(official), truth)
        if truth is None:
            objects = _read_objects(name, index, order, features, labels, categories)
        else:
            objects = _official_objects(truth, image_ids, categories)
        area = features.get("objects/area")
        self._truncates_areas = (
            truth is None and area is not None and np.issubdtype(area.np_dtype, np.integer)
        )
        super().__init__(
            name,
            image_ids=image_ids or list(range(1, total + 1)),
            file_names=index.file_names[order].tolist(),
            sizes=sizes,
            categories=categories,
            objects=objects,
            label="annotation id {}".format,
            decoding=decoding,
        )

    def read(self, index: int) -> bytes:
        """Return the encoded image at `index`, which for COCO is the published file.

        Raises:
            FileNotFoundError: If its shard is missing.
        """
        shard, record, start, length = self._spans[index].tolist()
        try:
            return self._shards.read(shard, record, start, length)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self._shards.paths[shard]}: the shard with the image of id "
                f"{self.image_ids[index]} is missing; restore it, or prepare the dataset again."
            ) from None

    def ground_truth(self) -> dict[str, Any]:
        """Return the ground truth, and log a warning if TFDS truncated its areas.

        TFDS truncates COCO's areas to integers. An object that is less than 1 square pixel above a
        size limit then has exactly the limit's area and counts on both sides of it, which changes
        the last digits of AP by size.
        """
        if self._truncates_areas:
            logging.warning(
                "%s: TFDS truncates areas to integers; to publish AP, give the official JSON.",
                self.name,
            )
        return super().ground_truth()


def _categories(
    name: str, builder: str, labels: Sequence[str], official: str, truth: CocoContent | None
) -> list[Category]:
    """Return the categories of TFDS's labels, in the order of the labels."""
    ids: dict[str, int] = {label: k for k, label in enumerate(labels, start=1)}
    if truth is not None:
        ids = {category.name: category.id for category in truth.categories}
    elif builder == "coco":
        ids = {category.name: category.id for category in COCO_CATEGORIES}
    unknown = [label for label in labels if label not in ids]
    if unknown:
        raise ValueError(
            f"{name}: {len(unknown)} of its labels, first {unknown[0]!r}, are not categories "
            f"of {official or 'COCO'}; give the JSON that the dataset was prepared from as "
            "`official`."
        )
    return [Category(ids[label], label) for label in labels]


def _read_objects(
    name: str,
    index: Index,
    order: Int[np.ndarray, " N"],
    features: Mapping[str, Any],
    labels: Sequence[str],
    categories: Sequence[Category],
) -> Objects:
    """Return the objects of the shards in the order of the images."""
    unknown = (index.labels < 0) | (index.labels >= len(labels))
    if unknown.any():
        raise ValueError(
            f"{name}: has the label {index.labels[unknown][0]}, but only {len(labels)} "
            "categories; give a split that is annotated."
        )
    class_of = {category.name: k for k, category in enumerate(sorted(categories))}
    classes = np.array([class_of[label] for label in labels], np.int32)
    image_index = np.repeat(np.argsort(order), index.counts).astype(np.int32)
    objects = np.argsort(image_index, stable=True)  # positions in the TFDS index
    image_index = image_index[objects]
    boxes, _ = to_pixels(index.boxes[objects], index.sizes[order][image_index])
    ids, areas = index.object_ids[objects], index.areas[objects].astype(np.float64)
    return Objects(
        ids if "objects/id" in features else np.arange(1, len(objects) + 1),
        image_index,
        classes[index.labels[objects]],
        boxes,
        index.crowd[objects],
        areas if "objects/area" in features else box_sides(boxes).prod(axis=1),
    )


def _official_objects(
    truth: CocoContent, image_ids: Sequence[int], categories: Sequence[Category]
) -> Objects:
    """Return the objects of the official JSON in the images of the dataset."""
    position = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    objects = truth.objects.of_images([position[image_id] for image_id in image_ids])
    # The JSON may have categories that the dataset lacks.
    class_of = {category: k for k, category in enumerate(sorted(categories))}
    classes = np.array([class_of.get(category, -1) for category in truth.categories], np.int32)
    objects = objects._replace(classes=classes[objects.classes])
    return objects.select(np.flatnonzero(objects.classes >= 0))


def _order_images(
    name: str, index: Index, has_ids: bool
) -> tuple[Int[np.ndarray, " N"], list[int]]:
    """Order images by their ids or, if they have none, by their file names.

    Returns:
        The position of each image in the TFDS index, and the ids, which may be none.
    """
    keys = index.ids if has_ids else index.file_names
    order = np.argsort(keys, stable=True)
    ordered = keys[order].tolist()
    repeated = [key for key, following in itertools.pairwise(ordered) if key == following]
    if repeated:
        raise ValueError(
            f"{name}: contains {len(repeated)} images twice, first {repeated[0]}; give splits "
            "that have no images in common."
        )
    return order, ordered if has_ids else []


def _check_official(
    official: str,
    truth: CocoContent,
    name: str,
    image_ids: Sequence[int],
    sizes: Int32[np.ndarray, "N 2"],
) -> None:
    """Check that the content of the official JSON describes these images."""
    if not image_ids:
        raise ValueError(
            f"{name}: has no image ids to look up in {official}; leave `official` empty."
        )
    declared = dict(zip(truth.image_ids, map(tuple, truth.sizes.tolist()), strict=True))
    missing = [image_id for image_id in image_ids if image_id not in declared]
    if missing:
        raise ValueError(
            f"{official}: lacks {len(missing)} of the {len(image_ids)} images of {name}, first "
            f"image id {missing[0]}; give the JSON of that split."
        )
    for image_id, size in zip(image_ids, sizes.tolist(), strict=True):
        if declared[image_id] != tuple(size):
            raise ValueError(
                f"{official}: declares image id {image_id} with height and width "
                f"{declared[image_id]}, where {name} has {tuple(size)}; give the JSON that the "
                "dataset was prepared from."
            )


def _index_paths(data_dir: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the possible files of an index: hidden next to the shards, and in the user's cache."""
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    cached = cache_folder() / f"tfds-{digest}-{split}.npz"
    return data_dir / f".retinanet_jax-{split}.npz", cached
