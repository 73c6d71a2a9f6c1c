"""Weights of a LiteRT artifact in float16, or convolutions in int8.

In int8 only the convolutions compute with integers, which are almost all of the size and the time.
Norms, decoding and scores stay in float32: eight bits hold neither the variance of a group norm nor
a coordinate in hundreds of pixels.
"""

import contextlib
import io
import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

from retinanet_jax.export.servable import INPUTS
from retinanet_jax.export.tflite import EXTRA
from retinanet_jax.export.verification import Example
from retinanet_jax.utils.packages import import_optional

PACKAGE = "litert_quantizer"


def quantize(file: pathlib.Path, precision: str, examples: Iterable[Example]) -> None:
    """Replace a LiteRT file in float32 by one in another precision.

    Args:
        file: The file.
        precision: "float16" or "int8".
        examples: Representative images, by which int8 chooses the range of each feature map.
    """
    quantizer = _import("quantizer").Quantizer(file.read_bytes(), _settings(precision))
    ranges = None
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # The quantizer shows its progress by operator, and its interpreters keep all feature maps.
        warnings.filterwarnings("ignore", ".*`experimental_preserve_all_tensors`", UserWarning)
        if quantizer.need_calibration:
            inputs = [
                dict(zip(INPUTS, (example.pixels[None], example.size[None]), strict=True))
                for example in examples
            ]
            threads = os.cpu_count() or 1
            ranges = quantizer.calibrate({"serving_default": inputs}, num_threads=threads)
        result = quantizer.quantize(ranges, enable_progress_report=False)
    file.write_bytes(result.quantized_model)


def _settings(precision: str) -> list[dict[str, Any]]:
    """Return what is quantized, and how, for the quantizer."""
    qtyping, settings = _import("qtyping"), _import("recipe_manager").RecipeManager()
    operator = qtyping.TFLOperationName.CONV_2D
    if precision == "int8":
        settings.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
    else:
        weights = qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
        )
        method = _import("algorithm_manager").AlgorithmName.FLOAT_CASTING
        settings.add_quantization_config(".*", operator, config, method)
    return settings.get_quantization_recipe()


def _import(module: str) -> Any:
    """Import a module of the quantizer."""
    return import_optional(f"{PACKAGE}.{module}", "the precision of tflite", EXTRA)
