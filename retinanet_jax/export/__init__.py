"""Export of a trained detector to an artifact that runs without this package.

`artifact` writes and verifies the artifact of a checkpoint. `servable` defines the function that is
exported, `raw` the one that ends before NMS, and `any_size` what they compute for images of any
size. `stablehlo`, `savedmodel`, `onnx` and `tflite` write it in their formats and load the result.
`verification` compares the detections of the artifact with those of `predict`, by `comparison`, and
`raw_verification` its outputs without NMS with those of the checkpoint;
`model_card` describes the artifact, and `client` is a file next to it that makes its inputs.
"""
