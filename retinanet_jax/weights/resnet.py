"""The arrays of our ResNet as an importer sees them: where they are and how large.

An importer of ImageNet weights adds the names that its source has for them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_jax.models import ARCHITECTURES

Path = tuple[str, ...]
Shape = tuple[int, ...]

# A convolution's kernel, and the arrays of the norm that follows it.
LEAVES = ("kernel", "scale", "bias", "mean", "var")
LISTED = 5  # names of each kind that an error quotes


class Layer(NamedTuple):
    """A convolution and its norm."""

    stage: int  # 2 to 5 make C2 to C5; 1 is the stem
    block: int  # of its stage, from 0
    index: int  # of the convolution in its block, from 1; 0 is the shortcut's
    kernel: tuple[int, int, int, int]  # height, width, inputs of a group, outputs

    def path(self, leaf: str) -> Path:
        """Where a leaf (LEAVES) is in the backbone's variables."""
        kind = "conv" if leaf == "kernel" else "norm"
        if self.stage == 1:
            return f"stem_{kind}", leaf
        name = f"{kind}{self.index}" if self.index else f"shortcut_{kind}"
        return f"stage{self.stage}_block{self.block}", name, leaf

    def shape(self, leaf: str) -> Shape:
        """The shape of a leaf; kernels are HWIO."""
        return self.kernel if leaf == "kernel" else self.kernel[-1:]


def layers(architecture: str) -> list[Layer]:
    """Return the layers of an architecture, the stem first; a ValueError where it is unknown."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"backbone={architecture!r} is unknown; use one of {known}.")
    described = ARCHITECTURES[architecture]
    groups = described.get("groups", 1)
    found, incoming = [Layer(1, 0, 1, (7, 7, 3, 64))], 64
    for stage, size in enumerate(described["stage_sizes"], start=2):
        planes = 2 ** (stage + 4)
        inner = planes * groups * described.get("width_per_group", 64) // 64
        for block in range(size):
            if described["bottleneck"]:
                outgoing = 4 * planes
                kernels = {
                    1: (1, 1, incoming, inner),
                    2: (3, 3, inner // groups, inner),
                    3: (1, 1, inner, outgoing),
                }
            else:
                outgoing = planes
                kernels = {1: (3, 3, incoming, planes), 2: (3, 3, planes, planes)}
            if incoming != outgoing:
                kernels[0] = (1, 1, incoming, outgoing)
            found += [Layer(stage, block, index, kernel) for index, kernel in kernels.items()]
            incoming = outgoing
    return found


def names(architecture: str, name_of: Callable[[Layer, str], str], prefix: str) -> dict[Path, str]:
    """Return a source's name of each array of our backbone, by its path there.

    `name_of` names a layer's leaf; `prefix` is what a detector's state dict puts before it.
    """
    return {
        layer.path(leaf): prefix + name_of(layer, leaf)
        for layer in layers(architecture)
        for leaf in LEAVES
    }


def from_state_dict(
    arrays: Mapping[str, np.ndarray],
    *,
    architecture: str,
    norm: str,
    name_of: Callable[[Layer, str], str],
    is_unused: Callable[[str], bool],
    whose: str,
) -> dict[str, dict]:
    """Return {"params", "batch_stats"} of a backbone from the OIHW arrays of a classifier.

    Raises as `check_norm` and `check` do.
    """

    def shapes(other: str) -> dict[str, Shape]:
        return {
            name_of(layer, leaf): oihw(layer.shape(leaf))
            for layer in layers(other)
            for leaf in LEAVES
        }

    check_norm(norm)
    check(arrays, architecture, shapes, is_unused, whose=whose)
    found = names(architecture, name_of, prefix="")
    return variables({path: from_oihw(arrays[name]) for path, name in found.items()}, norm)


def check_norm(norm: str) -> None:
    """Raise ValueError for a norm that has no running statistics."""
    if norm not in ("frozen_batch", "batch"):
        raise ValueError(
            f"norm={norm!r} cannot hold batch norm statistics; use 'frozen_batch' or 'batch'."
        )


def variables(leaves: Mapping[Path, np.ndarray], norm: str) -> dict[str, dict]:
    """Return {"params", "batch_stats"} of a backbone from its arrays by path.

    `norm` is "frozen_batch" (scale, bias, mean, var are all statistics) or "batch" (scale and bias
    are parameters).
    """
    trained = ("kernel", "scale", "bias") if norm == "batch" else ("kernel",)
    collections: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for (*modules, leaf), value in leaves.items():
        tree = collections["params" if leaf in trained else "batch_stats"]
        for name in modules:
            tree = tree.setdefault(name, {})
        tree[leaf] = value
    return collections


def oihw(shape: Shape) -> Shape:
    """The shape that PyTorch and Caffe2 have for an array of ours."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape


def from_oihw(value: np.ndarray) -> np.ndarray:
    """An array of PyTorch's or Caffe2's as ours, in float32."""
    value = np.asarray(value, np.float32)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def problems(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, Shape],
    is_unused: Callable[[str], bool],
) -> str:
    """Return what differs between `arrays` and the `expected` shapes, in one line; "" if nothing.

    Arrays that are not expected but `is_unused` may be there or not.
    """
    present = expected.keys() & arrays.keys()
    found = {
        "missing": expected.keys() - arrays.keys(),
        "unknown": {k for k in arrays.keys() - expected.keys() if not is_unused(k)},
        "misshapen": {k for k in present if np.shape(arrays[k]) != expected[k]},
        "not finite": {k for k in present if not _is_finite(arrays[k])},
    }
    return "; ".join(f"{what}: {listed(sorted(names))}" for what, names in found.items() if names)


def _is_finite(value: np.ndarray) -> bool:
    value = np.asarray(value)
    return value.dtype.kind in "fiu" and bool(np.isfinite(value).all())


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*names[:LISTED], *more])


def check(
    arrays: Mapping[str, np.ndarray],
    architecture: str,
    expected: Callable[[str], Mapping[str, Shape]],
    is_unused: Callable[[str], bool],
    *,
    whose: str,
) -> None:
    """Raise ValueError where `arrays` are not those of `architecture`, by their source's names.

    `expected` gives an architecture's shapes by name. The error says which architecture the arrays
    are of or, where they are of none, which are wrong.
    """
    found = problems(arrays, expected(architecture), is_unused)
    if not found:
        return
    for other in ARCHITECTURES:
        if not problems(arrays, expected(other), is_unused):
            raise ValueError(
                f"{whose} weights of {other}, and the backbone is {architecture}; "
                "change config.model.backbone, or give another file."
            )
    raise ValueError(f"not {whose} {architecture}: {found}; give the file as it was published.")
