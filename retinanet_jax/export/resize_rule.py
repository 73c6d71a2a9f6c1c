"""The rule by which clients of an artifact resize their images, as code for its model card.

Clients run it without this package, which has the same rule in `data.sizes.size_in_canvas`; a test
compares the two.
"""

import inspect

from retinanet_jax.export.servable import Servable, resize_options

METHODS = {
    "bilinear": "bilinear with half-pixel centers, without antialiasing, rounded to integers",
    "bilinear_float": "bilinear with half-pixel centers, without antialiasing, not rounded",
    "pillow": "Pillow's `Image.resize` with `Image.Resampling.BILINEAR`, which is antialiased",
}


def resized_size(
    height: int, width: int, *, short_side: int, long_side: int, method: str, input_size: list[int]
) -> list[int]:
    """Return the height and width to which an image of `height` and `width` is resized."""
    sides, half = [height, width], 0 if method == "bilinear_float" else 0.5
    if method == "pillow":
        factor = short_side / min(sides)
        fitted = [short_side if side == min(sides) else side * factor for side in sides]
        limit = min(long_side / max(fitted), 1)
        fitted = [side * limit for side in fitted]
    else:
        factor = min(short_side / min(sides), long_side / max(sides))
        fitted = [side * factor for side in sides]
    size = [max(int(side + half), 1) for side in fitted]
    if size[0] > input_size[0] or size[1] > input_size[1]:
        factor = min(input_size[0] / height, input_size[1] / width)
        size = [max(int(side * factor + half), 1) for side in sides]
    return size


def resize_instructions(servable: Servable) -> list[str]:
    """Return the instructions to resize images for an artifact, as lines of markdown."""
    options = resize_options(servable.config)
    method = options.pop("resize")
    arguments = {**options, "method": method, "input_size": list(servable.image_size)}
    values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return [
        "Resize each image to the size that this function returns for its height and width, with",
        f"`{values}`.",
        f"The method is {METHODS[method]}.",
        "",
        "```python",
        *inspect.getsource(resized_size).splitlines(),
        "```",
    ]
