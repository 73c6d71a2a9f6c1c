"""Export of a trained detector to an artifact that runs without this package.

`artifact` writes and verifies the artifact of a checkpoint. `servable` defines the function that is
exported; `stablehlo`, `savedmodel` and `onnx` write it in their formats and load the result;
`verification` compares the detections of the artifact with those of `predict`, by `comparison`;
`model_card` describes the artifact, and `client` is a file next to it that makes its inputs.
"""
