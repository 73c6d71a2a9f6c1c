"""Random access to the records in TFDS's shards.

Needs TFDS, or array_record for its format, but not TensorFlow.
"""

import abc
import os
from collections.abc import Iterator
from typing import Any


class Shards(abc.ABC):
    """Files of records, which several threads may read at the same time."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    @abc.abstractmethod
    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (shard, record, content) of all records; the numbers are arguments of `read`."""

    @abc.abstractmethod
    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """Return `length` bytes of a record, from its byte `start`."""


class TfRecords(Shards):
    """TensorFlow's format: a record's length in 8 bytes, a checksum in 4, the record, 4 more."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield all records; the number of a record is its offset in the file."""
        for shard, path in enumerate(self.paths):
            size = os.path.getsize(path)
            with open(path, "rb") as file:
                while (start := file.tell()) < size:
                    length = int.from_bytes(file.read(12)[:8], "little")
                    if start + 12 + length + 4 > size:
                        raise ValueError(
                            f"{path}: is truncated or corrupt after {start} bytes; prepare the "
                            "dataset again."
                        )
                    yield shard, start + 12, file.read(length)
                    file.seek(4, os.SEEK_CUR)

    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """Return `length` bytes from byte `record + start` of the file."""
        # Opened for every read, which takes microseconds: there may be more shards than a process
        # may keep open.
        file = os.open(self.paths[shard], os.O_RDONLY)
        try:
            return os.pread(file, length, record + start)
        finally:
            os.close(file)


class ArrayRecords(Shards):
    """The format made for random access, read by its own package; it does not survive a fork."""

    def __init__(self, paths: list[str]):
        super().__init__(paths)
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        except ImportError as error:
            raise ValueError(
                f"{paths[0]}: reading it requires the package array_record ({error}); "
                "pip install array_record."
            ) from None
        self._records = ArrayRecordDataSource(paths)

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield all records; their numbers count through all shards, and that of the shard is 0."""
        for record in range(len(self._records)):
            yield 0, record, self._records[record]

    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """Read the whole record and return a part of it."""
        return self._records[record][start : start + length]


FORMATS = {"tfrecord": TfRecords, "array_record": ArrayRecords}


def open_shards(name: str, info: Any, split: str) -> Shards:
    """Open the shards of a split.

    Args:
        name: The dataset's name in messages.
        info: The dataset's `DatasetInfo`.
        split: The name of a split, or several joined by "+".

    Raises:
        FileNotFoundError: If shards are missing.
        ValueError: If there is no such split, or the file format is not in FORMATS.
    """
    parts = split.split("+")
    unknown = [part for part in parts if part not in info.splits]
    if unknown:
        raise ValueError(
            f"{name}: has no split {unknown[0]!r}; name one of {', '.join(sorted(info.splits))}, "
            "or several joined by +."
        )
    file_format = info.file_format.value
    if file_format not in FORMATS:
        raise ValueError(
            f"{name}: is prepared as {file_format}, which has no random access; prepare it with "
            f"file_format={' or '.join(map(repr, FORMATS))}."
        )
    paths = [str(path) for part in parts for path in info.splits[part].filepaths]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{name}: {len(missing)} of {len(paths)} shards are missing, first {missing[0]}; "
            "restore them, or prepare the dataset again."
        )
    return FORMATS[file_format](paths)
