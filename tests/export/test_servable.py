"""The exported function: its inputs and how images are prepared for them."""

import ast
import inspect
import types

import numpy as np
import pytest
from PIL import ExifTags, Image

from retinanet_jax import input_pipeline
from retinanet_jax.data import tf_transforms
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.sizes import resized_sizes, size_in_canvas
from retinanet_jax.data.transforms import PIXEL_TYPES
from retinanet_jax.export import client, model_card, savedmodel
from retinanet_jax.export.servable import default_image_size


@pytest.mark.parametrize(
    ("buckets", "long_side", "expected"),
    [
        (((800, 928), (800, 1344), (1344, 800)), 1333, (1344, 1344)),
        (((800, 928), (800, 1344)), 1333, (800, 1344)),  # landscape only
        (((800, 928), (1088, 800)), 1333, (1088, 928)),
        (((1024, 1024), (2048, 2048)), 1000, (1024, 1024)),  # no side is longer than 1000
    ],
)
def test_the_default_size_is_the_smallest_that_contains_what_evaluation_resizes(
    config, buckets, long_side, expected
):
    config.data.update(buckets=buckets, long_side=long_side)
    assert default_image_size(config) == expected


def test_if_each_image_has_its_own_shape_the_default_size_is_a_square(config):
    config.data.update(buckets=((800, 928),), eval_shapes="own")
    assert default_image_size(config) == (1344, 1344)  # 1333 rounded up to a multiple of 32


@pytest.mark.parametrize(
    ("original", "expected", "as_in_evaluation"),
    [
        ((64, 64), (64, 64), True),
        ((30, 40), (64, 85), True),  # by the short side
        ((100, 300), (30, 90), True),  # by the long side, which is 90
        ((40, 30), (64, 48), False),  # a height of 85 would not fit
    ],
)
def test_images_are_resized_as_in_evaluation_unless_that_does_not_fit_the_input(
    servable, original, expected, as_in_evaluation
):
    servable.config.data.update(
        eval_short_side=64, long_side=90, buckets=((64, 96), (96, 64)), eval_shapes="buckets"
    )
    assert servable.resized_size(*original) == expected
    assert servable.is_resized_as_in_evaluation(*original) == as_in_evaluation
    image, size = servable.prepare(np.full((*original, 3), 255, np.uint8))
    assert tuple(size) == expected
    assert image.shape == (64, 96, 3)
    assert image[: size[0], : size[1]].all()
    assert not image[size[0] :].any()
    assert not image[:, size[1] :].any()


def test_an_image_that_fits_no_bucket_is_not_resized_as_in_evaluation(servable):
    servable.config.data.update(eval_short_side=64, long_side=96, buckets=((64, 64),))
    assert not servable.is_resized_as_in_evaluation(64, 80)
    with pytest.raises(ValueError, match="fits in no bucket"):
        input_pipeline.eval_plan(servable.config, np.array([[64, 80]]), batch_size=1)
    servable.config.data.eval_shapes = "own"
    assert servable.is_resized_as_in_evaluation(64, 80)


def random_sizes() -> np.ndarray:
    """Thousands of heights and widths, in small and large images."""
    rng = np.random.default_rng(12)
    return np.concatenate([rng.integers(1, limit, (1000, 2)) for limit in (40, 700, 5000, 30_000)])


RULES = [  # short side, long side, canvas
    (800, 1333, (1344, 1344)),
    (800, 1333, (800, 1088)),
    (333, 517, (320, 544)),
    (64, 90, (64, 96)),
    (777, 500, (512, 480)),  # only the long side limits
]


@pytest.mark.parametrize("resize", list(PIXEL_TYPES))
@pytest.mark.parametrize(("short_side", "long_side", "canvas"), RULES)
def test_an_image_has_one_size_in_numpy_tensorflow_the_client_and_evaluation(
    resize, short_side, long_side, canvas
):
    tf = pytest.importorskip("tensorflow")
    sizes = random_sizes()
    options = {"short_side": short_side, "long_side": long_side, "resize": resize}
    here = np.stack(size_in_canvas(*sizes.T, canvas, **options), axis=1)

    @tf.function  # in a graph, as in a SavedModel
    def size_in_tensorflow(heights, widths):
        tensor = {**options, "short_side": tf.constant(short_side, tf.float64)}
        return tf.stack(size_in_canvas(heights, widths, canvas, **tensor, xp=tf), axis=1)

    tensors = map(tf.constant, sizes.T.astype(np.float64))
    np.testing.assert_array_equal(size_in_tensorflow(*tensors), here)
    arguments = {"short_side": short_side, "long_side": long_side, "input_size": canvas}
    documented = [client.resized_size(h, w, **arguments, method=resize) for h, w in sizes.tolist()]
    np.testing.assert_array_equal(documented, here)

    assert (here <= canvas).all()
    evaluated = resized_sizes(sizes, **options)
    fits = (evaluated <= canvas).all(axis=1)
    np.testing.assert_array_equal(here[fits], evaluated[fits])
    largest = np.minimum(canvas[0] / sizes[:, 0], canvas[1] / sizes[:, 1])[:, None] * sizes
    assert (np.abs(here - largest)[~fits] <= 1).all()


def test_the_card_contains_the_rule_with_the_numbers_of_the_config(servable):
    servable.config.data.update(eval_short_side=60, long_side=90, resize="pillow")
    text = "\n".join(model_card.resize_instructions(servable))
    assert "short_side=60, long_side=90, method='pillow', input_size=[64, 96]" in text
    assert "Pillow's" in text
    assert set(model_card.RESIZE_METHODS) == set(PIXEL_TYPES)


@pytest.mark.parametrize("method", list(PIXEL_TYPES))
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_client_makes_the_inputs_of_an_image_file(servable, tmp_path, method, orientation):
    servable.config.data.update(eval_short_side=64, long_side=96, resize=method)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(4).integers(0, 256, (41, 70, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    card = {
        "resize": {"short_side": 64, "long_side": 96, "kind": method},
        "image_size": [64, 96],
        "inputs": {"images": {"dtype": str(servable.specs(1)[0].dtype)}},
    }
    image = read_image(path)
    expected, size = servable.prepare(image)
    with path.open("rb") as file:
        for source in (str(path), file):
            images, sizes, scale = client.prepare(source, card)
            np.testing.assert_array_equal(images, expected[None])
            np.testing.assert_array_equal(sizes, [size])
            assert (images.dtype, sizes.dtype) == (expected.dtype, size.dtype)
            width_height = np.array(image.shape[1::-1])
            np.testing.assert_allclose(scale, np.tile(width_height / size[::-1], 2))


def test_the_client_imports_only_numpy_and_pillow():
    tree = ast.parse(inspect.getsource(client))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == [
        "from typing import IO, Any",
        "import numpy as np",
        "from PIL import Image, ImageOps",
    ]


def test_inputs_are_float_if_resizing_does_not_round(servable):
    assert servable.specs(1)[0].dtype == np.uint8
    servable.config.data.resize = "bilinear_float"
    assert servable.specs(1)[0].dtype == np.float32


def test_the_client_reads_the_pixels_that_predict_reads(tmp_path):
    """Or refuses the file in one line; files that it opened itself are closed, or this fails."""
    pixels = np.random.default_rng(4).integers(0, 256, (21, 30, 3), np.uint8)
    image = Image.fromarray(pixels)
    palette, frames = image.convert("P"), {"save_all": True, "append_images": [image.rotate(180)]}
    files: dict[str, tuple[Image.Image, dict]] = {
        "palette.png": (palette, {"transparency": bytes(range(256))}),
        "color.png": (palette, {"transparency": 3}),
        "alpha.png": (image.convert("LA"), {}),
        "ink.jpg": (image.convert("CMYK"), {}),
        "frames.gif": (image, frames),
    }
    for name, (image, options) in files.items():
        image.save(tmp_path / name, **options)
        np.testing.assert_array_equal(
            client.read_rgb(str(tmp_path / name)), read_image(tmp_path / name)
        )
    deep = tmp_path / "deep.png"
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(deep)
    with pytest.raises(ValueError, match=r"deep\.png: has more than 8 bits per channel"):
        client.read_rgb(str(deep))


def test_a_disk_without_space_for_a_savedmodel_is_an_error_of_one_line(
    servable, tmp_path, monkeypatch
):
    class OpError(Exception):
        """TensorFlow's error, which is no OSError."""

    def save(*_, **__):
        raise OpError("saved_model.pb;\nNo space left on device")

    tf = types.SimpleNamespace(
        Module=types.SimpleNamespace,
        function=lambda function, **_: function,
        errors=types.SimpleNamespace(OpError=OpError),
        saved_model=types.SimpleNamespace(save=save),
    )
    monkeypatch.setattr(tf_transforms, "import_tensorflow", lambda: tf)
    monkeypatch.setattr(savedmodel, "input_specs", lambda _: [])
    monkeypatch.setattr(savedmodel, "make_detect", lambda _: None)
    message = r"write the SavedModel \(saved_model.pb; No space left on device\)\.$"
    with pytest.raises(OSError, match=message):
        savedmodel.write(servable._replace(image_size=None), tmp_path)
