"""TFDS: what `tfds.builder(...).download_and_prepare()` has written, read in place by index.

It reads every dataset of TFDS's catalog that has the features `image`, `objects/bbox` and
`objects/label`.

For the paper's numbers use coco/2017. trainval35k is the 82,783 training images of 2014 and 35,504
of its 40,504 validation images; the other 5,000 are minival. COCO's release of 2017 splits the same
images in the same way: its training split has the 118,287 of trainval35k, its validation split the
5,000 of minival. coco/2014 has neither: a detector trained on all 123,287 of its train+validation
has been trained on minival, and cannot be evaluated on it.
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

    Images are ordered by image id, however they were sharded; images without ids are ordered by
    file name, and their ids count from 1. The ids of categories are, by name, those of `official`,
    else those of COCO if the builder is coco, else the labels counted from 1. Difficult objects
    count as crowd.

    The shards are read once to make an index. It is stored next to them, or in the user's cache if
    their folder is read-only, until they change.

    Boxes without an area inside their image are left out of training, boxes that extend beyond
    their image are clipped, and a warning counts both; `ground_truth` contains all boxes.
    """

    def __init__(
        self,
        builder: str,
        *,
        data_dir: str | os.PathLike | None,
        split: str,
        official: str | os.PathLike = "",
    ):
        """Open the dataset, and index it if that has not been done yet.

        Args:
            builder: The dataset as `tfds.builder` takes it, such as coco/2017 or voc/2007:5.0.0.
            data_dir: The folder that it was prepared in; None means TFDS's default.
            split: The name of a split, or several joined by "+".
            official: The COCO JSON that AP is computed against; empty for the content of the
                shards. Those have COCO's boxes as published, but `area` is cut to an integer and
                polygons are left out.

        Raises:
            FileNotFoundError: If the dataset is not prepared or files are missing.
            ValueError: If it is not a detection dataset, contradicts `official`, or a package is
                missing.
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
        """Return the objects of the image at `index` that can be trained on."""
        start, stop = self._bounds[index : index + 2].tolist()
        return Annotations(*(field[start:stop] for field in self._trained))

    def file_name(self, index: int) -> str:
        """Return the file name of the image at `index`, else the record's place in the shards."""
        return self._file_names[index]

    def read(self, index: int) -> bytes:
        """Return the encoded image at `index` as TFDS stores it; for COCO, the published file.

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
        """Return these images' part of the official JSON, or else the content of the shards.

        TFDS cuts COCO's areas to integers: an object that is less than 1 square pixel above a limit
        of size counts on both sides of it, which changes AP by size in its last digits. A warning
        is logged in that case.
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
        if self._cuts_areas:
            logging.warning(
                "%s: TFDS cuts areas to integers; for AP to be published, give the official JSON.",
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
        """Store the images in order; return the place of each in the index."""
        keys = index.ids if has_ids else index.file_names
        order = np.argsort(keys, stable=True)
        ordered = keys[order].tolist()
        repeated = [key for key, following in itertools.pairwise(ordered) if key == following]
        if repeated:
            raise ValueError(
                f"{self.name}: contains {len(repeated)} images twice, first {repeated[0]}; name "
                "splits that have none in common."
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
                f"{self.name}: has no image ids to be looked up in {self._official}; leave "
                "`official` empty."
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
        ids: dict[str, int] = {name: number for number, name in enumerate(names, start=1)}
        if truth is not None:
            ids = {category["name"]: category["id"] for category in truth["categories"]}
        elif builder == "coco":
            ids = {category.name: category.id for category in COCO_CATEGORIES}
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise ValueError(
                f"{self.name}: {len(unknown)} of its labels, first {unknown[0]!r}, are no "
                f"categories of {self._official or 'COCO'}; give the JSON that it was prepared "
                "from as `official`."
            )
        self.categories = tuple(sorted(Category(ids[name], name) for name in names))
        class_of = {category.name: k for k, category in enumerate(self.categories)}
        self._class_of = np.array([class_of[name] for name in names], np.int32)

    def _read_objects(self, index: Index, order: np.ndarray, features: Mapping[str, Any]) -> None:
        """Store all objects, and those that can be trained on, in the order of the images."""
        unknown = (index.labels < 0) | (index.labels >= len(self._class_of))
        if unknown.any():
            raise ValueError(
                f"{self.name}: has the label {index.labels[unknown][0]}, which is none of its "
                f"{len(self._class_of)} categories; name a split that is annotated."
            )
        image_indices = np.repeat(np.argsort(order), index.counts)
        objects = np.argsort(image_indices, stable=True)  # their places in the index
        self._image_indices = image_indices[objects]
        self._classes = self._class_of[index.labels[objects]]
        self._crowd = index.crowd[objects]
        numbers = np.arange(1, len(objects) + 1)
        self._object_ids = index.object_ids[objects] if "objects/id" in features else numbers
        sizes = self.sizes[self._image_indices]
        self._boxes, _ = to_pixels(index.boxes[objects], sizes)
        # The difference of two numbers in hundredths has further digits.
        self._extents = np.round(self._boxes[:, 2:] - self._boxes[:, :2], 6)
        area = features.get("objects/area")
        self._areas = self._extents.prod(axis=1) if area is None else index.areas[objects]
        self._cuts_areas = area is not None and np.issubdtype(area.np_dtype, np.integer)

        clipped, has_area, is_outside = clip_to_image(self._boxes, sizes)
        self._warn(~has_area, WITHOUT_AREA)
        self._warn(has_area & is_outside, OUTSIDE)
        self._trained = clipped[has_area], self._classes[has_area], self._crowd[has_area]
        self._bounds = np.searchsorted(self._image_indices[has_area], np.arange(len(self) + 1))

    def _warn(self, mask: Bool[np.ndarray, " M"], problem: str) -> None:
        """Log a warning that counts the objects of the mask and names the first."""
        if mask.any():
            first = int(mask.argmax())
            file_name = self._file_names[self._image_indices[first]]
            label = f"annotation id {self._object_ids[first]} ({file_name})"
            logging.warning("%s: %d boxes %s (first: %s).", self.name, mask.sum(), problem, label)

    def _instances(self) -> list[dict[str, Any]]:
        """Return all objects as in COCO JSON."""
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
    """Return where an index may be: hidden next to the shards, and in the user's cache."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    cached = cache / "retinanet_jax" / f"tfds-{digest}-{split}.npz"
    return data_dir / f".retinanet_jax-{split}.npz", cached
