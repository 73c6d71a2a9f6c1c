"""RetinaNet in JAX and Flax: pure detection mathematics, a model, and a program that trains it."""

__version__ = "0.1.0"
