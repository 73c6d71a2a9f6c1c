"""Parts of the network that are frozen or recomputed: the same values, with other arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from network_options import REQUIRED

from retinanet_jax.models import ARCHITECTURES, RetinaNet, is_frozen

SMALL = {
    "num_classes": 3,
    "num_anchors": 1,
    "backbone": "shallow",
    "backbone_width": 8,
    "fpn_channels": 16,
    "head_depth": 1,
    "norm": "batch",
    "head_norm": "group",
    "padding": "masked",
}
# The convolutions of which the results are needed in the backward pass: not those of the outputs of
# the pyramid and of the heads, which are linear. Each of the two heads has one on five levels.
RECOMPUTED = {"stem": 1, "c2": 2, "c3": 3, "c4": 3, "c5": 3, "fpn": 4, "heads": 10}


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    shallow = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
    monkeypatch.setitem(ARCHITECTURES, "shallow", shallow)


def make_gradient(**options):
    """Return `(variables, images) -> (gradient, outputs and statistics)` and variables."""
    model = RetinaNet(**REQUIRED | SMALL | options)
    sizes = jnp.float32([[64, 64], [50, 40]])

    def gradient(variables, images):
        def objective(params):
            outputs, updated = model.apply(
                {**variables, "params": params}, images, True, sizes, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs)), (outputs, updated)

        return jax.grad(objective, has_aux=True)(variables["params"])

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 64, 64, 3)), False))
    rng = np.random.default_rng(0)
    return gradient, jax.tree.map(lambda x: rng.uniform(0.05, 0.3, x.shape).astype(x.dtype), shapes)


def count_convolutions(**options):
    """Return the number of convolutions of a step, in which every map is zero in the padding."""
    gradient, variables = make_gradient(**options)
    traced = str(jax.make_jaxpr(gradient)(variables, jnp.zeros((2, 64, 64, 3))))
    return traced.count("conv_general_dilated[")


def test_only_the_named_parts_are_computed_twice_and_no_gradient_of_frozen_ones():
    once = count_convolutions()
    for parts in (("stem", "c3"), ("c2", "fpn"), ("heads",)):
        expected = once + sum(RECOMPUTED[part] for part in parts)
        assert count_convolutions(remat=parts) == expected, parts
    # Without a backward pass there is nothing to compute twice, and exports need not know of it.
    model = RetinaNet(**REQUIRED | SMALL, remat=tuple(RECOMPUTED))
    _, variables = make_gradient()
    images = jnp.zeros((2, 64, 64, 3))
    detecting = jax.make_jaxpr(lambda x, y: model.apply(x, y, train=False))(variables, images)
    assert not {"remat", "remat2", "checkpoint"} & {str(x.primitive) for x in detecting.eqns}
    # The gradient of a kernel is a convolution; those for the maps below remain.
    frozen = count_convolutions(frozen_parts=("fpn", "box_head"))
    assert once - frozen == 8 + 10


@pytest.mark.slow
def test_recomputed_parts_change_no_value_and_frozen_ones_have_no_gradient():
    """Outputs, gradients and statistics, in float64, of all parts at once."""
    frozen = {"frozen_stages": 1, "frozen_parts": ("fpn", "box_head")}
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3))

    def run(**options):
        with jax.enable_x64(True):
            gradient, variables = make_gradient(dtype=jnp.float64, **frozen, **options)
            variables = jax.tree.map(np.float64, variables)
            return jax.tree.map(np.asarray, jax.jit(gradient)(variables, images))

    plain, recomputed = run(), run(remat=tuple(RECOMPUTED))
    for x, y in zip(*map(jax.tree.leaves, (recomputed, plain)), strict=True):
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)
    for path, gradient in traverse_util.flatten_dict(plain[0]).items():
        assert np.any(gradient) != is_frozen(path, 1, ("fpn", "box_head")), path
