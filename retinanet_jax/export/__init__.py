"""Export of a trained detector to an artifact that runs without this package.

`artifact` makes and verifies the artifact of a checkpoint. `servable` is the function that is
exported; `stablehlo`, `savedmodel` and `onnx` write it in their formats and run it; `verification`
compares the detections of the artifact with those of the checkpoint; `model_card` describes it.
"""
