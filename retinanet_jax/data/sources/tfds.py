"""TFDS: what `tfds.builder(...).download_and_prepare()` wrote, read by index where it lies.

For every data set of its catalogue that has the features `image`, `objects/bbox`, `objects/label`.

For the paper's numbers take coco/2017. trainval35k is the 82,783 training pictures of 2014 and
35,504 of its 40,504 validation pictures; the other 5,000 are minival. COCO's release of 2017 parts
the same pictures along the same line: its train has the 118,287 of trainval35k, its validation the
5,000 of minival. coco/2014 knows neither: what is trained on all 123,287 of its train+validation
has seen minival, and cannot be tested on it.
"""

import hashlib
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.data.sources.coco import COCO_CATEGORIES, load_instances
from retinanet_jax.data.sources.instances import (
    HAVE_NO_AREA,
    STAND_OUT,
    clip_to_image,
    completed,
)
from retinanet_jax.data.sources.tfds_shards import Index, cached_index, open_shards, to_pixels


class TfdsSource(Source):
    """Pictures and boxes of a data set that TFDS has prepared, as tfrecord or array_record.

    builder: as `tfds.builder` takes it, such as coco/2017 or voc/2007:5.0.0. data_dir: the folder
    that it was prepared in; None for TFDS's own. split: its name, or several joined by "+".
    official: the COCO JSON that AP is computed against; empty for what the shards hold. There
    COCO's boxes are as published, but `area` is cut to an integer and polygons are left out.

    Pictures are ordered by image id, however they were sharded; without ids by file name, numbered
    from 1. Category ids are, by name, those of `official`, else of COCO for a builder of that name,
    else the labels from 1. Difficult objects count as crowd.
    The shards are read through once. What was found is kept beside them, or in the user's cache
    where they are read-only, until they change.

    Raises FileNotFoundError where the data set is not prepared or files are missing; ValueError
    where it is of another kind, contradicts `official`, or a package is missing. Boxes without an
    area inside their picture are left out of training, boxes that stand out are clipped, and both
    are counted in a warning; `ground_truth` keeps them all.
    """

    def __init__(
        self,
        builder: str,
        *,
        data_dir: str | os.PathLike | None,
        split: str,
        official: str | os.PathLike = "",
    ):
        self.name = f"{builder} {split}"
        self._official = pathlib.Path(official) if official else None
        info = _prepared(builder, data_dir)
        features = _features(self.name, info.features)
        self._shards = open_shards(self.name, info, split)
        total = sum(info.splits[part].num_examples for part in split.split("+"))
        places = _cache_places(pathlib.Path(info.data_dir), split)
        index = cached_index(self.name, self._shards, total, places)
        order = self._read_pictures(index, "image/id" in features)
        truth = load_instances(self._official) if self._official else None
        if truth is not None:
            self._check_official(truth)
        self._read_categories(info.name, features["objects/label"].names, truth)
        self._read_objects(index, order, features)

    def annotations(self, index: int) -> Annotations:
        """The objects that can be trained on."""
        start, stop = self._bounds[index : index + 2].tolist()
        return Annotations(*(field[start:stop] for field in self._trained))

    def file_name(self, index: int) -> str:
        """As the data set has it; where it has none, the record's place in the shards."""
        return self._file_names[index]

    def read(self, index: int) -> bytes:
        """The encoded picture as TFDS stores it: that of COCO is the published file."""
        shard, record, start, length = self._spans[index].tolist()
        try:
            return self._shards.read(shard, record, start, length)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self._shards.paths[shard]}: the shard with the picture of image id "
                f"{self.image_ids[index]} is missing; restore it, or prepare the data set again."
            ) from None

    def ground_truth(self) -> dict[str, Any]:
        """These pictures' part of the official JSON, or without one what the shards hold.

        TFDS cuts COCO's areas to integers: an object of less than 1 square pixel above a limit of
        size counts on both sides of it, and moves AP by size in its last digits. A warning says so.
        """
        if self._official:
            truth, ids = load_instances(self._official), set(self.image_ids)
            images = [image for image in truth["images"] if image["id"] in ids]
            kept = [completed(one) for one in truth["annotations"] if one["image_id"] in ids]
            return {**truth, "images": images, "annotations": kept}
        if self._cuts_areas:
            logging.warning(
                "%s: TFDS cuts areas to integers; for AP to be published, give the official JSON.",
                self.name,
            )
        sizes = self.sizes.tolist()
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(
                self.image_ids, self._file_names, sizes, strict=True
            )
        ]
        categories = [category._asdict() for category in self.categories]
        return {"images": images, "annotations": self._instances(), "categories": categories}

    def _read_pictures(self, index: Index, numbered: bool) -> np.ndarray:
        """Returns the index's row of each picture of the source."""
        ids = index.ids if numbered else index.file_names
        order = np.argsort(ids, kind="stable")
        in_order = ids[order].tolist()
        twice = [one for one, following in itertools.pairwise(in_order) if one == following]
        if twice:
            raise ValueError(
                f"{self.name}: holds {len(twice)} pictures twice, first {twice[0]}; name splits "
                "that have none in common."
            )
        self._numbered = numbered
        self.image_ids = in_order if numbered else list(range(1, len(in_order) + 1))
        self.sizes = index.sizes[order]
        self._file_names = index.file_names[order].tolist()
        self._spans = index.spans[order]
        return order

    def _check_official(self, truth: dict[str, Any]) -> None:
        """Whether the JSON is about these pictures."""
        if not self._numbered:
            raise ValueError(
                f"{self.name}: has no image ids to be looked up in {self._official}; leave "
                "`official` empty."
            )
        declared = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
        missing = [image_id for image_id in self.image_ids if image_id not in declared]
        if missing:
            raise ValueError(
                f"{self._official}: lacks {len(missing)} of the {len(self)} pictures of "
                f"{self.name}, first image id {missing[0]}; give the JSON of that split."
            )
        for image_id, size in zip(self.image_ids, self.sizes.tolist(), strict=True):
            if declared[image_id] != tuple(size):
                raise ValueError(
                    f"{self._official}: declares image id {image_id} with height and width "
                    f"{declared[image_id]}, where {self.name} has {tuple(size)}; give the JSON "
                    "that the data set was prepared from."
                )

    def _read_categories(
        self, builder: str, names: Sequence[str], truth: dict[str, Any] | None
    ) -> None:
        """Also the class of each of TFDS's labels."""
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
        """In the pictures' order: all of them, and those that are trained on."""
        unknown = (index.labels < 0) | (index.labels >= len(self._class_of))
        if unknown.any():
            raise ValueError(
                f"{self.name}: has the label {index.labels[unknown][0]}, which stands for none of "
                f"its {len(self._class_of)} categories; name a split that is annotated."
            )
        place = np.repeat(np.argsort(order), index.counts)
        rows = np.argsort(place, kind="stable")
        self._place, self._classes = place[rows], self._class_of[index.labels[rows]]
        self._crowd = index.crowd[rows]
        numbers = np.arange(1, len(rows) + 1)
        self._object_ids = index.object_ids[rows] if "objects/id" in features else numbers
        self._boxes, _ = to_pixels(index.boxes[rows], self.sizes[self._place])
        # A difference of hundredths has a tail that they have not.
        self._extents = np.round(self._boxes[:, 2:] - self._boxes[:, :2], 6)
        area = features.get("objects/area")
        self._areas = self._extents.prod(axis=1) if area is None else index.areas[rows]
        self._cuts_areas = area is not None and np.issubdtype(area.np_dtype, np.integer)

        inside, kept, stand_out = clip_to_image(self._boxes, self.sizes[self._place])
        self._warn(~kept, HAVE_NO_AREA)
        self._warn(kept & stand_out, STAND_OUT)
        self._trained = inside[kept], self._classes[kept], self._crowd[kept]
        self._bounds = np.searchsorted(self._place[kept], np.arange(len(self) + 1))

    def _warn(self, which: np.ndarray, what: str) -> None:
        if which.any():
            first = int(which.argmax())
            file_name = self._file_names[self._place[first]]
            label = f"annotation id {self._object_ids[first]} ({file_name})"
            logging.warning("%s: %d boxes %s (first: %s).", self.name, which.sum(), what, label)

    def _instances(self) -> list[dict[str, Any]]:
        """All objects as COCO has them."""
        columns = (
            self._object_ids,
            self._place,
            self._classes,
            self._boxes[:, 1::-1],
            self._extents[:, ::-1],
            self._areas,
            self._crowd,
        )
        return [
            {
                "id": object_id,
                "image_id": self.image_ids[place],
                "category_id": self.categories[k].id,
                "bbox": corner + extent,
                "area": area,
                "iscrowd": int(crowd),
            }
            for object_id, place, k, corner, extent, area, crowd in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]


def _prepared(builder: str, data_dir: str | os.PathLike | None) -> Any:
    """TFDS's `DatasetInfo`, from its files alone: nothing is downloaded, no builder's code runs."""
    try:
        from tensorflow_datasets.core import read_only_builder, registered
    except ImportError as error:
        raise ValueError(
            f"{builder}: reading it takes the package tensorflow_datasets ({error}); "
            "pip install tensorflow-datasets."
        ) from None
    folder = None if data_dir is None else os.path.expanduser(data_dir)
    if folder and "://" in folder:
        raise ValueError(
            f"data_dir={folder}: shards are read from a folder of this machine; mount it, or copy "
            "the data set."
        )
    try:
        return read_only_builder.builder_from_files(builder, data_dir=folder).info
    except registered.DatasetNotFoundError:
        arguments = repr(builder) + (f", data_dir={folder!r}" if folder else "")
        raise FileNotFoundError(
            f"{builder}: is not prepared in {folder or 'the default folder of TFDS'}; run python "
            f'-c "import tensorflow_datasets as tfds; tfds.builder({arguments})'
            '.download_and_prepare()"'
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{builder!r}: is no data set of TFDS ({str(error).splitlines()[0]}); write it as "
            "name/config or name/config:version, such as coco/2017."
        ) from None


def _features(name: str, features: Any) -> dict[str, Any]:
    """By key, such as objects/bbox; raises ValueError where these are not for detection."""
    import tensorflow_datasets as tfds

    flat: dict[str, Any] = {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(inner, tfds.features.FeaturesDict):
            flat |= {f"{key}/{own}": one for own, one in inner.items()}
        else:
            flat[key] = feature
    box = flat.get("objects/bbox")
    if (
        isinstance(flat.get("image"), tfds.features.Image)
        and isinstance(flat.get("objects/label"), tfds.features.ClassLabel)
        and isinstance(box, tfds.features.BBoxFeature)
        # Data sets from before there was a choice name no format.
        and (box.bbox_format is None or box.bbox_format.name == "REL_YXYX")
    ):
        return flat
    found = ", ".join(f"{key} ({type(flat[key]).__name__})" for key in sorted(flat))
    raise ValueError(
        f"{name}: has the features {found}; name a detection data set, with image (Image), "
        "objects/bbox (BBoxFeature, relative yxyx) and objects/label (ClassLabel)."
    )


def _cache_places(data_dir: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Of the index: hidden beside the shards, and in the user's cache."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    own = home / "retinanet_jax" / f"tfds-{digest}-{split}.npz"
    return data_dir / f".retinanet_jax-{split}.npz", own
