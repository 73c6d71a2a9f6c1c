"""RetinaNet in JAX and Flax: object detection from training to export."""

import pathlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinanet_jax.detector import Detection, Detections, Detector

__version__ = "0.14.0"
__all__ = ["Detection", "Detections", "Detector"]

# When the program began. The process may be older, as that of a shell script which installs the
# package first and then becomes the program.
IMPORTED_AT = time.monotonic()

# An installed package contains the configs; in a checkout they are in the folder next to it. Either
# way they can be imported as `retinanet_jax.configs`.
if not (pathlib.Path(__file__).parent / "configs").is_dir():
    __path__.append(str(pathlib.Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package is fast."""
    if name == "Result":
        raise AttributeError("retinanet_jax.Result is called Detections since retinanet_jax 0.2.0.")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retinanet_jax import detector

    return getattr(detector, name)
