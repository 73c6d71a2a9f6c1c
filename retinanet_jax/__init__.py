"""RetinaNet in JAX and Flax: pure detection mathematics, a model, and a program that trains it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinanet_jax.inference import Detection, Detector, Result

__version__ = "0.1.0"
__all__ = ["Detection", "Detector", "Result"]


def __getattr__(name: str) -> Any:
    """What is of use in a notebook, imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retinanet_jax import inference

    return getattr(inference, name)
