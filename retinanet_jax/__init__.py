"""RetinaNet in JAX and Flax: pure detection mathematics, a model, and a program that trains it."""

import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinanet_jax.detector import Detection, Detections, Detector

__version__ = "0.2.0"
__all__ = ["Detection", "Detector", "Detections"]

# An installed package contains its configs; in a checkout they lie next to it. Either way they are
# `retinanet_jax.configs`.
if not (pathlib.Path(__file__).parent / "configs").is_dir():
    __path__.append(str(pathlib.Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that the package itself imports fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retinanet_jax import detector

    return getattr(detector, name)
