"""TFDS's shards: their records by index, and what one pass over them finds, kept for the next run.

Needs TFDS, not TensorFlow.
"""

import abc
import hashlib
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64
from PIL import Image

from retinanet_jax.data.transforms import ORIENTATIONS, valid_orientation

VERSION = 1  # of the index: raise it with any change of what it holds
PROGRESS_INTERVAL = 5.0  # seconds between two lines of progress


class Index(NamedTuple):
    """What is known of N pictures and their M objects; zero where the data set does not say."""

    spans: Int64[np.ndarray, "N 4"]  # the encoded picture, as arguments of `Shards.read`
    sizes: Int32[np.ndarray, "N 2"]
    ids: Int64[np.ndarray, " N"]
    file_names: np.ndarray  # N strings
    counts: Int64[np.ndarray, " N"]  # objects of each picture; they follow each other
    boxes: Float32[np.ndarray, "M 4"]  # yxyx, shares of the picture
    labels: Int64[np.ndarray, " M"]
    crowd: Bool[np.ndarray, " M"]
    areas: Float[np.ndarray, " M"]
    object_ids: Int64[np.ndarray, " M"]


class Shards(abc.ABC):
    """Files of records; threads may share them."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    @abc.abstractmethod
    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """(shard, record, content) of each record in turn; the numbers are for `read`."""

    @abc.abstractmethod
    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """`length` bytes of a record, from byte `start` of it."""


class TfRecords(Shards):
    """TensorFlow's format: a record's length in 8 bytes, 4 of a checksum, the record, 4 more."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """The record's number is the byte at which it starts."""
        for shard, path in enumerate(self.paths):
            size = os.path.getsize(path)
            with open(path, "rb") as file:
                while (start := file.tell()) < size:
                    length = int.from_bytes(file.read(12)[:8], "little")
                    if start + 12 + length + 4 > size:
                        raise ValueError(
                            f"{path}: is cut short or corrupt after {start} bytes; prepare the "
                            "data set again."
                        )
                    yield shard, start + 12, file.read(length)
                    file.seek(4, os.SEEK_CUR)

    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """`length` bytes from byte `record + start` of the file."""
        # Opened anew, which takes microseconds: there may be more than a process may hold open.
        file = os.open(self.paths[shard], os.O_RDONLY)
        try:
            return os.pread(file, length, record + start)
        finally:
            os.close(file)


class ArrayRecords(Shards):
    """The format made for random access, by its own package; it does not survive a fork."""

    def __init__(self, paths: list[str]):
        super().__init__(paths)
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        except ImportError as error:
            raise ValueError(
                f"{paths[0]}: reading it takes the package array_record ({error}); "
                "pip install array_record."
            ) from None
        self._records = ArrayRecordDataSource(paths)

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """The record's number counts through all shards; that of the shard is not used."""
        for record in range(len(self._records)):
            yield 0, record, self._records[record]

    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """Reads the whole record."""
        return self._records[record][start : start + length]


FORMATS = {"tfrecord": TfRecords, "array_record": ArrayRecords}


def open_shards(name: str, info: Any, split: str) -> Shards:
    """Those of a split, or of several joined by "+", of a data set with TFDS's `DatasetInfo`.

    Raises ValueError where there is no such split or the format is another, FileNotFoundError
    where shards are missing.
    """
    parts = split.split("+")
    unknown = [part for part in parts if part not in info.splits]
    if unknown:
        raise ValueError(
            f"{name}: has no split {unknown[0]!r}; name one of {', '.join(sorted(info.splits))}, "
            "or several joined by +."
        )
    kind = info.file_format.value
    if kind not in FORMATS:
        raise ValueError(
            f"{name}: is prepared as {kind}, which is not read by index; prepare it with "
            f"file_format={' or '.join(map(repr, FORMATS))}."
        )
    paths = [str(path) for part in parts for path in info.splits[part].filepaths]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{name}: {len(missing)} of {len(paths)} shards are missing, first {missing[0]}; "
            "restore them, or prepare the data set again."
        )
    return FORMATS[kind](paths)


def cached_index(name: str, shards: Shards, total: int, places: Sequence[pathlib.Path]) -> Index:
    """The index of `total` pictures, from the first of the files `places` that holds it.

    Else it is made, which a progress line tells, and kept in the first that can be written. An
    index is known by its shards' names, sizes and times of change.
    """
    stats = [(os.path.basename(path), os.stat(path)) for path in shards.paths]
    known_by = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    key = hashlib.sha256(repr((VERSION, known_by)).encode()).hexdigest()
    for place in places:
        index = _load(place, key)
        if index is not None:
            return index
    began = time.monotonic()
    index = build_index(name, shards, total)
    seconds = time.monotonic() - began
    for place in places:
        if _save(place, key, index):
            print(f"{name}: indexed {total} pictures in {seconds:.1f} s, kept in {place}")
            return index
    logging.warning(
        "%s: the index of its pictures cannot be kept in %s; every run will make it again.",
        name,
        " or ".join(map(str, places)),
    )
    return index


def build_index(name: str, shards: Shards, total: int) -> Index:
    """Reads every record; raises ValueError where there are not `total` or one is unusable."""
    pictures, objects = [], []
    began = told = time.monotonic()
    for shard, record, content in shards:
        (start, length, *of_picture), of_objects = _parse(content, f"{name} {shard}:{record}")
        pictures.append(((shard, record, start, length), *of_picture, len(of_objects[0])))
        objects.append(of_objects)
        if time.monotonic() - told > PROGRESS_INTERVAL:
            told = time.monotonic()
            speed = len(pictures) / (told - began)
            print(
                f"{name}: indexed {len(pictures)}/{total} pictures  {speed:.0f} pictures/s  "
                f"{(total - len(pictures)) / speed:.0f} s left",
                flush=True,
            )
    if not total or len(pictures) != total:
        raise ValueError(
            f"{name}: its shards hold {len(pictures)} pictures, where dataset_info.json counts "
            f"{total}; prepare a data set that has some, again."
        )
    spans, sizes, ids, file_names, counts = zip(*pictures, strict=True)
    return Index(
        np.array(spans, np.int64),
        np.array(sizes, np.int32),
        np.array(ids, np.int64),
        np.array(file_names),
        np.array(counts, np.int64),
        *map(np.concatenate, zip(*objects, strict=True)),
    )


def to_pixels(
    relative: Float32[np.ndarray, "M 4"], sizes: Int[np.ndarray, "M 2"]
) -> tuple[Float[np.ndarray, "M 4"], Bool[np.ndarray, "M 4"]]:
    """TFDS's boxes in pixels of pictures of `sizes` (height, width), and what of them is exact.

    A share of the picture in float32 is off by up to 2**-25 of it, 1.9e-5 pixels in 640. Where a
    number of hundredths, as COCO has them, is stored as this very float32, it is what was stored.
    """
    limits = np.tile(sizes, 2).astype(np.float64)
    pixels = relative * limits
    hundredths = np.rint(pixels * 100) / 100
    exact = (hundredths / limits).astype(np.float32) == relative
    return np.where(exact, hundredths, pixels), exact


def _parse(
    record: bytes, place: str
) -> tuple[tuple[int, int, tuple[int, int], int, str], tuple[np.ndarray, ...]]:
    """(start, length, size, id, file name) of a picture, and its objects' fields of `Index`."""
    features = _protocol().Example.FromString(record).features.feature  # absent ones are empty
    picture = features["image"].bytes_list.value[0]
    start = record.index(picture[:64])
    if not record.startswith(picture, start):  # searching for all of it takes much longer
        start = record.index(picture)
    file_name = b"".join(features["image/filename"].bytes_list.value).decode() or place
    boxes = np.array(list(features["objects/bbox"].float_list.value), np.float32).reshape(-1, 4)

    def field(key: str, dtype: type) -> np.ndarray:
        values = features[f"objects/{key}"]
        found = values.int64_list.value or values.float_list.value or [0] * len(boxes)
        return np.array(list(found), dtype)  # numpy takes a list much faster than a message's

    image_id = sum(features["image/id"].int64_list.value)
    size = _annotated_size(picture, file_name, boxes)
    return (start, len(picture), size, image_id, file_name), (
        boxes,
        field("label", np.int64),
        field("is_crowd", bool) | field("is_difficult", bool),
        field("area", np.float64),
        field("id", np.int64),
    )


def _protocol() -> Any:
    """TFDS's own copy of the messages that TensorFlow defines."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2


def _annotated_size(data: bytes, name: str, boxes: Float32[np.ndarray, "n 4"]) -> tuple[int, int]:
    """The height and width that the boxes are shares of, from the picture's header.

    TFDS stores neither. A picture that its EXIF orientation lays on its side was annotated as it is
    shown, unless more coordinates come to hundredths of a pixel in the picture as it is stored.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            orientation = valid_orientation(picture, name, None)
            width, height = picture.size
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        raise ValueError(
            f"{name}: the picture's size cannot be read ({error}); replace it and prepare the "
            "data set again."
        ) from None
    if not ORIENTATIONS[orientation][0]:
        return height, width
    shown, stored = (width, height), (height, width)
    exact = [to_pixels(boxes, np.tile(size, (len(boxes), 1)))[1].sum() for size in (shown, stored)]
    return stored if exact[1] > exact[0] else shown


def _load(path: pathlib.Path, key: str) -> Index | None:
    """None where there is none, or that of other shards, or a broken one."""
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as fields:
            if str(fields["key"]) != key:
                return None
            return Index(*(fields[name] for name in Index._fields))
    except Exception as error:  # broken content makes zipfile and numpy raise almost anything
        logging.warning("%s: is broken (%s) and will be made again.", path, error)
        return None


def _save(path: pathlib.Path, key: str, index: Index) -> bool:
    """As a whole or not at all; returns whether it could be written."""
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
