"""The commands of `retinanet-jax`: one module each, which defines the flags and makes one call."""
