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
from jaxtyping import Bool, Int

from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.data.sources.boxes import OUTSIDE, WITHOUT_AREA, clip_to_image
from retinanet_jax.data.sources.coco import COCO_CATEGORIES, load_instances
from retinanet_jax.data.sources.instances import complete_annotation
from retinanet_jax.data.sources.tfds_index import Index, cached_index, to_pixels
from retinanet_jax.data.sources.tfds_info import detection_features, read_info
from retinanet_jax.data.sources.tfds_shards import open_shards


class TfdsSource(Source):
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
    ):
        """Open the dataset, and build its index if it has none.

        Args:
            builder: The dataset's name as for `tfds.builder`, such as coco/2017 or voc/2007:5.0.0.
            data_dir: The folder that it was prepared in; None means TFDS's default.
            split: The name of a split, or several joined by "+".
            official: The COCO JSON file with the ground truth that AP is computed from. If it is
                empty, the content of the shards is used. For COCO, TFDS stores the published boxes,
                but truncates `area` to an integer and leaves out polygons.

        Raises:
            FileNotFoundError: If the dataset is not prepared or files are missing.
            ValueError: If the dataset is not for detection or contradicts `official`, or a package
                is missing.
        """
        self.name = f"{builder} {split}"
        self._official = pathlib.Path(official) if official else None
        info = read_info(builder, data_dir)
        features = detection_features(self.name, info.features)
        self._shards = open_shards(self.name, info, split)
        total = sum(info.splits[part].num_examples for part in split.split("+"))
        paths = _index_paths(pathlib.Path(info.data_dir), split)
        index = cached_index(self.name, self._shards, total, paths)
        order = self._read_images(index, "image/id" in features)
        truth = load_instances(self._official) if self._official else None
        if truth is not None:
            self._check_official(truth)
        self._read_categories(info.name, features["objects/label"].names, truth)
        self._read_objects(index, order, features)

    def annotations(self, index: int) -> Annotations:
        """Return the objects of the image at `index`, except boxes without an area."""
        start, stop = self._bounds[index : index + 2].tolist()
        return Annotations(*(field[start:stop] for field in self._trained))

    def file_name(self, index: int) -> str:
        """Return the file name of the image at `index`, or its position in the shards."""
        return self._file_names[index]

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
        """Return the content of the official JSON for these images, or else that of the shards.

        TFDS truncates COCO's areas to integers. An object that is less than 1 square pixel above a
        size limit then has exactly the limit's area and counts on both sides of it, which changes
        the last digits of AP by size. A warning is logged if areas are truncated.
        """
        if self._official:
            truth, ids = load_instances(self._official), set(self.image_ids)
            images = [image for image in truth["images"] if image["id"] in ids]
            annotations = [
                complete_annotation(annotation)
                for annotation in truth["annotations"]
                if annotation["image_id"] in ids
            ]
            return {**truth, "images": images, "annotations": annotations}
        if self._truncates_areas:
            logging.warning(
                "%s: TFDS truncates areas to integers; to publish AP, give the official JSON.",
                self.name,
            )
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(
                self.image_ids, self._file_names, self.sizes.tolist(), strict=True
            )
        ]
        categories = [category._asdict() for category in self.categories]
        return {"images": images, "annotations": self._instances(), "categories": categories}

    def _read_images(self, index: Index, has_ids: bool) -> Int[np.ndarray, " N"]:
        """Store the images in order, and return the position of each in the TFDS index."""
        keys = index.ids if has_ids else index.file_names
        order = np.argsort(keys, stable=True)
        ordered = keys[order].tolist()
        repeated = [key for key, following in itertools.pairwise(ordered) if key == following]
        if repeated:
            raise ValueError(
                f"{self.name}: contains {len(repeated)} images twice, first {repeated[0]}; give "
                "splits that have no images in common."
            )
        self._has_ids = has_ids
        self.image_ids = ordered if has_ids else list(range(1, len(ordered) + 1))
        self.sizes = index.sizes[order]
        self._file_names = index.file_names[order].tolist()
        self._spans = index.spans[order]
        return order

    def _check_official(self, truth: dict[str, Any]) -> None:
        """Check that the JSON describes these images."""
        if not self._has_ids:
            raise ValueError(
                f"{self.name}: has no image ids to look up in {self._official}; leave `official` "
                "empty."
            )
        declared = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
        missing = [image_id for image_id in self.image_ids if image_id not in declared]
        if missing:
            raise ValueError(
                f"{self._official}: lacks {len(missing)} of the {len(self)} images of "
                f"{self.name}, first image id {missing[0]}; give the JSON of that split."
            )
        for image_id, size in zip(self.image_ids, self.sizes.tolist(), strict=True):
            if declared[image_id] != tuple(size):
                raise ValueError(
                    f"{self._official}: declares image id {image_id} with height and width "
                    f"{declared[image_id]}, where {self.name} has {tuple(size)}; give the JSON "
                    "that the dataset was prepared from."
                )

    def _read_categories(
        self, builder: str, names: Sequence[str], truth: dict[str, Any] | None
    ) -> None:
        """Store the categories, and the class of each of TFDS's labels."""
        ids: dict[str, int] = {name: category_id for category_id, name in enumerate(names, start=1)}
        if truth is not None:
            ids = {category["name"]: category["id"] for category in truth["categories"]}
        elif builder == "coco":
            ids = {category.name: category.id for category in COCO_CATEGORIES}
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise ValueError(
                f"{self.name}: {len(unknown)} of its labels, first {unknown[0]!r}, are not "
                f"categories of {self._official or 'COCO'}; give the JSON that the dataset was "
                "prepared from as `official`."
            )
        self.categories = tuple(sorted(Category(ids[name], name) for name in names))
        class_of = {category.name: k for k, category in enumerate(self.categories)}
        self._class_of = np.array([class_of[name] for name in names], np.int32)

    def _read_objects(self, index: Index, order: np.ndarray, features: Mapping[str, Any]) -> None:
        """Store all objects, and those with an area, in the order of the images."""
        unknown = (index.labels < 0) | (index.labels >= len(self._class_of))
        if unknown.any():
            raise ValueError(
                f"{self.name}: has the label {index.labels[unknown][0]}, but only "
                f"{len(self._class_of)} categories; give a split that is annotated."
            )
        image_indices = np.repeat(np.argsort(order), index.counts)
        objects = np.argsort(image_indices, stable=True)  # positions in the TFDS index
        self._image_indices = image_indices[objects]
        self._classes = self._class_of[index.labels[objects]]
        self._crowd = index.crowd[objects]
        from_1 = np.arange(1, len(objects) + 1)
        self._object_ids = index.object_ids[objects] if "objects/id" in features else from_1
        sizes = self.sizes[self._image_indices]
        self._boxes, _ = to_pixels(index.boxes[objects], sizes)
        # Differences of hundredths are not exact in floating point.
        self._extents = np.round(self._boxes[:, 2:] - self._boxes[:, :2], 6)
        area = features.get("objects/area")
        self._areas = self._extents.prod(axis=1) if area is None else index.areas[objects]
        self._truncates_areas = area is not None and np.issubdtype(area.np_dtype, np.integer)

        clipped, has_area, is_outside = clip_to_image(self._boxes, sizes)
        self._warn(~has_area, WITHOUT_AREA)
        self._warn(has_area & is_outside, OUTSIDE)
        self._trained = clipped[has_area], self._classes[has_area], self._crowd[has_area]
        self._bounds = np.searchsorted(self._image_indices[has_area], np.arange(len(self) + 1))

    def _warn(self, mask: Bool[np.ndarray, " M"], problem: str) -> None:
        """Log a warning with the number of objects in the mask and the label of the first."""
        if mask.any():
            first = int(mask.argmax())
            file_name = self._file_names[self._image_indices[first]]
            label = f"annotation id {self._object_ids[first]} ({file_name})"
            logging.warning("%s: %d boxes %s (first: %s).", self.name, mask.sum(), problem, label)

    def _instances(self) -> list[dict[str, Any]]:
        """Return all objects in COCO's JSON format."""
        columns = (
            self._object_ids,
            self._image_indices,
            self._classes,
            self._boxes[:, 1::-1],
            self._extents[:, ::-1],
            self._areas,
            self._crowd,
        )
        return [
            {
                "id": object_id,
                "image_id": self.image_ids[image_index],
                "category_id": self.categories[k].id,
                "bbox": corner + extent,
                "area": area,
                "iscrowd": int(crowd),
            }
            for object_id, image_index, k, corner, extent, area, crowd in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]


def _index_paths(data_dir: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the possible files of an index: hidden next to the shards, and in the user's cache."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    cached = cache / "retinanet_jax" / f"tfds-{digest}-{split}.npz"
    return data_dir / f".retinanet_jax-{split}.npz", cached
