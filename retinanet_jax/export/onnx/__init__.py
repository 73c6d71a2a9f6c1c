"""ONNX export: the equations of the detector as jax traces it, translated to ONNX operators.

`graph` collects the nodes of a model, `rules` translates one jax primitive per function, `nms`
translates the whole non-maximum suppression, and `model` writes and loads the files.
"""
