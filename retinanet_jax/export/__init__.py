"""A trained detector as one artifact that runs without this package.

`servable` is the function that is exported, `stablehlo`, `savedmodel` and `onnx` write and run it,
`verification` compares what they find with what the checkpoint finds, `card` tells about it.
"""
