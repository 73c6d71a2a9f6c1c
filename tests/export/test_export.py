"""Export: every format finds what the checkpoint finds, and what differs is not kept."""

import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from retinanet_jax import checkpoint, core, modeling
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.synthetic import draw_image
from retinanet_jax.data.transforms import pad, resize
from retinanet_jax.export import artifact as command
from retinanet_jax.export import model_card, savedmodel, verification
from retinanet_jax.export.onnx import graph, nms
from retinanet_jax.export.servable import INPUTS, OUTPUTS, Found, Servable, default_image_size
from retinanet_jax.export.verification import Detected

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "export.md"
CATEGORIES = (Category(3, "egg"), Category(7, "hen"))


@pytest.fixture
def servable(toy_config, tmp_path) -> Servable:
    """Without weights: for what runs no network."""
    trained = Checkpoint({}, toy_config, CATEGORIES, 12, tmp_path / "run" / "checkpoints" / "12")
    return Servable(trained, (64, 96), None)


# ---- what goes in


def test_the_default_size_holds_every_picture(config):
    assert default_image_size(config) == (1344, 1344)  # 1333 in multiples of 32


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((64, 64), (64, 64)),
        ((30, 40), (64, 85)),  # by the short side
        ((100, 300), (30, 90)),  # by the long side, which is 90
        ((40, 30), (64, 48)),  # 85 rows would not fit
    ],
)
def test_pictures_are_resized_as_in_evaluation_and_to_fit(servable, picture, expected):
    servable.config.data.update(eval_short_side=64, long_side=90)
    assert servable.resized_size(*picture) == expected
    image, size = servable.prepared(np.full((*picture, 3), 255, np.uint8))
    assert tuple(size) == expected
    assert image.shape == (64, 96, 3)
    assert image[: size[0], : size[1]].all()
    assert not image[size[0] :].any()
    assert not image[:, size[1] :].any()


def test_floats_go_in_where_resizing_does_not_round(servable):
    assert servable.specs(1)[0].dtype == np.uint8
    servable.config.data.resize = "bilinear_float"
    assert servable.specs(1)[0].dtype == np.float32


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"image_size": (64, 65)},
            r"--image_size=\(64, 65\) must be height,width, multiples of 32",
        ),
        ({"image_size": (64,)}, r"--image_size=\(64,\) must be height,width"),
        ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"score_threshold": 1.5}, "score_threshold=1.5"),
        ({"max_detections": 0}, "max_detections=0"),
    ],
)
def test_mistakes_are_told(servable, monkeypatch, given, told):
    monkeypatch.setattr(checkpoint, "load", lambda path: servable.trained)
    nothing = dict.fromkeys(("image_size", "batch_size", "score_threshold", "max_detections"))
    with pytest.raises(ValueError, match=told) as error:
        command.servable_of("run", **{**nothing, **given})
    assert "\n" not in str(error.value)


# ---- verification

WANT = Detected(
    np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32),
    np.array([0.9, 0.5], np.float32),
    np.array([3, 7]),
)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (0.0, 0.0, 0)),
        ({"boxes": WANT.boxes + np.float32([[0, 0, 0, 0], [0, 0.25, 0, -0.125]])}, (0.25, 0.0, 0)),
        ({"scores": np.float32([0.9, 0.5078125])}, (0.0, 0.0078125, 0)),
        ({"categories": np.array([3, 3])}, (0.0, 0.0, 2)),
        ({"boxes": WANT.boxes + 2}, (0.0, 0.0, 4)),
    ],
)
def test_the_difference_of_two_detections(changed, expected):
    one = verification.difference(WANT, WANT._replace(**changed), sure=0.1)
    assert one[2:] == expected
    assert one.detections == 2


def test_order_does_not_matter_and_each_has_one_counterpart():
    turned = Detected(*(x[::-1] for x in WANT))
    assert verification.difference(WANT, turned, 0.1).unmatched == 0
    twice = Detected(*(np.concatenate([x, x[:1]]) for x in WANT))
    assert verification.difference(WANT, twice, 0.1).unmatched == 1
    assert verification.difference(twice, WANT, 0.1).unmatched == 1


def test_what_rounding_decides_about_needs_no_counterpart(servable):
    first = Detected(*(x[:1] for x in WANT))
    assert verification.difference(WANT, first, sure=0.4).unmatched == 1
    assert verification.difference(WANT, first, sure=0.6).unmatched == 0
    limits = servable.config.detections
    limits.update(score_threshold=0.3, max_detections=3)
    assert verification.sure_score(WANT, servable) == pytest.approx(0.3 + 1e-4)
    limits.max_detections = 2
    assert verification.sure_score(WANT, servable) == pytest.approx(0.5 + 1e-4)


def padded(boxes, scores, categories) -> Found:
    """Of one picture, in three rows."""
    rows = ((0, 3 - len(scores)),)
    return Found(
        np.pad(boxes, (*rows, (0, 0)))[None],
        np.pad(scores, rows)[None],
        np.pad(categories, rows)[None],
        np.array([len(scores)]),
    )


@pytest.fixture
def artifact(monkeypatch, servable):
    """`artifact(found)`: a format whose artifacts find `found`, where `WANT` is to be found."""

    def artifact(found: Found):
        module = types.SimpleNamespace(
            PACKAGES=(),
            write=lambda servable, folder: (folder / "artifact").write_text("a"),
            load=lambda folder: lambda images, sizes: Found(*(np.repeat(x, 2, 0) for x in found)),
        )
        monkeypatch.setitem(command.FORMATS, "stablehlo", module)
        monkeypatch.setattr(
            verification, "reference", lambda servable: lambda images, sizes: [WANT] * 2
        )

    return artifact


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"boxes": WANT.boxes + 0.0625}, r"boxes differ by 0\.062 pixels"),
        ({"scores": WANT.scores - np.float32(2e-4)}, r"scores by 0\.0002"),
        ({"categories": np.array([7, 7])}, "8 of 8 detections on 4 pictures have no counterpart"),
    ],
)
def test_an_artifact_that_differs_is_not_kept(artifact, servable, tmp_path, changed, told):
    artifact(padded(**{**WANT._asdict(), **changed}))
    with pytest.raises(ValueError, match=told) as error:
        command.run("stablehlo", servable, tmp_path / "out", None)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_found_nothing_is_not_called_verified(
    artifact, servable, tmp_path, capsys, monkeypatch
):
    nothing = Detected(*(x[:0] for x in WANT))
    artifact(padded(*nothing))
    monkeypatch.setattr(verification, "reference", lambda _: lambda images, sizes: [nothing] * 2)
    command.run("stablehlo", servable, tmp_path / "out", None)
    assert "not verified: nothing was found on 4 pictures; give" in capsys.readouterr().out


def test_rows_after_the_last_detection_are_zero(artifact, servable, tmp_path):
    found = padded(*WANT)
    found.scores[0, 2] = 0.1
    artifact(found)
    with pytest.raises(ValueError, match="gives more than its count"):
        command.run("stablehlo", servable, tmp_path / "out", None)


def test_the_card_tells_where_an_artifact_comes_from(artifact, servable, tmp_path, capsys):
    servable.config.detections.update(score_threshold=0.25, max_detections=3)
    evaluation = servable.trained.folder.parent.parent / "eval"
    evaluation.mkdir(parents=True)
    (evaluation / "12.json").write_text(json.dumps({"AP": 0.5, "AP50": 0.75}))
    artifact(padded(*WANT))
    command.run("stablehlo", servable, tmp_path / "out", None)
    assert "8 detections on 4 pictures: boxes within 0 pixels" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / model_card.FILE).read_text())
    assert told["checkpoint"]["step"] == 12
    assert told["checkpoint"]["metrics"]["AP"] == 0.5
    assert told["checkpoint"]["config"]["model"]["backbone"] == "toy"
    assert told["categories"] == [{"id": 3, "name": "egg"}, {"id": 7, "name": "hen"}]
    assert (told["image_size"], told["score_threshold"]) == ([64, 96], 0.25)
    assert told["sha256"] == {"artifact": hashlib.sha256(b"a").hexdigest()}
    page = (tmp_path / "out" / model_card.README).read_text()
    assert "step 12: AP 0.500, AP50 0.750" in page
    assert "| images | uint8 | any x 64 x 96 x 3 |" in page
    assert "3 egg, 7 hen" in page


def test_a_missing_package_is_told_with_what_to_install(monkeypatch, servable, tmp_path):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else object()
    )
    told = (
        r"--format=onnx needs onnx, not installed here; pip install onnx, or 'retinanet_jax\[onnx"
    )
    with pytest.raises(ValueError, match=told):
        command.run("onnx", servable, tmp_path / "out", None)


def test_an_existing_folder_is_not_overwritten(servable, tmp_path):
    pytest.importorskip("flatbuffers")
    with pytest.raises(FileExistsError, match="is there already; give another folder"):
        command.run("stablehlo", servable, tmp_path, None)


def test_no_pictures_to_verify_on_is_told(servable, tmp_path):
    told = r"no picture \(\.bmp, \.jpeg, \.jpg, \.png, .*\) in /.*; give pictures, or folders"
    with pytest.raises(FileNotFoundError, match=told):
        command.example_pictures(servable, tmp_path)


def test_soft_nms_is_not_in_onnx(servable, tmp_path):
    pytest.importorskip("onnx")
    servable.config.detections.nms = "soft_linear"
    with pytest.raises(ValueError, match="'soft_linear' is not in ONNX; export to stablehlo"):
        command.FORMATS["onnx"].write(servable, tmp_path)


# ---- a jaxpr as an ONNX graph


def by_onnxruntime(function, *inputs, functions=()):
    """What onnxruntime makes of a function that jax traced."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    jaxpr = jax.make_jaxpr(function)(*inputs)
    names = [f"in{k}" for k in range(len(inputs))]
    outputs = [f"out{k}" for k in range(len(jaxpr.out_avals))]
    model = graph.Graph(dict(functions)).model(jaxpr, names, outputs)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
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
        ),  # of equals the first
        lambda x, i: (jnp.argsort(x[0], descending=True), jnp.argsort(x[0]), jnp.sort(i)),
        lambda x, i: (x[:, ::2], x[1], x[:, 1:3], x[::-1], x[jnp.abs(i) % 2], x.T[jnp.abs(i) % 4]),
        lambda x, i: (jnp.stack([x, x + 1], axis=1), jnp.concatenate([x, x[:1]]), jnp.tile(i, 2)),
        lambda x, i: (jnp.unstack(x, axis=1), jnp.pad(x, ((1, 0), (0, 2)), constant_values=3)),
        lambda x, i: (x.sum(0), x.max(1), x.min(), jnp.mean(x, axis=1, keepdims=True)),
        lambda x, i: (x.astype(jnp.int32), i.astype(jnp.float32) + x, x[:, None, :] + x[None, :]),
        lambda x, i: (jnp.broadcast_to(i[:, None], (4, 3)), jnp.broadcast_to(x[0, 0], (2, 2))),
        lambda x, i: jnp.arange(4) + i,  # a constant part
    ],
)
def test_the_graph_computes_what_jax_computes(function):
    expected = jax.tree.leaves(function(jnp.asarray(X), jnp.asarray(N)))
    found = by_onnxruntime(lambda x, i: tuple(jax.tree.leaves(function(x, i))), X, N)
    for have, want in zip(found, expected, strict=True):
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(have, want, rtol=1e-6)


def test_convolution_and_pooling_are_those_of_the_networks():
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

    for have, want in zip(by_onnxruntime(function, x), function(x), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_what_the_graph_cannot_say_is_told():
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="jax's while is not known to the ONNX export"):
        by_onnxruntime(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y * 2, x), X)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.5, 0.7])
def test_nms_is_the_same(iou_threshold, class_agnostic):
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 12, (200, 2)).astype(np.float32)  # many equal, some exactly at 0.5
    boxes = np.concatenate([corners, corners + rng.integers(0, 9, (200, 2))], 1).astype(np.float32)
    classes, mask = rng.integers(0, 3, 200).astype(np.int32), rng.random(200) < 0.8
    options = {"iou_threshold": iou_threshold, "class_agnostic": class_agnostic}
    expected = core.non_maximum_suppression(boxes, classes, mask, limit=200, **options)
    assert 0 < expected.sum() < mask.sum()

    def suppress(boxes, classes, mask):
        return (core.non_maximum_suppression(boxes, classes, mask, limit=200, **options),)

    rule = nms.non_maximum_suppression(num_classes=3, **options)
    (found,) = by_onnxruntime(
        suppress, boxes, classes, mask, functions={"non_maximum_suppression": rule}
    )
    np.testing.assert_array_equal(found, expected)


# ---- the formats themselves


@pytest.fixture(scope="module")
def trained_toy(tmp_path_factory):
    """Builds the toy detector of `toy_config` with random weights that find something."""

    def build(config) -> Checkpoint:
        config.detections.score_threshold = 0.3
        config.model.prior_probability = 0.3
        variables = jax.device_get(modeling.initialize(config, 2, seed=0))
        predict = variables["params"]["classification_head"]["predict"]
        predict["kernel"] = predict["kernel"] * 30
        return Checkpoint(variables, config, CATEGORIES, 12, pathlib.Path("run/checkpoints/12"))

    return build


def lines_for(what: str) -> str:
    """The documented lines that contain `what`."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    (found,) = (block for block in blocks if what in block)
    return found


def run_alone(lines: str, *, without: tuple[str, ...], **paths: object) -> None:
    """Runs lines in a process where some packages cannot be imported."""
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    for name, path in paths.items():
        lines = lines.replace(name, str(path))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{hidden}{lines}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# For each format: what its lines contain, what they must do without, how the config resizes.
RUNTIMES = {
    "stablehlo": (
        "export.deserialize",
        ("retinanet_jax", "flax", "tensorflow", "onnxruntime"),
        "pillow",
    ),
    "savedmodel": ("serving_default", ("retinanet_jax", "jax", "onnxruntime"), "bilinear"),
    "onnx": ("onnxruntime", ("retinanet_jax", "jax", "tensorflow"), "bilinear_float"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(RUNTIMES))
def test_the_documented_lines_find_what_the_checkpoint_finds(
    kind, trained_toy, toy_config, tmp_path
):
    """From a file of another form than the input, with lines that know nothing of the package."""
    for package in command.FORMATS[kind].PACKAGES:
        pytest.importorskip(package)
    what, without, toy_config.data.resize = RUNTIMES[kind]
    servable = Servable(trained_toy(toy_config), (64, 64), 1 if kind == "onnx" else None)
    artifact, picture = tmp_path / "artifact", tmp_path / "picture.jpg"
    command.run(kind, servable, artifact, None)
    Image.fromarray(np.asarray(draw_image(5, 1, 128)[0])[:90]).save(picture)

    arrays = ", ".join(f"{name}={name}" for name in (*INPUTS, *OUTPUTS))
    run_alone(
        f"{lines_for('def resize')}{lines_for(what)}np.savez('FOUND', {arrays})",
        without=without,
        ARTIFACT=artifact,
        PICTURE=picture,
        FOUND=tmp_path / "found.npz",
    )
    with np.load(tmp_path / "found.npz") as found:
        pixels = np.asarray(Image.open(picture))
        size = servable.resized_size(90, 128)
        image = pad(resize(pixels, *size, kind=toy_config.data.resize), 64, 64)
        np.testing.assert_array_equal(found["sizes"], [size])
        np.testing.assert_array_equal(found["images"], [image])
        twice = [np.repeat(found[name], 2, axis=0) for name in INPUTS]  # what is compiled already
        want = verification.reference(servable)(*twice)[0]
        (have,) = verification.separate(Found(*(found[name] for name in OUTPUTS)))
    difference = verification.difference(want, have, sure=0.3 + 1e-4)
    assert difference.detections > 5
    assert difference.box < 0.01
    assert difference.score < 1e-5
    assert difference.unmatched == 0

    run = command.FORMATS[kind].load(artifact)
    if kind == "onnx":
        check_triton(artifact)
    else:
        check_any_batch(run, found=have, image=image, size=size)
    if kind == "savedmodel":
        check_jpeg(artifact, picture, want, np.array(size) / (90, 128))


def check_any_batch(run, found, image, size):
    """A picture beside another is found as it is alone."""
    images, sizes = np.zeros((2, *image.shape), image.dtype), np.full((2, 2), 64, np.int32)
    images[1], sizes[1] = image, size
    among = verification.separate(run(images, sizes))[1]
    for have, want in zip(among, found, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-4)


def check_jpeg(artifact, picture, want, scale):
    """By the documented lines the file's bytes go in, boxes in its pixels come out."""
    import tensorflow as tf

    names = {"tf": tf, "model": tf.saved_model.load(str(artifact / savedmodel.FOLDER))}
    exec(lines_for(savedmodel.JPEG_SIGNATURE).replace("PICTURE", str(picture)), names)
    (have,) = verification.separate(Found(*(names["found"][name].numpy() for name in OUTPUTS)))
    in_file = want._replace(boxes=want.boxes / np.tile(scale[::-1], 2))
    difference = verification.difference(in_file, have, sure=0.3 + 1e-4)
    assert difference.box < 0.01
    assert difference.unmatched == 0


def check_triton(artifact):
    """The repository's layout, and a description that agrees with the model."""
    import onnxruntime

    folder = artifact / "detector"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.pbtxt"]
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    text = (folder / "config.pbtxt").read_text()
    types = {"TYPE_UINT8": "uint8", "TYPE_INT32": "int32", "TYPE_FP32": "float"}
    told = [
        (name, f"tensor({types[kind]})", [int(size) for size in sizes.split(",")])
        for name, kind, sizes in re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[(.*?)\]', text)
    ]
    values = [*session.get_inputs(), *session.get_outputs()]
    assert told == [(one.name, one.type, one.shape) for one in values]
    assert "max_batch_size: 0" in text


@pytest.mark.slow
def test_the_command_exports_a_run(program, tiny_run, tmp_path):
    """With its own thresholds; mistakes are one line."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    arguments = (
        f"--checkpoint={tiny_run.workdir}",
        "--format=onnx",
        f"--output={tmp_path / 'out'}",
    )
    given = ("--score_threshold=0.002", "--max_detections=20", "--image_size=64,96")
    status, stdout, stderr = program.run("export", *arguments, *given)
    assert status == 0, stderr
    assert "verified: " in stdout
    assert f"{tmp_path / 'out'}: onnx for 1 picture of 64 x 96" in stdout
    told = json.loads((tmp_path / "out" / model_card.FILE).read_text())
    assert (told["score_threshold"], told["max_detections"]) == (0.002, 20)
    assert told["inputs"]["images"]["shape"] == [1, 64, 96, 3]
    assert told["verified"]["detections"] > 0
    assert 0 <= told["checkpoint"]["metrics"]["AP"] <= 1

    status, _, stderr = program.run("export", *arguments)
    assert status == 1
    assert stderr.strip().endswith("is there already; give another folder.")
