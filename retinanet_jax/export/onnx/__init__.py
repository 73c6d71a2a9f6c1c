"""ONNX export: jax's equations as an ONNX graph."""
