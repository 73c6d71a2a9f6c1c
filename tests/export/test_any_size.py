"""Programs for any number of images of any size: shapes contain symbolic dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from PIL import Image

from retinanet_jax import core, modeling
from retinanet_jax.cli.export import parse_batch_size, parse_sizes
from retinanet_jax.export import client, model_card
from retinanet_jax.export.any_size import anchors_of, with_more_anchors
from retinanet_jax.export.onnx.dimensions import (
    broadcast_shapes,
    evaluate_dimension,
    variable_and_factor,
)
from retinanet_jax.export.onnx.graph import Graph
from retinanet_jax.export.onnx.model import triton_config
from retinanet_jax.export.onnx.nms import make_nms_rule
from retinanet_jax.export.onnx.rules import RULES
from retinanet_jax.models import Outputs


def onnx_function(function, *specs, function_rules=()):
    """A function traced with symbolic shapes, as onnxruntime computes it."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    jaxpr = jax.make_jaxpr(function)(*specs)
    names = [f"in{k}" for k in range(len(specs))]
    outputs = [f"out{k}" for k in range(len(jaxpr.out_avals))]
    proto = Graph(RULES, dict(function_rules)).model(jaxpr, names, outputs)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda *inputs: session.run(outputs, dict(zip(names, inputs, strict=True)))


def upsampled(x):
    """Each value twice, by a broadcast and a reshape."""
    return jnp.broadcast_to(x[:, :, None], (*x.shape, 2)).reshape(x.shape[0], -1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: (x.sum(), x.max(0), x.mean(axis=1, keepdims=True), x.min(1)),
        lambda x, i: (x.reshape(x.shape[0], -1, 4), x.reshape(-1), x.T, upsampled(x)),
        lambda x, i: (x[:, :2], x[..., 1], x[0], x[:, 1:-1], x[:, None] + x[:, :, None]),
        lambda x, i: x.reshape(x.shape[0], -1, 4)[..., ::-1],
        lambda x, i: (jnp.arange(x.shape[1]) + x, jnp.zeros(x.shape), x * x.shape[1]),
        lambda x, i: (jax.lax.top_k(x, 2), jnp.concatenate([x, x], 1), jnp.stack([x, -x], 1)),
        lambda x, i: jax.vmap(lambda row, indices: row[indices])(x, i),
        lambda x, i: jax.vmap(lambda row, indices: row.reshape(-1, 2)[indices % 2])(x, i),
        lambda x, i: jnp.pad(x, ((0, 0), (0, 3)), constant_values=-jnp.inf),
    ],
)
def test_the_graph_computes_what_jax_computes_at_every_size(function):
    b, width = export.symbolic_shape("b, 4*n")
    specs = jax.ShapeDtypeStruct((b, width), np.float32), jax.ShapeDtypeStruct((b, 3), np.int32)
    run = onnx_function(lambda *inputs: tuple(jax.tree.leaves(function(*inputs))), *specs)
    rng = np.random.default_rng(0)
    for shape in ((1, 4), (3, 12)):
        inputs = (
            rng.normal(size=shape).astype(np.float32),
            rng.integers(0, 4, (shape[0], 3)).astype(np.int32),
        )
        expected = jax.tree.leaves(function(*map(jnp.asarray, inputs)))
        for actual, desired in zip(run(*inputs), expected, strict=True):
            assert (actual.dtype, actual.shape) == (desired.dtype, desired.shape)
            np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "class_agnostic", [False, pytest.param(True, marks=pytest.mark.exhaustive)]
)
def test_nms_of_a_batch_keeps_the_same_boxes_as_core_in_each_image(class_agnostic):
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 12, (3, 60, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 9, (3, 60, 2))], 2)
    boxes = boxes.astype(np.float32)
    classes, mask = rng.integers(0, 3, (3, 60)).astype(np.int32), rng.random((3, 60)) < 0.8
    options = {"iou_threshold": 0.5, "class_agnostic": class_agnostic}

    def suppress(boxes, classes, mask):
        return core.non_maximum_suppression(boxes, classes, mask, limit=60, **options)

    (b,) = export.symbolic_shape("b")
    shapes = (((b, 60, 4), np.float32), ((b, 60), np.int32), ((b, 60), bool))
    run = onnx_function(
        lambda *inputs: (jax.vmap(suppress)(*inputs),),
        *(jax.ShapeDtypeStruct(*shape) for shape in shapes),
        function_rules={"non_maximum_suppression": make_nms_rule(num_classes=3, **options)},
    )
    expected = np.stack([suppress(*image) for image in zip(boxes, classes, mask, strict=True)])
    for images in (slice(0, 1), slice(0, 3)):
        (actual,) = run(boxes[images], classes[images], mask[images])
        np.testing.assert_array_equal(actual, expected[images])


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 0.5, "max_level": 6},
        pytest.param(
            {"offset": 0.0, "rounding": "torchvision", "stride_rule": "grid", "min_level": 4},
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_the_anchors_of_a_symbolic_size_are_those_of_each_size(toy_config, change):
    toy_config.anchors.update(change)
    sides = export.symbolic_shape("128*h, 128*w")
    spec = jax.ShapeDtypeStruct(sides, np.float32)
    traced = export.export(jax.jit(lambda image: anchors_of(image.shape, toy_config)))(spec)
    for size in ((128, 128), (256, 384)):
        expected = modeling.image_anchors(size, toy_config)
        actual = jax.jit(traced.call)(np.zeros(size, np.float32))
        for level, desired in zip(actual, expected, strict=True):
            np.testing.assert_allclose(level, desired, atol=1e-4)


def test_more_anchors_of_the_lowest_logits_change_no_candidate():
    rng = np.random.default_rng(0)
    outputs = Outputs(
        (rng.normal(size=(1, 5, 2)).astype(np.float32),),
        (rng.normal(size=(1, 5, 4)).astype(np.float32),),
    )
    anchors = (np.float32([[0, 0, 8, 8]] * 5),)
    padded, padded_anchors = with_more_anchors(outputs, anchors, 7)
    select = jax.jit(lambda *level: core.select_candidates(*level, score_threshold=0.0, top_k=7))
    expected = select(outputs.logits[0][0], outputs.deltas[0][0], anchors[0])
    actual = select(padded.logits[0][0], padded.deltas[0][0], padded_anchors[0])
    assert padded.logits[0].shape == (1, 12, 2)
    for name in ("boxes", "scores", "classes", "mask"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


def test_dimensions_are_read_from_their_text():
    b, h, w = export.symbolic_shape("b, 128*h, 128*w")
    assert variable_and_factor(b) == ("b", 1)
    assert variable_and_factor(h) == ("h", 128)
    numpy_operators = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}

    def value(dimension):
        variables = {"b": np.array([2]), "h": np.array([3]), "w": np.array([5])}
        return evaluate_dimension(
            dimension, variables, lambda name, x, y: numpy_operators[name](x, y)
        )

    assert value(9 * (h // 64) * (w // 32) * b + 7 - w) == 9 * 6 * 20 * 2 + 7 - 640
    with pytest.raises(ValueError, match=r"cannot compute the dimension floordiv\(b, 2\); export"):
        value(b // 2)
    with pytest.raises(ValueError, match=r"cannot have an input with the dimension 2\*b \+ 1"):
        variable_and_factor(2 * b + 1)


def test_shapes_broadcast_as_in_numpy_and_symbolic_sizes_stay():
    (b,) = export.symbolic_shape("b")
    for shapes in ([(3, 1), (4,)], [(), (2, 1, 5), (3, 1)], [(1,), (1, 1)]):
        assert broadcast_shapes(*shapes) == np.broadcast_shapes(*shapes)
    assert broadcast_shapes((b, 1, 4), (3, 1), ()) == (b, 3, 4)


def test_images_are_padded_to_multiples_of_the_coarsest_stride(servable):
    servable.config.data.update(eval_short_side=64, long_side=200, buckets=((64, 224),))
    any_size = servable._replace(image_size=None)
    image = np.full((40, 100, 3), 255, np.uint8)
    pixels, size = any_size.prepare(image)
    assert pixels.shape == (128, 256, 3)
    assert size.tolist() == [64, 160]  # not shrunk to fit an input
    assert any_size.is_resized_as_in_evaluation(40, 100)
    assert not any_size.is_resized_as_in_evaluation(100, 40)  # in no bucket
    images, sizes = any_size.specs(None)
    assert str(images.shape) == "(b, 128*h, 128*w, 3)"
    assert str(sizes.shape) == "(b, 2)"


def test_the_card_and_the_client_of_an_artifact_for_any_size(servable, tmp_path):
    any_size = servable._replace(image_size=None)
    servable.config.data.update(eval_short_side=64, long_side=200)
    text = " ".join(model_card.resize_instructions(any_size))
    assert "input_size=None" in text
    assert "multiples of 128 that contain the images of the call" in text
    Image.fromarray(np.full((40, 100, 3), 255, np.uint8)).save(tmp_path / "a.png")
    card = {
        "resize": {"short_side": 64, "long_side": 200, "kind": "bilinear"},
        "image_size": None,
        "size_multiple": 128,
        "inputs": {"images": {"dtype": "uint8"}},
    }
    images, sizes, _ = client.prepare(str(tmp_path / "a.png"), card)
    expected, size = any_size.prepare(np.full((40, 100, 3), 255, np.uint8))
    np.testing.assert_array_equal(images, expected[None])
    np.testing.assert_array_equal(sizes, [size])


def test_triton_combines_requests_only_if_the_model_accepts_any_number(servable):
    outputs = {"count": jax.ShapeDtypeStruct(export.symbolic_shape("b"), np.int32)}
    text = triton_config(servable._replace(image_size=None).specs(None), outputs)
    assert "max_batch_size: 8" in text
    assert "dynamic_batching { }" in text
    assert '"images" data_type: TYPE_UINT8 dims: [-1, -1, 3]' in text
    assert '"sizes" data_type: TYPE_INT32 dims: [2]' in text
    assert '"count" data_type: TYPE_INT32 dims: [1] reshape: { shape: [] }' in text
    text = triton_config(servable.specs(2), {"count": jax.ShapeDtypeStruct((2,), np.int32)})
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    assert '"images" data_type: TYPE_UINT8 dims: [2, 64, 96, 3]' in text
    assert '"count" data_type: TYPE_INT32 dims: [2] }' in text


def test_the_flags_for_any_number_and_any_size():
    assert parse_batch_size(None, "onnx") == parse_batch_size(None, "tflite") == 1
    assert parse_batch_size(None, "stablehlo") is None
    assert parse_batch_size("dynamic", "onnx") is None
    assert parse_batch_size("4", "onnx") == 4
    assert parse_sizes(["dynamic"]) is None
    with pytest.raises(ValueError, match="--batch_size=any must be a number of images, such as 1"):
        parse_batch_size("any", "onnx")
    with pytest.raises(ValueError, match="--image_size=dynamic,96 must be HEIGHT,WIDTH"):
        parse_sizes(["dynamic", "96"])
