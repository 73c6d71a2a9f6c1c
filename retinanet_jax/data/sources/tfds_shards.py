"""Random access to the records in TFDS's shards, without TensorFlow.

Shards in the format array_record require the package of that name.
"""

import abc
import os
from collections.abc import Iterator
from typing import Any

from retinanet_jax.utils.packages import import_optional


class Shards(abc.ABC):
    """Files of records, which several threads may read at the same time."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    @abc.abstractmethod
    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (shard, record, content) of all records, where the first two are for `read`."""

    @abc.abstractmethod
    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """Return a part of a record.

        Args:
            shard: From `__iter__`.
            record: From `__iter__`.
            start: The first byte.
            length: The number of bytes.
        """


class TfRecords(Shards):
    """TensorFlow's format: each record has 8 bytes of length, a checksum, content, a checksum."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield all records; `record` is the offset of its content in the file."""
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
        """Return a part of a record; see `Shards.read`."""
        # The file is opened for every read, which takes microseconds, because there may be more
        # shards than a process may have open files.
        file = os.open(self.paths[shard], os.O_RDONLY)
        try:
            return os.pread(file, length, record + start)
        finally:
            os.close(file)


class ArrayRecords(Shards):
    """The array_record format, which is made for random access; it does not survive a fork."""

    def __init__(self, paths: list[str]):
        super().__init__(paths)
        array_record = import_optional(
            "array_record.python.array_record_data_source", paths[0], "array_record"
        )
        self._records = array_record.ArrayRecordDataSource(paths)

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield all records, numbered over all shards; `shard` is always 0."""
        for record in range(len(self._records)):
            yield 0, record, self._records[record]

    def read(self, shard: int, record: int, start: int, length: int) -> bytes:
        """Read the whole record and return a part of it; see `Shards.read`."""
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
            f"{name}: has no split {unknown[0]!r}; give one of {', '.join(sorted(info.splits))}, "
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
