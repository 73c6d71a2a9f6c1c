"""StableHLO by `jax.export`: one file for CPU, CUDA and TPU that requires only jax."""

import pathlib

import jax
import numpy as np
from jax import export

from retinanet_jax.export.servable import PLATFORMS, ArtifactFunction, Servable

FILE = "detector.jaxexport"
PACKAGES = ("flatbuffers",)  # `serialize` imports it, though jax does not require it


def export_servable(servable: Servable) -> export.Exported:
    """Return the detector as jax exports it, with its weights among its constants."""

    # A plain tuple: to load a named one, jax would require its type to be registered.
    def function(images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(servable(images, sizes))

    return export.export(jax.jit(function), platforms=PLATFORMS)(
        *servable.specs(servable.batch_size)
    )


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Write the detector to FILE in `folder`, which exists."""
    (folder / FILE).write_bytes(export_servable(servable).serialize())


def check_supported(servable: Servable) -> None:
    """Accept every detector."""


def load(folder: pathlib.Path) -> ArtifactFunction:
    """Return the function that runs FILE in `folder` on jax's default device."""
    detect = jax.jit(export.deserialize(bytearray((folder / FILE).read_bytes())).call)

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(map(np.asarray, detect(images, sizes)))

    return run
