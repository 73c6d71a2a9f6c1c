"""The arrays of our ResNet, as readers of other libraries' weights see them.

A `BackboneFormat` has a library's name of each array. The functions here check a state dict against
those names and turn it into the variables of the detector's `backbone`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.utils.progress import join_first

Path = tuple[str, ...]
Shape = tuple[int, ...]

# A convolution's kernel, and the arrays of the norm that follows it.
LEAVES = ("kernel", "scale", "bias", "mean", "var")
MAX_NAMES = 5  # names of wrong arrays that an error message lists
MAX_LENGTH = 80  # characters of each of them


class Layer(NamedTuple):
    """A convolution and the norm that follows it."""

    stage: int  # 2 to 5 compute C2 to C5; 1 is the stem
    block: int  # of the stage, from 0
    index: int  # of the convolution in its block, from 1; 0 is the shortcut's
    kernel: tuple[int, int, int, int]  # height, width, inputs per group, outputs

    def path(self, leaf: str) -> Path:
        """Return the path of a leaf (one of LEAVES) in the backbone's variables."""
        module = "conv" if leaf == "kernel" else "norm"
        if self.stage == 1:
            return f"stem_{module}", leaf
        name = f"{module}{self.index}" if self.index else f"shortcut_{module}"
        return f"stage{self.stage}_block{self.block}", name, leaf

    def shape(self, leaf: str) -> Shape:
        """Return the shape of a leaf; kernels are HWIO."""
        return self.kernel if leaf == "kernel" else self.kernel[-1:]


class BackboneFormat(NamedTuple):
    """A library's names of a ResNet's arrays in its state dicts, where kernels are OIHW."""

    library: str  # for error messages
    name_of: Callable[[Layer, str], str]  # (layer, leaf) -> name
    is_unused: Callable[[str], bool]  # name -> whether a backbone needs no such array
    leaves: tuple[str, ...] = LEAVES  # those that its files contain

    def names(self, architecture: str, prefix: str = "") -> dict[Path, str]:
        """Return the name of each array by its path in our backbone.

        Args:
            architecture: One of models.ARCHITECTURES.
            prefix: What precedes the names in a detector's state dict, as in "backbone.body.".
        """
        return {
            layer.path(leaf): prefix + self.name_of(layer, leaf)
            for layer in layers(architecture)
            for leaf in self.leaves
        }

    def shapes(self, architecture: str) -> dict[str, Shape]:
        """Return the shape of each array by its name."""
        return {
            self.name_of(layer, leaf): oihw_shape(layer.shape(leaf))
            for layer in layers(architecture)
            for leaf in self.leaves
        }


def layers(architecture: str) -> list[Layer]:
    """Return the layers of an architecture, the stem first.

    Raises:
        ValueError: If the architecture is none of models.ARCHITECTURES.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"backbone={architecture!r} is unknown; use one of {known}.")
    settings = ARCHITECTURES[architecture]
    groups = settings.get("groups", 1)
    result, inputs = [Layer(1, 0, 1, (7, 7, 3, 64))], 64
    for stage, size in enumerate(settings["stage_sizes"], start=2):
        planes = 2 ** (stage + 4)
        width = planes * groups * settings.get("width_per_group", 64) // 64
        for block in range(size):
            if settings["bottleneck"]:
                outputs = 4 * planes
                kernels = {
                    1: (1, 1, inputs, width),
                    2: (3, 3, width // groups, width),
                    3: (1, 1, width, outputs),
                }
            else:
                outputs = planes
                kernels = {1: (3, 3, inputs, planes), 2: (3, 3, planes, planes)}
            if inputs != outputs:
                kernels[0] = (1, 1, inputs, outputs)
            result += [Layer(stage, block, index, kernel) for index, kernel in kernels.items()]
            inputs = outputs
    return result


def stage_channels(architecture: str, stage: int) -> int:
    """Return the number of channels of the map that a stage computes, as of C5 for stage 5."""
    return max(layer.kernel[-1] for layer in layers(architecture) if layer.stage == stage)


def from_state_dict(
    arrays: Mapping[str, np.ndarray],
    backbone_format: BackboneFormat,
    *,
    architecture: str,
    norm: str,
) -> dict[str, dict]:
    """Return the variables of the detector's `backbone` from a classifier's state dict.

    Args:
        arrays: The state dict's arrays by name.
        backbone_format: The format of the library that wrote them.
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        norm: The backbone's norm, "frozen_batch" or "batch".

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        ValueError: If the norm has no running statistics, the architecture is unknown, or the
            arrays are not the architecture's. The message names the architecture that they are of,
            or else the missing, unexpected, misshapen and not finite arrays.
    """
    check_norm(norm)
    return variables(arrays_by_path(arrays, backbone_format, architecture), norm)


def arrays_by_path(
    arrays: Mapping[str, np.ndarray], backbone_format: BackboneFormat, architecture: str
) -> dict[Path, np.ndarray]:
    """Return the arrays by their path in our backbone, after `check_arrays`."""
    check_arrays(
        arrays,
        backbone_format.shapes,
        architecture=architecture,
        is_unused=backbone_format.is_unused,
        library=backbone_format.library,
    )
    names = backbone_format.names(architecture)
    return {path: from_oihw(arrays[name]) for path, name in names.items()}


def check_norm(norm: str) -> None:
    """Raise ValueError if the norm has no running statistics."""
    if norm not in ("frozen_batch", "batch"):
        raise ValueError(
            f"norm={norm!r} has no batch norm statistics; use 'frozen_batch' or 'batch'."
        )


def check_arrays(
    arrays: Mapping[str, np.ndarray],
    shapes_of: Callable[[str], Mapping[str, Shape]],
    *,
    architecture: str,
    is_unused: Callable[[str], bool],
    library: str,
) -> None:
    """Check that `arrays` are those of an architecture.

    Args:
        arrays: The arrays by the library's names.
        shapes_of: A function from an architecture to its shapes by the library's names.
        architecture: The expected architecture.
        is_unused: A function from a name to whether the array may be present but is not needed.
        library: The name of the library, for error messages.

    Raises:
        ValueError: If the arrays are another architecture's, which the message names, or none's;
            then it lists the wrong arrays.
    """
    wrong = wrong_arrays(arrays, shapes_of(architecture), is_unused)
    if not wrong:
        return
    for other in ARCHITECTURES:
        if not wrong_arrays(arrays, shapes_of(other), is_unused):
            raise ValueError(
                f"these are {library} weights of {other}, but config.model.backbone is "
                f"{architecture}; change it to {other}, or give another file."
            )
    raise ValueError(
        f"these are not {library} weights of {architecture}: {wrong}; give all arrays of such a "
        "network, as it was trained."
    )


def wrong_arrays(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, Shape],
    is_unused: Callable[[str], bool],
) -> str:
    """Return in one line how `arrays` differ from the `expected` shapes, or "".

    Arrays that are `is_unused` may be present or absent.
    """
    present = expected.keys() & arrays.keys()
    wrong = {
        "missing": expected.keys() - arrays.keys(),
        "unexpected": {k for k in arrays.keys() - expected.keys() if not is_unused(k)},
        "of another shape": {k for k in present if np.shape(arrays[k]) != expected[k]},
        "not finite": {k for k in present if not _is_finite(arrays[k])},
    }
    return "; ".join(
        f"{what}: {join_names(sorted(names))}" for what, names in wrong.items() if names
    )


def _is_finite(value: np.ndarray) -> bool:
    """Whether an array has finite numbers only; text has none."""
    value = np.asarray(value)
    return value.dtype.kind in "fiu" and bool(np.isfinite(value).all())


def join_names(names: Sequence[str]) -> str:
    """Return the first MAX_NAMES names, each up to MAX_LENGTH, and how many more there are."""
    return join_first([name[:MAX_LENGTH] for name in names], MAX_NAMES)


def variables(leaves: Mapping[Path, np.ndarray], norm: str) -> dict[str, dict]:
    """Return the collections "params" and "batch_stats" of a backbone.

    Args:
        leaves: The arrays by path.
        norm: "frozen_batch", of which scale, bias, mean and var are all statistics, or "batch", of
            which scale and bias are parameters.
    """
    trained = ("kernel", "scale", "bias") if norm == "batch" else ("kernel",)
    collections: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for (*modules, leaf), value in leaves.items():
        tree = collections["params" if leaf in trained else "batch_stats"]
        for name in modules:
            tree = tree.setdefault(name, {})
        tree[leaf] = value
    return collections


def oihw_shape(shape: Shape) -> Shape:
    """Return the shape that an array of ours has in PyTorch and Caffe2."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape


def from_oihw(value: np.ndarray) -> np.ndarray:
    """Return an array of PyTorch or Caffe2 in float32, its kernels as HWIO."""
    value = np.asarray(value, np.float32)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
