"""`packed`: decoded and resized pictures with their boxes, in a folder that is mapped into memory.

For hosts that can't feed their accelerator, for small data sets, and for machines without
TensorFlow. `python -m retinanet_jax.pack` writes it. The folder holds

pictures.bin: the pixels of all pictures, uint8 RGB, one after the other, and nothing else
objects.npz: ids, sizes (the originals' and those held) and boxes of all pictures
ground_truth.json: what AP is computed against, as COCO JSON
packed.json: categories, file names, the recipe, and how large the other files are
"""

import collections
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from retinanet_jax.data import transforms
from retinanet_jax.data.sizes import resized_sizes
from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.utils.files import write_folder

FORMAT = "retinanet_jax packed"
VERSION = 1  # of the files' layout
PIXELS, OBJECTS, TRUTH, HEADER = "pictures.bin", "objects.npz", "ground_truth.json", "packed.json"
GIGABYTE = 1e9


class PackedSource(Source):
    """A folder that `write_packed` wrote.

    Sizes and boxes are those of the original pictures, so that plans and AP are the same as with
    the data that was packed; `picture` gives the pixels that are held, resized once already.
    Raises FileNotFoundError where there is no such folder, and ValueError where it holds something
    else or is incomplete. Only sizes are compared, which is quick, not the pixels.
    """

    def __init__(self, folder: str | os.PathLike):
        self.name = str(folder)
        self._folder = pathlib.Path(folder)
        header = _read_header(self._folder)
        objects = self._read_objects(header)
        self.categories = tuple(Category(*one) for one in header["categories"])
        self.image_ids = objects["image_ids"].tolist()
        self.sizes = objects["sizes"]
        self.short_side, self.long_side = header["short_side"], header["long_side"]
        self.resize = header["resize"]
        self._file_names = header["file_names"]
        self._held = objects["held"]
        self._starts = _starts(self._held.astype(np.int64).prod(axis=1) * 3)
        self._bounds = _starts(objects["counts"])
        self._objects = Annotations(objects["boxes"], objects["classes"], objects["crowd"])
        # As a plain array, whose slices are made in a fraction of the time of a memmap's.
        self._pixels = np.asarray(np.memmap(self._folder / PIXELS, np.uint8, "r"))

    def annotations(self, index: int) -> Annotations:
        """The objects as the packed source gave them, in pixels of the original picture."""
        start, stop = self._bounds[index : index + 2]
        return Annotations(*(field[start:stop] for field in self._objects))

    def file_name(self, index: int) -> str:
        """As the packed source had it."""
        return self._file_names[index]

    def read(self, index: int) -> None:
        """None: there are no files."""

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """The pixels in the file itself, not a copy: read-only."""
        height, width = self._held[index].tolist()
        start, stop = self._starts[index : index + 2]
        return self._pixels[start:stop].reshape(height, width, 3)

    def ground_truth(self) -> dict[str, Any]:
        """As the packed source gave it; read anew, as training has no use for it in memory."""
        return json.loads((self._folder / TRUTH).read_bytes())

    def _read_objects(self, header: dict[str, Any]) -> dict[str, np.ndarray]:
        try:
            for name, size in header["bytes"].items():
                found = (self._folder / name).stat().st_size
                if found != size:
                    raise ValueError(f"{name} has {found} bytes, not {size}")
            with np.load(self._folder / OBJECTS) as file:  # a zip: it checks its own sums
                return dict(file)
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise _broken(self._folder, error) from None


def write_packed(
    source: Source,
    folder: str | os.PathLike,
    *,
    short_side: float,
    long_side: float,
    resize: str,
    num_threads: int | None = None,
    progress: Callable[[int], None],
) -> PackedSource:
    """Decodes and resizes every picture of `source` into `folder`, and opens that.

    short_side, long_side: pixels, as in a plan; a picture is held as a plan with the same sides
    asks for it, enlarged too, so that training there sees what decoding and resizing would give.
    resize: the kind of resizing, of transforms.PIXEL_TYPES, whose pixels are bytes.
    progress: called with the number of pictures done. num_threads None: one a core.
    A folder that holds the same already is left as it is, by names, ids, sizes and boxes, not by
    the pictures' content. It appears as a whole or not at all.
    Raises ValueError where the folder holds something else or `resize` gives no bytes, OSError
    where the disk is too small, and whatever `source` raises where a picture cannot be used.
    """
    if resize == "bilinear_float":
        raise ValueError(
            "resize='bilinear_float' gives pixels that are not rounded, and packed ones are bytes; "
            "set data.resize to 'bilinear', or read the files themselves."
        )
    if not len(source):
        raise ValueError(f"{source.name}: has no pictures to pack; check its paths.")
    folder = pathlib.Path(folder)
    held = resized_sizes(source.sizes, short_side=short_side, long_side=long_side, resize=resize)
    objects = _objects(source, held)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "source": source.name,
        "short_side": short_side,
        "long_side": long_side,
        "resize": resize,
        "categories": [list(category) for category in source.categories],
        "file_names": [source.file_name(index) for index in range(len(source))],
    }
    header["digest"] = _digest(header, objects)
    if _is_written(folder, header):
        return PackedSource(folder)

    def write(draft: pathlib.Path) -> None:
        _check_space(folder, 3 * int(held.astype(np.int64).prod(axis=1).sum()))
        with (draft / PIXELS).open("wb") as file:
            for done, pixels in enumerate(_resized(source, held, resize, num_threads), 1):
                file.write(pixels.data)
                progress(done)
        np.savez(draft / OBJECTS, allow_pickle=False, **objects)
        (draft / TRUTH).write_text(json.dumps(source.ground_truth()))
        header["bytes"] = {name: (draft / name).stat().st_size for name in (PIXELS, OBJECTS, TRUTH)}
        (draft / HEADER).write_text(json.dumps(header))

    write_folder(folder, write, lambda: _is_written(folder, header))
    return PackedSource(folder)


def _objects(source: Source, held: Int32[np.ndarray, "N 2"]) -> dict[str, np.ndarray]:
    """All that is known of the pictures, one array a field."""
    each = [source.annotations(index) for index in range(len(source))]
    return {
        "image_ids": np.array(source.image_ids, np.int64),
        "sizes": source.sizes,
        "held": held,
        "counts": np.array([len(one.classes) for one in each], np.int64),
        "boxes": np.concatenate([one.boxes for one in each]),
        "classes": np.concatenate([one.classes for one in each]),
        "crowd": np.concatenate([one.crowd for one in each]),
    }


def _resized(
    source: Source, held: Int32[np.ndarray, "N 2"], resize: str, num_threads: int | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures in order, made by threads, some ahead."""

    def resized(index: int) -> UInt8[np.ndarray, "H W 3"]:
        picture, (height, width) = source.image(index), held[index].tolist()
        if picture.shape[:2] != (height, width):
            picture = transforms.resize(picture, height, width, kind=resize)
        return np.ascontiguousarray(picture)

    threads = num_threads or os.cpu_count() or 1
    pool = futures.ThreadPoolExecutor(threads)
    indices = iter(range(len(source)))
    ahead: collections.deque[futures.Future] = collections.deque()
    try:
        for _ in range(len(source)):
            for index in itertools.islice(indices, 2 * threads - len(ahead)):
                ahead.append(pool.submit(resized, index))
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each one's part begins, and where the last one's ends."""
    return np.concatenate([[0], np.cumsum(counts)])


def _digest(header: dict[str, Any], objects: dict[str, np.ndarray]) -> str:
    """Of all that tells one packing from another, but the pixels."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in objects.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _is_written(folder: pathlib.Path, header: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = _read_header(folder)
    if found["digest"] != header["digest"]:
        what = ("source", "short_side", "long_side", "resize")
        raise ValueError(
            f"{folder}: holds {', '.join(f'{name}={found[name]}' for name in what)}, not "
            f"{', '.join(f'{name}={header[name]}' for name in what)} with the present annotations; "
            "remove it or name another folder."
        )
    return True


def _read_header(folder: pathlib.Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder of packed pictures; python -m retinanet_jax.pack "
            "writes one."
        )
    try:
        header = json.loads((folder / HEADER).read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: holds no packed pictures ({HEADER} is missing); name the folder that "
            "python -m retinanet_jax.pack wrote."
        ) from None
    except ValueError as error:
        raise _broken(folder, f"{HEADER}: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{folder}: {HEADER} is not of packed pictures; name another folder.")
    if header["version"] != VERSION:
        raise ValueError(
            f"{folder}: was packed in layout {header['version']}, and this program reads "
            f"{VERSION}; remove it and pack it anew."
        )
    return header


def _broken(folder: pathlib.Path, what: object) -> ValueError:
    return ValueError(
        f"{folder}: the packed pictures are incomplete or damaged ({what}); remove the folder and "
        "pack it anew."
    )


def _check_space(folder: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(
            f"{folder}: the pictures take {needed / GIGABYTE:.2f} GB and {free / GIGABYTE:.2f} GB "
            "are free there; name a folder on a larger disk, or a smaller short side."
        )
