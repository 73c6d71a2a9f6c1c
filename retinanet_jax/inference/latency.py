"""Detection with the least time between an image and its detections.

On a GPU most of the time for one image is not arithmetic: the host hands over 300 arrays and
launches some 490 kernels, of which 120 compute what depends only on the weights. Here that is
computed once, in advance.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.layout import Format, Layout
from jax.flatten_util import ravel_pytree
from jaxtyping import Float
from ml_collections import ConfigDict

from retinanet_jax import core
from retinanet_jax.compilation import known_options, memory_options
from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import detect
from retinanet_jax.models import FOLDED, RetinaNet, fold_norms

# Of XLA on GPUs: launch kernels together, also short sequences of them, and those of
# convolutions, which XLA launches one by one by default.
_TOGETHER = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"
OPTIONS: Mapping[str, Any] = {
    "xla_gpu_graph_min_graph_size": 1,
    "xla_gpu_enable_command_buffer": _TOGETHER,
}
# How cuDNN reads a kernel in memory: outputs, rows, columns, inputs.
KERNEL_LAYOUT = Layout((3, 0, 1, 2))


class PreparedVariables(NamedTuple):
    """The network's variables without what a detection would compute only from them."""

    variables: dict[str, Any]  # kernels in the compute dtype, and without frozen norms
    norms: Float[jax.Array, " N"]  # the factors and offsets of all frozen norms, as one array


def compile_detect(
    variables: Mapping[str, Any],
    model: RetinaNet,
    config: ConfigDict,
    *,
    score_thresholds: Sequence[float] | None = None,
) -> Callable[[Batch], core.Detections]:
    """Return the detection of a batch with these variables, jitted for the shortest time.

    The detections are those of `modeling.detect`, on a GPU except for rounding.

    Args:
        variables: The network's variables, on a device.
        model: The network that `build_model` returns for `config`.
        config: As in `modeling.detect`.
        score_thresholds: As in `modeling.detect`.
    """
    function, prepared = prepare_detect(variables, model, config, score_thresholds=score_thresholds)
    jitted = jax.jit(function, compiler_options=compiler_options())
    return functools.partial(jitted, prepared)


def compiler_options() -> dict[str, Any]:
    """Return the options of XLA for the detection on the default device."""
    platform = jax.default_backend()
    return known_options(OPTIONS) if platform == "gpu" else memory_options(platform)


def prepare_detect(
    variables: Mapping[str, Any],
    model: RetinaNet,
    config: ConfigDict,
    *,
    score_thresholds: Sequence[float] | None = None,
) -> tuple[Callable[[Any, Batch], core.Detections], Any]:
    """Return `modeling.detect` as a function of variables and a batch, and these variables.

    On a GPU they are `PreparedVariables`. Elsewhere nothing is gained, and they are the network's.

    Args:
        variables: As in `compile_detect`.
        model: As in `compile_detect`.
        config: As in `compile_detect`.
        score_thresholds: As in `compile_detect`.
    """
    detect_batch = functools.partial(
        detect, model=model, config=config, score_thresholds=score_thresholds
    )
    if jax.default_backend() != "gpu":
        return detect_batch, variables
    folded, others = fold_norms(variables, epsilon=model.norm_epsilon)
    norms, unravel = ravel_pytree(folded)

    def detect_prepared(prepared: PreparedVariables, batch: Batch) -> core.Detections:
        return detect_batch({**prepared.variables, FOLDED: unravel(prepared.norms)}, batch)

    def prepare(path: Any, array: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return array
        cast = array.astype(model.dtype)  # as every convolution does first
        return jax.device_put(cast, Format(KERNEL_LAYOUT, cast.sharding))

    prepared = jax.tree_util.tree_map_with_path(prepare, others)
    return detect_prepared, PreparedVariables(prepared, norms)
