"""The whole network has the published size and one prediction per anchor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_options import REQUIRED

from retinanet_jax.models import ARCHITECTURES, RetinaNet

KEY = jax.random.key(0)
TINY = {"backbone": "resnet18", "backbone_width": 8, "fpn_channels": 16, "head_depth": 1}


def build(size=(64, 96), **options):
    """Return the shapes of the outputs and variables, without computing."""
    model = RetinaNet(**REQUIRED | options)
    images = jnp.zeros((2, *size, 3))
    return jax.eval_shape(lambda: model.init_with_output(KEY, images, train=False))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # torchvision's retinanet_resnet50_fpn: P6 from P5, frozen norms, plain heads
        ({"p6_from": "p5"}, 34_014_999),
        # torchvision's retinanet_resnet50_fpn_v2
        ({"norm": "batch", "head_norm": "group"}, 38_198_935),
    ],
)
def test_the_number_of_parameters_is_torchvisions(options, parameters):
    _, variables = build(**options)
    assert count(variables["params"]) == parameters


def test_the_parameters_have_four_parts():
    _, variables = build()
    assert set(variables["params"]) == {"backbone", "fpn", "classification_head", "box_head"}
    assert set(variables["batch_stats"]) == {"backbone"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_backbone_works(name):
    outputs, _ = build(backbone=name)
    assert [x.shape[1] for x in outputs.logits] == [9 * n for n in (96, 24, 6, 2, 1)]


def test_there_is_one_prediction_per_anchor():
    outputs, _ = build(size=(800, 1344), **TINY)
    assert sum(x.shape[1] for x in outputs.logits) == 201_600
    assert {(x.shape[0], x.shape[2]) for x in outputs.logits} == {(2, 91)}
    assert [(x.shape[0], x.shape[1], 4) for x in outputs.logits] == [
        x.shape for x in outputs.deltas
    ]


def test_the_pyramid_can_end_at_p6():
    outputs, variables = build(**TINY, max_level=6)
    assert len(outputs.logits) == len(outputs.deltas) == 4
    assert "p7" not in variables["params"]["fpn"]


@pytest.mark.parametrize("options", [{}, {"norm": "batch", "head_norm": "group"}])
def test_bfloat16_has_float32_outputs_and_parameters(options):
    outputs, variables = build(**TINY, dtype=jnp.bfloat16, **options)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg16"}, "backbone='vgg16' is unknown; use one of resnet18, resnet34"),
        ({"norm": "none"}, "norm='none' is unknown"),
        ({"p6_from": "c4"}, "p6_from='c4' is unknown"),
        ({"head_norm": "batch"}, "head norm='batch' is unknown"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_only_class_logits_start_at_the_prior():
    model = RetinaNet(**REQUIRED | TINY)

    @jax.jit
    def biases(key, images):
        params = model.init(key, images, train=False)["params"]
        # The compiler removes everything else as dead code.
        return [params[head]["predict"]["bias"] for head in ("classification_head", "box_head")]

    classification, box = biases(KEY, jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(jax.nn.sigmoid(classification), 0.01, rtol=1e-5)
    np.testing.assert_array_equal(box, 0)


@pytest.mark.slow
def test_images_do_not_influence_each_other(monkeypatch):
    shallow = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}  # quicker to compile
    monkeypatch.setitem(ARCHITECTURES, "shallow", shallow)
    options = {"num_classes": 3, "backbone": "shallow"}
    model = RetinaNet(**REQUIRED | TINY | options)
    _, shapes = build(**TINY | options)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(-0.2, 0.3, x.shape).astype(x.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])  # variances
    images = rng.standard_normal((2, 64, 64, 3), np.float32)
    others = images * np.float32([1, 0]).reshape(2, 1, 1, 1)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    outputs, changed = apply(variables, images), apply(variables, others)
    for before, after in zip(jax.tree.leaves(outputs), jax.tree.leaves(changed), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        assert np.all(np.isfinite(before))
        assert np.any(before[1] != after[1])
