"""StableHLO by `jax.export`: one file for CPU, CUDA and TPU that jax alone runs."""

import pathlib

import jax
import numpy as np
from jax import export

from retinanet_jax.export.servable import PLATFORMS, Found, Run, Servable

FILE = "detector.jaxexport"
PACKAGES = ("flatbuffers",)  # what `serialize` imports, though jax does not require it


def exported(servable: Servable) -> export.Exported:
    """The detector, its weights among its constants."""
    batch_size = servable.batch_size or export.symbolic_shape("b")[0]

    # A tuple: jax would ask whoever loads it for the type of a named one.
    def function(images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(servable(images, sizes))

    return export.export(jax.jit(function), platforms=PLATFORMS)(*servable.specs(batch_size))


def write(servable: Servable, folder: pathlib.Path) -> None:
    """Writes FILE into `folder`."""
    (folder / FILE).write_bytes(exported(servable).serialize())


def load(folder: pathlib.Path) -> Run:
    """What FILE does."""
    detect = jax.jit(export.deserialize((folder / FILE).read_bytes()).call)

    def run(images: np.ndarray, sizes: np.ndarray) -> Found:
        return Found(*map(np.asarray, detect(images, sizes)))

    return run
