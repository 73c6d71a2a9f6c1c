"""An index of TFDS's shards, which is built by reading them once and stored for later runs.

It requires the package tensorflow_datasets, but not TensorFlow.
"""

import array
import hashlib
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64

from retinanet_jax.data.decoding import ORIENTATIONS, valid_orientation
from retinanet_jax.data.image_formats import open_image
from retinanet_jax.data.sources.tfds_shards import Shards
from retinanet_jax.utils.progress import make_progress

OBJECT_TYPES = (np.float32, np.int64, bool, np.float64, np.int64)  # of the last fields of `Index`
VERSION = 1  # of the index; increase it with every change of its content


class Index(NamedTuple):
    """All data of N images and their M objects except the pixels, in the order of the shards.

    Fields that the dataset does not have are zero.

    Attributes:
        spans: The position of each encoded image: the arguments of `Shards.read`.
        sizes: Height and width of each image.
        ids: The id of each image.
        file_names: The file name of each image.
        counts: The number of objects of each image.
        boxes: yxyx boxes, as fractions of the image.
        labels: TFDS's label of each object.
        crowd: Whether each object is a crowd region, or difficult.
        areas: The area of each object in square pixels.
        object_ids: The id of each object.
    """

    spans: Int64[np.ndarray, "N 4"]
    sizes: Int32[np.ndarray, "N 2"]
    ids: Int64[np.ndarray, " N"]
    file_names: np.ndarray
    counts: Int64[np.ndarray, " N"]
    boxes: Float32[np.ndarray, "M 4"]
    labels: Int64[np.ndarray, " M"]
    crowd: Bool[np.ndarray, " M"]
    areas: Float64[np.ndarray, " M"]
    object_ids: Int64[np.ndarray, " M"]


class _Example(NamedTuple):
    """The parsed content of a record."""

    start: int  # the first byte of the encoded image in the record
    length: int  # the number of bytes of the encoded image
    size: tuple[int, int]
    image_id: int
    file_name: str
    objects: tuple[np.ndarray, ...]  # boxes, labels, crowd, areas, object_ids


def cached_index(name: str, shards: Shards, total: int, paths: Sequence[pathlib.Path]) -> Index:
    """Load the index of the shards from a file, or build it and store it.

    It is stored in the first file that can be written. A stored index is used only for shards of
    the same names, sizes and modification times.

    Args:
        name: The dataset's name in messages.
        shards: The shards to index.
        total: The number of images that they should contain.
        paths: The files in which the index may be stored.

    Raises:
        ValueError: As in `build_index`.
    """
    stats = [(os.path.basename(path), os.stat(path)) for path in shards.paths]
    identity = [(file_name, stat.st_size, stat.st_mtime_ns) for file_name, stat in stats]
    key = hashlib.sha256(repr((VERSION, identity)).encode()).hexdigest()
    for path in paths:
        index = _load(path, key)
        if index is not None:
            return index
    start = time.monotonic()
    index = build_index(name, shards, total)
    seconds = time.monotonic() - start
    for path in paths:
        if _save(path, key, index):
            print(f"{name}: indexed {total} images in {seconds:.1f} s, stored in {path}")
            return index
    logging.warning(
        "%s: the index of its images cannot be stored in %s; every run will build it again.",
        name,
        " or ".join(map(str, paths)),
    )
    return index


def build_index(name: str, shards: Shards, total: int) -> Index:
    """Build the index by reading every record, and print progress.

    Args:
        name: The dataset's name in messages.
        shards: The shards to index.
        total: The number of images that they should contain.

    Raises:
        ValueError: If there are not exactly `total` images, or an image is invalid.
    """
    progress = make_progress(f"indexing {name}", total)
    # Compact, since lists of Python's objects would take a kilobyte per image.
    spans, sizes, ids, counts = (array.array(code) for code in "qiqq")
    file_names: list[str] = []
    objects = [bytearray() for _ in OBJECT_TYPES]
    for shard, record, content in shards:
        example = _parse(content, f"{name} {shard}:{record}")
        spans.extend((shard, record, example.start, example.length))
        sizes.extend(example.size)
        ids.append(example.image_id)
        file_names.append(example.file_name)
        counts.append(len(example.objects[0]))
        for column, values in zip(objects, example.objects, strict=True):
            column += values.tobytes()
        if len(ids) <= total:
            progress(len(ids))
    if not total or len(ids) != total:
        raise ValueError(
            f"{name}: its shards contain {len(ids)} images, but dataset_info.json declares "
            f"{total}; prepare the dataset again, or use one that is not empty."
        )
    boxes, *others = map(np.frombuffer, objects, OBJECT_TYPES)
    return Index(
        np.array(spans, np.int64).reshape(-1, 4),
        np.array(sizes, np.int32).reshape(-1, 2),
        np.array(ids, np.int64),
        np.array(file_names),
        np.array(counts, np.int64),
        boxes.reshape(-1, 4),
        *others,
    )


def to_pixels(
    relative: Float32[np.ndarray, "M 4"], sizes: Int[np.ndarray, "M 2"]
) -> tuple[Float64[np.ndarray, "M 4"], Bool[np.ndarray, "M 4"]]:
    """Convert TFDS's boxes to pixels, and undo their rounding where that is possible.

    TFDS stores fractions of the image in float32, with an error of up to 2**-25, or 1.9e-5 pixels
    of 640. COCO's coordinates are hundredths of a pixel: if one of these would be stored as the
    same float32, it is returned.

    Args:
        relative: yxyx boxes as fractions of their images.
        sizes: Height and width of each box's image.

    Returns:
        The boxes in pixels, and a mask of the coordinates that are such hundredths.
    """
    limits = np.tile(sizes, 2).astype(np.float64)
    pixels = relative * limits
    hundredths = np.rint(pixels * 100) / 100
    exact = (hundredths / limits).astype(np.float32) == relative
    return np.where(exact, hundredths, pixels), exact


def _parse(record: bytes, default_name: str) -> _Example:
    """Parse a record; `default_name` is the file name of an image that has none."""
    features = _protocol().Example.FromString(record).features.feature  # missing keys are empty
    image = features["image"].bytes_list.value[0]
    start = record.index(image[:64])
    if not record.startswith(image, start):  # searching for the whole image takes much longer
        start = record.index(image)
    file_name = b"".join(features["image/filename"].bytes_list.value).decode() or default_name
    boxes = np.array(list(features["objects/bbox"].float_list.value), np.float32).reshape(-1, 4)

    def field(key: str, dtype: type) -> np.ndarray:
        feature = features[f"objects/{key}"]
        values = feature.int64_list.value or feature.float_list.value or [0] * len(boxes)
        return np.array(list(values), dtype)  # much faster than numpy on the protocol's own list

    return _Example(
        start=start,
        length=len(image),
        size=_annotated_size(image, file_name, boxes),
        image_id=sum(features["image/id"].int64_list.value),
        file_name=file_name,
        objects=(
            boxes,
            field("label", np.int64),
            field("is_crowd", bool) | field("is_difficult", bool),
            field("area", np.float64),
            field("id", np.int64),
        ),
    )


def _protocol() -> Any:
    """Import TFDS's own copy of TensorFlow's protocol buffers."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2


def _annotated_size(data: bytes, name: str, boxes: Float32[np.ndarray, "n 4"]) -> tuple[int, int]:
    """Return the height and width that an image was annotated with, from its header.

    TFDS does not store them. If the EXIF orientation swaps the sides, the annotated size is the one
    for which more coordinates are hundredths of a pixel, and in a tie that of the oriented image.
    """
    try:
        image = open_image(io.BytesIO(data), name)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')} and prepare the dataset again.") from None
    orientation = valid_orientation(image, name, None)
    width, height = image.size
    if not ORIENTATIONS[orientation][0]:
        return height, width
    oriented, stored = (width, height), (height, width)
    num_exact = [
        to_pixels(boxes, np.tile(size, (len(boxes), 1)))[1].sum() for size in (oriented, stored)
    ]
    return stored if num_exact[1] > num_exact[0] else oriented


def _load(path: pathlib.Path, key: str) -> Index | None:
    """Load an index; None if there is none, or it is broken or belongs to other shards."""
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as fields:
            if str(fields["key"]) != key:
                return None
            return Index(*(fields[name] for name in Index._fields))
    except Exception as error:  # broken content makes zipfile and numpy raise almost anything
        logging.warning("%s: is broken (%s) and will be built again.", path, error)
        return None


def _save(path: pathlib.Path, key: str, index: Index) -> bool:
    """Write the index completely or not at all, and return whether it could be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{path.name}-", dir=path.parent) as folder:
            draft = pathlib.Path(folder) / path.name
            with open(draft, "wb") as file:
                np.savez(file, key=np.array(key), **index._asdict())
            draft.replace(path)
    except OSError:
        return False
    return True
