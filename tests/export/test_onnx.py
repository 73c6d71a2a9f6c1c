"""The ONNX graph of a traced function computes what jax computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import core
from retinanet_jax.export.onnx import model
from retinanet_jax.export.onnx.graph import Graph
from retinanet_jax.export.onnx.nms import make_nms_rule
from retinanet_jax.export.onnx.rules import RULES


def run_in_onnxruntime(function, *inputs, function_rules=()):
    """The outputs of a traced function, computed by onnxruntime."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    jaxpr = jax.make_jaxpr(function)(*inputs)
    names = [f"in{k}" for k in range(len(inputs))]
    outputs = [f"out{k}" for k in range(len(jaxpr.out_avals))]
    proto = Graph(RULES, dict(function_rules)).model(jaxpr, names, outputs)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, dict(zip(names, inputs, strict=True)))


X = np.array([[2.5, -1, 0.5, 2.5], [3, 0, -0.25, 3]], np.float32)
N = np.array([7, -7, 3, 0], np.int32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: (jax.nn.sigmoid(x), jnp.exp(x), jnp.sqrt(x * x), jax.lax.rsqrt(x * x + 1)),
        lambda x, i: (i // 3, i % 3, jax.lax.rem(i, 3), i // -2, jnp.sign(i), -i, jnp.abs(i)),
        lambda x, i: (jnp.clip(x, 0, 2), jnp.minimum(x, 1.0), jnp.maximum(i, 2)),
        lambda x, i: (x > 0.5, x != 2.5, (x >= 0) & (x <= 1), ~(x < 0) | (x == -1)),
        lambda x, i: (jnp.where(i > 0, x, -x), jnp.where(i > 0, x > 0, x < 0)),
        lambda x, i: (
            jax.lax.top_k(x, 3),
            jax.lax.top_k((x[0] > 0).astype(int), 2)[1],
        ),  # the first of equal values
        lambda x, i: (jnp.argsort(x[0], descending=True), jnp.argsort(x[0]), jnp.sort(i)),
        lambda x, i: (x[:, ::2], x[1], x[:, 1:3], x[::-1], x[jnp.abs(i) % 2], x.T[jnp.abs(i) % 4]),
        lambda x, i: (jnp.stack([x, x + 1], axis=1), jnp.concatenate([x, x[:1]]), jnp.tile(i, 2)),
        lambda x, i: (jnp.unstack(x, axis=1), jnp.pad(x, ((1, 0), (0, 2)), constant_values=3)),
        lambda x, i: (x.sum(0), x.max(1), x.min(), jnp.mean(x, axis=1, keepdims=True)),
        lambda x, i: (x.astype(jnp.int32), i.astype(jnp.float32) + x, x[:, None, :] + x[None, :]),
        lambda x, i: (jnp.broadcast_to(i[:, None], (4, 3)), jnp.broadcast_to(x[0, 0], (2, 2))),
        lambda x, i: jnp.arange(4) + i,  # an operand that depends on no input
    ],
)
def test_the_graph_computes_what_jax_computes(function):
    expected = jax.tree.leaves(function(jnp.asarray(X), jnp.asarray(N)))
    outputs = run_in_onnxruntime(lambda x, i: tuple(jax.tree.leaves(function(x, i))), X, N)
    for actual, desired in zip(outputs, expected, strict=True):
        assert (actual.dtype, actual.shape) == (desired.dtype, desired.shape)
        np.testing.assert_allclose(actual, desired, rtol=1e-6)


def test_convolution_and_max_pooling_equal_jax():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 7, 9, 4)), rng.normal(size=(3, 3, 2, 6))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)

    def function(x):
        convolved = jax.lax.conv_general_dilated(
            x, kernel, (2, 1), ((1, 1), (0, 1)), feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        pooled = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
        )
        return convolved, pooled

    for actual, desired in zip(run_in_onnxruntime(function, x), function(x), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


def test_a_primitive_without_a_rule_is_an_error():
    pytest.importorskip("onnx")
    message = "The ONNX export has no rule for jax's primitive 'while'; export to stablehlo"

    def loop(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y * 2, x)

    with pytest.raises(ValueError, match=message):
        run_in_onnxruntime(loop, X)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.5, 0.7])
def test_nms_keeps_the_same_boxes_as_core(iou_threshold, class_agnostic):
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 12, (200, 2)).astype(np.float32)  # many equal, some exactly at 0.5
    boxes = np.concatenate([corners, corners + rng.integers(0, 9, (200, 2))], 1).astype(np.float32)
    classes, mask = rng.integers(0, 3, 200).astype(np.int32), rng.random(200) < 0.8
    options = {"iou_threshold": iou_threshold, "class_agnostic": class_agnostic}
    expected = core.non_maximum_suppression(boxes, classes, mask, limit=200, **options)
    assert 0 < expected.sum() < mask.sum()

    def suppress(boxes, classes, mask):
        return (core.non_maximum_suppression(boxes, classes, mask, limit=200, **options),)

    rule = make_nms_rule(num_classes=3, **options)
    (actual,) = run_in_onnxruntime(
        suppress, boxes, classes, mask, function_rules={"non_maximum_suppression": rule}
    )
    np.testing.assert_array_equal(actual, expected)


def test_soft_nms_cannot_be_exported_to_onnx(servable):
    servable.config.detections.nms = "soft_linear"
    with pytest.raises(ValueError, match=r"'soft_linear' cannot be expressed in ONNX.*stablehlo"):
        model.check_supported(servable)


def test_an_image_with_fewer_detections_than_places_has_them_first_and_then_zeros():
    """Two of three anchors pass the threshold, but there are four places."""
    anchors = np.array([[0, 0, 8, 8], [20, 20, 28, 28], [40, 40, 48, 48]], np.float32)

    limits = {"score_threshold": 0.5, "top_k": 3, "iou_threshold": 0.5, "max_detections": 4}
    mode = {"nms": "hard", "soft_sigma": 0.5, "class_agnostic": False, "drop_empty": True}

    def detect(logits, deltas):
        return core.detect(
            *((x,) for x in (logits, deltas, anchors)),
            valid_size=jnp.array([64.0, 64.0]),
            original_scale=jnp.ones(2),
            clip="before_nms",
            **limits,
            **mode,
        )

    inputs = np.array([[2], [-1], [1]], np.float32), np.zeros((3, 4), np.float32)
    rule = make_nms_rule(num_classes=1, iou_threshold=0.5, class_agnostic=False)
    outputs = run_in_onnxruntime(
        lambda *x: tuple(detect(*x)), *inputs, function_rules={"non_maximum_suppression": rule}
    )
    np.testing.assert_array_equal(outputs[0][:, 0], [0, 40, 0, 0])
    np.testing.assert_array_equal(outputs[3], [True, True, False, False])
    for actual, expected in zip(outputs, detect(*inputs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
