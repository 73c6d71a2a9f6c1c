"""ONNX export: the equations of the detector as jax traces it, translated to ONNX operators.

`graph` collects the nodes of a model, and `dimensions` reads its symbolic dimensions. `rules` and
`selection` translate one jax primitive per function, collected by `registry`, and `nms` translates
the whole non-maximum suppression. `model` writes and loads the files.
"""
