"""Counts the arithmetic of the convolutions and matrix products in a compiled program."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from retinanet_jax.planning import hlo


def arithmetic(scope: Mapping[str, hlo.Instruction], instruction: hlo.Instruction) -> int:
    """Return the multiplications and additions of a convolution or matrix product; else 0.

    Products with padding do not count.

    Args:
        scope: The instructions of the same computation.
        instruction: The instruction.
    """
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if instruction.opcode == "convolution" or target.startswith("__cudnn$conv"):
        operands = [scope[name].result[0].shape for name in instruction.operands[:2]]
        return convolution_arithmetic(instruction, target, *operands)
    if instruction.opcode == "dot" or target.startswith("__cublas$"):
        axes = instruction.attribute(
            r'(?:lhs_contracting_dims=\{|"lhs_contracting_dimensions":\[)([\d,"]*)'
        )
        lhs = scope[instruction.operands[0]].result[0].shape
        contracted = math.prod(lhs[int(axis.strip('"'))] for axis in axes.split(",") if axis)
        return 2 * math.prod(instruction.result[0].shape) * contracted
    return 0


def convolution_arithmetic(
    instruction: hlo.Instruction, target: str, first: tuple[int, ...], second: tuple[int, ...]
) -> int:
    """Return the multiplications and additions of a convolution.

    Args:
        instruction: XLA's convolution, or the call of cuDNN that replaces it. The window and the
            labels of cuDNN's gradients are those of the forward convolution.
        target: The function of cuDNN; "" for XLA's convolution.
        first: Shape of the first operand.
        second: Shape of the second operand.
    """
    result = instruction.result[0].shape
    match target:
        case "__cudnn$convBackwardFilter":
            image, output, kernel = first, second, result
        case "__cudnn$convBackwardInput":
            output, kernel, image = first, second, result
        case _:
            image, kernel, output = first, second, result
    labels = re.split("_|->", instruction.attribute(r"dim_labels=([\w>\-]+)"))
    # The axes of the image, the kernel and the output by their labels: b, f, i, o, 0, 1, ...
    axes = [{label: axis for axis, label in enumerate(text)} for text in labels]
    products = output[axes[2]["b"]] * output[axes[2]["f"]] * kernel[axes[1]["i"]]
    windows = read_windows(instruction.attribute(r"window=\{([^}]*)\}"), len(image) - 2)
    for dimension, window in enumerate(windows):
        label = str(dimension)
        products *= valid_products(
            image[axes[0][label]], kernel[axes[1][label]], output[axes[2][label]], window
        )
    return 2 * products


class Window(NamedTuple):
    """How the kernel of a convolution moves along one dimension of an image."""

    stride: int = 1
    padding: int = 0  # before the image
    image_dilation: int = 1
    kernel_dilation: int = 1


def read_windows(text: str, num_dimensions: int) -> list[Window]:
    """Return the windows of a convolution: "size=3x3 stride=2x2 pad=1_1x1_1 lhs_dilate=2x2"."""
    fields = dict(field.split("=") for field in text.split())

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * num_dimensions

    columns = (
        values("stride", "1"),
        [padding.split("_")[0] for padding in values("pad", "0_0")],
        values("lhs_dilate", "1"),
        values("rhs_dilate", "1"),
    )
    return [Window(*map(int, row)) for row in zip(*columns, strict=True)]


def valid_products(image: int, kernel: int, output: int, window: Window) -> int:
    """Return the number of products along one dimension that are not with padding or holes.

    Args:
        image: The image's side.
        kernel: The kernel's side.
        output: The output's side.
        window: How the kernel moves.
    """
    stride, padding, dilation, kernel_dilation = window
    count = 0
    for tap in range(kernel):
        offset = tap * kernel_dilation - padding
        for position in range(offset, offset + output * stride, stride):
            count += position % dilation == 0 and 0 <= position < (image - 1) * dilation + 1
    return count
