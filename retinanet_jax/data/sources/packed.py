"""The `packed` format: a folder of decoded and resized images, which is memory-mapped.

It is meant for hosts that decode more slowly than their accelerator trains, for small datasets, and
for machines without TensorFlow. `retinanet-jax pack` writes the folder, which contains:

- `pictures.bin`: the pixels of all images, one after the other, in uint8 RGB,
- `objects.npz`: sizes (original and packed) and boxes of all images,
- `packed.json`: categories, ids, file names, the settings of resizing, and the size of each file.

Version 1 of the format also has `ground_truth.json`, the boxes in COCO's JSON format.
"""

import hashlib
import json
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from retinanet_jax.data import transforms
from retinanet_jax.data.sizes import Length, resized_sizes
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.coco import CocoContent, load_instances
from retinanet_jax.data.sources.instances import InstancesSource
from retinanet_jax.data.sources.objects import Objects
from retinanet_jax.utils.files import write_folder
from retinanet_jax.utils.threads import map_ahead

FORMAT = "retinanet_jax packed"
VERSION = 2  # of the format
PIXELS = "pictures.bin"
OBJECTS, GROUND_TRUTH, HEADER = "objects.npz", "ground_truth.json", "packed.json"
GIGABYTE = 1e9


class PackedSource(InstancesSource):
    """A dataset in a folder that `write_packed` has written.

    Sizes and boxes are those of the original images, so that plans and AP are the same as with the
    original dataset. Only `image` differs, as it returns the stored pixels, which are already
    resized.

    Attributes:
        short_side: The target length of the short side, in pixels, that images were resized to.
        long_side: The maximal length of the long side, in pixels.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.
    """

    def __init__(self, folder: str | os.PathLike):
        """Read everything but the pixels, and check the sizes of all files.

        Args:
            folder: The folder.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the folder contains something else, or is incomplete or damaged.
        """
        self._folder = pathlib.Path(folder)
        header = _read_header(self._folder)
        arrays = _read_arrays(self._folder, header)
        if header["version"] == 1:
            path = self._folder / GROUND_TRUTH
            contents = CocoContent(str(path), load_instances(path))
            objects, image_ids = contents.objects, contents.image_ids
        else:
            objects = Objects(*(arrays[field] for field in Objects._fields))
            image_ids = header["image_ids"]
        super().__init__(
            str(folder),
            image_ids=image_ids,
            file_names=header["file_names"],
            sizes=arrays["sizes"],
            categories=[Category(*category) for category in header["categories"]],
            objects=objects,
            label="annotation id {}".format,
        )
        self.short_side, self.long_side = header["short_side"], header["long_side"]
        self.resize = header["resize"]
        self._packed_sizes = arrays["packed_sizes" if "packed_sizes" in arrays else "held"]
        self._pixel_bounds = _bounds(self._packed_sizes.astype(np.int64).prod(axis=1) * 3)
        # A plain array of the same memory, because slicing a memmap takes several times as long.
        self._pixels = np.asarray(np.memmap(self._folder / PIXELS, np.uint8, "r"))

    def read(self, index: int) -> None:
        """Return None, because there are no image files."""

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the packed pixels of the image at `index`, a read-only view of the file."""
        height, width = self._packed_sizes[index].tolist()
        start, stop = self._pixel_bounds[index : index + 2]
        return self._pixels[start:stop].reshape(height, width, 3)


def write_packed(
    source: Source,
    folder: str | os.PathLike,
    *,
    short_side: Length,
    long_side: Length,
    resize: str,
    num_threads: int | None = None,
    progress: Callable[[int], None],
) -> PackedSource:
    """Decode and resize every image of `source` into `folder`, and open it.

    The folder is written completely or not at all. If it already exists with the same names, ids,
    sizes and boxes, it is not written again; the pixels are not compared.

    Args:
        source: The dataset.
        folder: The folder to write.
        short_side: The target length of the short side in pixels, as in a plan. Smaller images are
            enlarged, so that a plan with the same sides gets the same pixels as from the files.
        long_side: The maximal length of the long side, in pixels.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`; its pixels must be bytes.
        num_threads: The number of threads; None means the number of cores.
        progress: Called with the number of images written so far.

    Raises:
        OSError: If the disk has too little free space, or a file cannot be written.
        ValueError: If `folder` contains something else, the pixels of `resize` are not bytes, or
            `source` has no images or an invalid image.
    """
    _check_packable(source, resize)
    folder = pathlib.Path(folder)
    sizes = resized_sizes(source.sizes, short_side=short_side, long_side=long_side, resize=resize)
    arrays = _stack_arrays(source, sizes)
    header = _make_header(
        source, arrays, {"short_side": short_side, "long_side": long_side, "resize": resize}
    )

    def write(draft: pathlib.Path) -> None:
        _check_space(folder, 3 * int(sizes.astype(np.int64).prod(axis=1).sum()))
        with (draft / PIXELS).open("wb") as file:
            for count, pixels in enumerate(_resized_images(source, sizes, resize, num_threads), 1):
                file.write(pixels.data)
                progress(count)
        _write_rest(draft, arrays, header)

    if not _is_written(folder, header):
        write_folder(folder, write, lambda: _is_written(folder, header))
    return PackedSource(folder)


def _check_packable(source: Source, resize: str) -> None:
    """Check that there are images, and that their pixels are bytes."""
    if resize == "bilinear_float":
        raise ValueError(
            "resize='bilinear_float' returns pixels that are not rounded, and packed pixels are "
            "bytes; set data.resize to 'bilinear', or train on the image files."
        )
    if not len(source):
        raise ValueError(f"{source.name}: has no images to pack; check its paths.")


def _stack_arrays(source: Source, sizes: Int32[np.ndarray, "N 2"]) -> dict[str, np.ndarray]:
    """Return the arrays of the file `OBJECTS`; `sizes` are those of the packed images."""
    arrays = {"sizes": source.sizes, "packed_sizes": sizes, **source.objects._asdict()}
    if arrays["ids"].dtype == object:  # integers of any size, which only a pickle could contain
        arrays["ids"] = np.arange(1, len(arrays["ids"]) + 1)
    return arrays


def _make_header(
    source: Source, arrays: dict[str, np.ndarray], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of the file `HEADER`, except the sizes of the other files.

    Its digest identifies everything that is packed except the pixels.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "source": source.name,
        **settings,
        "decodings": sorted({str(source.decoding_of(index)) for index in range(len(source))}),
        "categories": [list(category) for category in source.categories],
        "image_ids": list(source.image_ids),
        "file_names": list(source.file_names),
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return header | {"digest": digest.hexdigest()}


def _write_rest(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], header: dict[str, Any]
) -> None:
    """Write everything but the pixels, the header last."""
    np.savez(folder / OBJECTS, allow_pickle=False, **arrays)
    sizes = {name: (folder / name).stat().st_size for name in (PIXELS, OBJECTS)}
    (folder / HEADER).write_text(json.dumps(header | {"bytes": sizes}))


def _resized_images(
    source: Source, sizes: Int32[np.ndarray, "N 2"], resize: str, num_threads: int | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Return the resized images in order, computed ahead by threads."""

    def resized(index: int) -> UInt8[np.ndarray, "H W 3"]:
        image, (height, width) = source.image(index), sizes[index].tolist()
        if image.shape[:2] != (height, width):
            image = transforms.resize(image, height, width, method=resize)
        return np.ascontiguousarray(image)

    threads = num_threads or os.cpu_count() or 1
    return map_ahead(resized, range(len(source)), num_ahead=2 * threads - 1, num_threads=threads)


def _bounds(counts: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N+1"]:
    """Return the start of the data of each image, and the end of the last image's."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _is_written(folder: pathlib.Path, header: dict[str, Any]) -> bool:
    """Return whether the folder exists with this header; raise ValueError for another header."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    existing = _read_header(folder)
    if existing["version"] != VERSION:
        raise ValueError(
            f"{folder}: was packed in format version {existing['version']}, which is still read; "
            "to pack it again, remove it or give another folder."
        )
    if existing["digest"] != header["digest"]:
        fields = ("source", "short_side", "long_side", "resize", "decodings")
        raise ValueError(
            f"{folder}: contains {', '.join(f'{name}={existing[name]}' for name in fields)}, not "
            f"{', '.join(f'{name}={header[name]}' for name in fields)} with the present "
            "annotations; remove it, or give another folder."
        )
    return True


def _read_header(folder: pathlib.Path) -> dict[str, Any]:
    """Read the file `HEADER`, and check that it describes a packed folder."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder of packed images; retinanet-jax pack writes one."
        )
    try:
        header = json.loads((folder / HEADER).read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: contains no packed images ({HEADER} is missing); give the folder that "
            "retinanet-jax pack has written."
        ) from None
    except ValueError as error:
        raise _damaged(folder, f"{HEADER}: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{folder}: {HEADER} is not of packed images; give another folder.")
    if header["version"] not in range(1, VERSION + 1):
        raise ValueError(
            f"{folder}: was packed in format version {header['version']}, but this program reads "
            f"versions 1 to {VERSION}; remove it and pack it again."
        )
    return header


def _read_arrays(folder: pathlib.Path, header: dict[str, Any]) -> dict[str, np.ndarray]:
    """Check the sizes of all files and read the file `OBJECTS`."""
    try:
        for name, expected in header["bytes"].items():
            size = (folder / name).stat().st_size
            if size != expected:
                raise ValueError(f"{name} has {size} bytes, not {expected}")
        with np.load(folder / OBJECTS) as file:  # reading a zip file verifies its checksums
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: pathlib.Path, problem: object) -> ValueError:
    return ValueError(
        f"{folder}: the packed images are incomplete or damaged ({problem}); remove the folder and "
        "pack it again."
    )


def _check_space(folder: pathlib.Path, required: int) -> None:
    """Raise OSError if the disk has fewer free bytes than are required."""
    free = shutil.disk_usage(folder.parent).free
    if required > free:
        raise OSError(
            f"{folder}: the images require {required / GIGABYTE:.2f} GB, but only "
            f"{free / GIGABYTE:.2f} GB are free; give a folder on a larger disk, or a smaller "
            "short side."
        )
