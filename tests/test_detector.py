"""The Python API: an image has the same detections in every form and in every batch."""

import dataclasses
import doctest
import inspect
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import retinanet_jax
from retinanet_jax import checkpoint, core, datasets, input_pipeline
from retinanet_jax import detector as detector_module
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.data.transforms import PIXEL_TYPES
from retinanet_jax.detector import Detection, Detector
from retinanet_jax.inference import latency
from retinanet_jax.inference.network_inputs import eval_example
from retinanet_jax.utils.threads import NUM_THREADS
from retinanet_jax.weights import cached

CATEGORIES = (Category(3, "dog"), Category(7, "cat"), Category(9, "catfish"))


@pytest.fixture
def compiled_shapes(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that were compiled, of a network with two detections in every image.

    A cat that fills the image, with the red of the first pixel as its score, and a dog at .2 in
    the corner.
    """
    compiled_shapes = []

    def detect(variables, batch, model, config, score_thresholds):
        compiled_shapes.append(batch.images.shape)
        size = batch.sizes * batch.scales
        corner = jnp.zeros_like(size)
        red = batch.images[:, 0, 0, 0] / jnp.float32(255)
        detections = core.Detections(
            boxes=jnp.stack(
                [jnp.concatenate([corner, size], 1), jnp.concatenate([corner, corner + 2], 1)], 1
            ),
            scores=jnp.stack([red, jnp.full_like(red, 0.2)], 1),
            classes=jnp.tile(jnp.array([1, 0]), (len(red), 1)),
            mask=jnp.ones((len(red), 2), bool),
        )
        threshold = jnp.float32(config.detections.score_threshold)
        if score_thresholds is not None:
            threshold = jnp.array(score_thresholds)[detections.classes]
        keep = detections.scores > threshold
        detections = detections._replace(mask=detections.mask & keep)
        return core.Detections(*(x[:, : config.detections.max_detections] for x in detections))

    monkeypatch.setattr(latency, "detect", detect)
    return compiled_shapes


@pytest.fixture
def toy_checkpoint(toy_config, tmp_path) -> checkpoint.Checkpoint:
    toy_config.data.update(buckets=((32, 64), (64, 32)), eval_short_side=32, long_side=64)
    return checkpoint.Checkpoint({}, toy_config, CATEGORIES, 0, tmp_path / "run")


@pytest.fixture
def detector(compiled_shapes, toy_checkpoint) -> Detector:
    return Detector(toy_checkpoint)


def red_image(level: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """An image in a single shade of red; `size` is its (height, width)."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = level
    return pixels


def test_detections_have_names_scores_and_boxes_in_pixels_of_the_original_image(detector):
    image = red_image(204)
    detections = detector(image)
    assert len(detections) == 2
    np.testing.assert_array_equal(detections.image, image)
    np.testing.assert_array_equal(detections.boxes, np.float32([[0, 0, 30, 20], [0, 0, 2, 2]]))
    np.testing.assert_allclose(detections.scores, [0.8, 0.2], rtol=1e-6)
    assert detections.class_names == ("cat", "dog")
    assert detections.category_ids.tolist() == [7, 3]
    cat, dog = detections
    assert isinstance(cat, Detection)
    assert (cat.box.tolist(), cat.class_name, cat.category_id) == ([0, 0, 30, 20], "cat", 7)
    assert dog.score == pytest.approx(0.2)
    assert detections.to_coco(5)[0] == {
        "image_id": 5,
        "category_id": 7,
        "bbox": [0, 0, 30, 20],
        "score": pytest.approx(0.8),
    }
    assert repr(detections) == "<2 detections on 30 x 20 pixels: cat 0.80, dog 0.20>"
    first = {name: getattr(detections, name)[:1] for name in ("boxes", "scores", "classes")}
    assert (
        repr(dataclasses.replace(detections, **first))
        == "<1 detection on 30 x 20 pixels: cat 0.80>"
    )
    assert (detections[1].class_name, detections[-1].class_name) == ("dog", "dog")
    assert detector.class_names == ("dog", "cat", "catfish")
    assert repr(detector) == f"<Detector of 3 categories, {detector.checkpoint.folder}>"


def test_stored_thresholds_hold_unless_one_is_given(toy_checkpoint, compiled_shapes):
    """A category without one of its own has the overall threshold."""
    image = red_image(204)  # a cat at .8 and a dog at .2

    def names(thresholds, **limits):
        stored = toy_checkpoint._replace(thresholds=thresholds)
        return Detector(stored, **limits)(image).class_names

    assert names(None) == ("cat", "dog")
    assert names(checkpoint.Thresholds(0.5, {})) == ("cat",)
    assert names(checkpoint.Thresholds(0.5, {"dog": 0.1, "cat": 0.85})) == ("dog",)
    assert names(checkpoint.Thresholds(0.9, {"dog": 0.1}), score_threshold=0.15) == ("cat", "dog")
    assert names(checkpoint.Thresholds(0.1, {}), score_threshold=0.5) == ("cat",)
    # The limits that the detector reports are those that it has.
    stored = toy_checkpoint._replace(thresholds=checkpoint.Thresholds(0.9, {"dog": 0.1}))
    assert Detector(stored).checkpoint.score_thresholds == (0.1, 0.9, 0.9)
    assert Detector(stored, score_threshold=0.3).checkpoint.score_thresholds is None


def test_a_batch_is_not_a_single_image(detector, tmp_path):
    image = red_image(204)
    mapped = np.memmap(tmp_path / "a.raw", np.uint8, "w+", shape=image.shape)
    for single in ("a.jpg", b"a.jpg", image, image[..., 0], mapped, jnp.array(image), None, 5):
        with pytest.raises(ValueError, match=r"expects a list of images and got a single .*; pass"):
            detector.batch(single)


def test_an_array_of_four_axes_is_a_list_of_images(detector, tmp_path):
    images = np.stack([red_image(level) for level in (51, 102, 153)])
    mapped = np.memmap(tmp_path / "a.raw", np.uint8, "w+", shape=images.shape)
    mapped[:] = images
    for array in (images, mapped, images[:, ::-1], jnp.array(images)):
        results = list(detector.batch(array, batch_size=2))
        assert [detections.scores[0] for detections in results] == pytest.approx([0.2, 0.4, 0.6])
        for detections, image in zip(results, np.asarray(array), strict=True):
            np.testing.assert_array_equal(detections.image, image)
            detections.draw()


def test_an_unusable_memory_map_is_named_among_other_images(detector, tmp_path):
    mapped = np.memmap(tmp_path / "a.raw", np.float32, "w+", shape=(4, 4, 3))
    images = [red_image(51), mapped, b"x", red_image(102)]
    first, error, other, last = detector.batch_with_errors(images, batch_size=2)
    assert str(error).startswith(f"{tmp_path}/a.raw: this array of float32 (4, 4, 3) is not")
    assert str(other).startswith("the image: this bytes is not an image")
    assert [detections.scores[0] for detections in (first, last)] == pytest.approx([0.2, 0.4])
    with pytest.raises(ValueError, match=r"a\.raw: this array of float32"):
        detector(mapped)


def test_a_drawing_shows_the_detections_from_the_threshold_up(detector):
    detections = detector(red_image(204))
    drawings = {t: np.asarray(detections.draw(threshold=t)) for t in (0.1, 0.5, 0.9)}
    np.testing.assert_array_equal(drawings[0.9], detections.image)
    assert not np.array_equal(drawings[0.5], drawings[0.9])
    assert not np.array_equal(drawings[0.1], drawings[0.5])
    np.testing.assert_array_equal(np.asarray(detections.draw()), drawings[0.5])
    assert detections._repr_png_().startswith(b"\x89PNG")


def test_an_image_is_the_same_as_array_file_and_pillow_image(detector, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # to be rotated by 90 degrees clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "a.png", exif=rotated)
    with Image.open(tmp_path / "a.png") as opened:
        inputs = [pixels, tmp_path / "a.png", str(tmp_path / "a.png"), opened, opened]
        for detections in detector.batch(inputs, batch_size=2):
            np.testing.assert_array_equal(detections.image, pixels)
    gray = detector(pixels[..., 0])
    np.testing.assert_array_equal(gray.image, np.repeat(pixels[..., :1], 3, axis=2))


def test_a_batch_keeps_the_order_and_compiles_each_shape_once(detector, compiled_shapes):
    levels = list(range(60, 82))
    images = [red_image(level, (20, 30) if level % 3 else (30, 20)) for level in levels]
    results = list(detector.batch(images, batch_size=4))
    assert [detections.scores[0] for detections in results] == pytest.approx(np.array(levels) / 255)
    for image, detections in zip(images, results, strict=True):
        assert detections.image is image
        assert detections.boxes[0].tolist() == [0, 0, image.shape[1], image.shape[0]]
    # 14 images are wide and 8 are tall: the last batch of the wide ones is filled up.
    assert sorted(compiled_shapes) == [(4, 32, 64, 3), (4, 64, 32, 3)]
    assert list(detector.batch([], batch_size=4)) == []


def test_images_are_read_only_a_few_batches_ahead(detector):
    """Also if the first image is the only one of its shape: it does not wait for a second one."""
    read = []

    def many_images():
        for index in range(500):
            read.append(index)
            yield red_image(100 + index % 100, (20, 30) if index else (30, 20))

    size = 2
    results = detector.batch(many_images(), batch_size=size)
    assert not read
    for index in range(60):
        assert next(results).scores[0] == pytest.approx((100 + index % 100) / 255)
        assert len(read) - index <= (detector_module.PATIENCE + 3) * size + NUM_THREADS


def test_limits_replace_those_of_the_config(toy_checkpoint, compiled_shapes):
    image = red_image(204)
    assert Detector(toy_checkpoint, score_threshold=0.5)(image).class_names == ("cat",)
    assert Detector(toy_checkpoint, max_detections=1)(image).class_names == ("cat",)
    assert Detector(toy_checkpoint, score_threshold=0.9)(image).class_names == ()
    # The checkpoint's own config is not changed.
    assert Detector(toy_checkpoint)(image).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ["cat 0.9", "dog 0.8", "cat 0.7"]),
        ({"class_agnostic": True}, ["cat 0.9", "cat 0.7"]),
        ({"iou_threshold": 0.3}, ["cat 0.9", "dog 0.8"]),
        ({"iou_threshold": np.float32(0.3), "class_agnostic": True}, ["cat 0.9"]),
        ({"iou_threshold": 0.65, "class_agnostic": np.True_}, ["cat 0.9", "dog 0.8"]),
        ({"iou_threshold": 1, "class_agnostic": True}, ["cat 0.9", "dog 0.8", "cat 0.7"]),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_overlapping_boxes_are_suppressed_by_iou_and_class(
    toy_checkpoint, monkeypatch, limits, expected, own
):
    """A cat's box with a dog of IoU .6 and a second cat of IoU .4, which have IoU 2/3 themselves.

    A config that has other limits of its own gives the same detections, since these replace them.
    """
    anchors = np.float32([[0, 0, 20, 20], [0, 0, 20, 12], [0, 0, 20, 8]])
    scores = np.float32([[0.01, 0.9, 0.01], [0.8, 0.01, 0.01], [0.01, 0.7, 0.01]])

    def detect(variables, batch, model, config, score_thresholds):
        def detect_in_image(size):
            levels = ((jnp.array(np.log(scores / (1 - scores))),), (jnp.zeros((3, 4)),), (anchors,))
            scale = jnp.ones(2)
            return core.detect(*levels, valid_size=size, original_scale=scale, **config.detections)

        return jax.vmap(detect_in_image)(batch.sizes)

    monkeypatch.setattr(latency, "detect", detect)
    if own:
        toy_checkpoint.config.detections.update(iou_threshold=0.1, class_agnostic=True)
        limits = {"iou_threshold": 0.5, "class_agnostic": False, **limits}
    detections = Detector(toy_checkpoint, **limits)(red_image(204, (32, 32)))
    assert [f"{d.class_name} {d.score:.1f}" for d in detections] == expected


def test_load_passes_each_limit_on(toy_config, compiled_shapes, tmp_path):
    variables = {"params": {"kernel": np.zeros(3, np.float32)}}
    checkpoint.write_imported(tmp_path / "run", variables, toy_config, CATEGORIES)
    limits = {
        "score_threshold": 0.3,
        "iou_threshold": 0.4,
        "class_agnostic": True,
        "max_detections": 7,
    }
    detector = Detector.load(tmp_path / "run", categories=["cat"], **limits)
    assert limits.items() <= detector.checkpoint.config.detections.to_dict().items()
    toy_config.data.update(buckets=((32, 64), (64, 32)), eval_short_side=32, long_side=64)
    assert detector(red_image(204)).class_names == ("cat",)


def test_categories_select_among_the_detections(toy_checkpoint, compiled_shapes):
    image = red_image(204)
    dogs = Detector(toy_checkpoint, categories=["dog", "catfish"])
    assert dogs(image).class_names == ("dog",)
    assert Detector(toy_checkpoint, categories="cat")(image).category_ids.tolist() == [7]
    assert Detector(toy_checkpoint, categories=[])(image).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"categories": ["dog", "cta"]}, "'cta' is not among the 3 categories .*mean cat.*[?]"),
        ({"categories": ["zebra"]}, "it has, for example, dog, cat, catfish"),
        ({"score_threshold": 1.0}, "score_threshold=1.0 must be at least 0 and less than 1"),
        ({"score_threshold": -0.1}, "score_threshold=-0.1"),
        ({"score_threshold": "high"}, "score_threshold='high' must be at least 0"),
        ({"iou_threshold": 1.5}, "iou_threshold=1.5 must be from 0 to 1; try 0.5"),
        ({"iou_threshold": -0.1}, "iou_threshold=-0.1 must be from 0 to 1"),
        ({"iou_threshold": float("nan")}, "iou_threshold=nan must be from 0 to 1"),
        ({"class_agnostic": "no"}, "class_agnostic='no' must be True or False"),
        ({"max_detections": 0}, "max_detections=0 must be at least 1"),
        ({"max_detections": 2.5}, "max_detections=2.5 must be at least 1 and an integer"),
    ],
)
def test_an_invalid_argument_is_an_error_of_one_line(toy_checkpoint, given, message):
    with pytest.raises(ValueError, match=message) as error:
        Detector(toy_checkpoint, **given)
    assert "\n" not in str(error.value)


def test_a_limit_that_would_have_no_effect_is_an_error(toy_checkpoint):
    toy_checkpoint.config.detections.nms = "soft_gaussian"
    with pytest.raises(ValueError, match=r"iou_threshold=0\.3 has no effect with .*soft_gaussian"):
        Detector(toy_checkpoint, iou_threshold=0.3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.jpg", "nowhere.jpg: cannot be read .No such file"),
        (np.zeros((4, 4, 3), np.float32), "float32 .4, 4, 3. is not an image; give uint8"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 .4, 4, 4. is not an image"),
        (np.zeros((0, 4, 3), np.uint8), "is not an image"),
        (np.zeros((4, 400, 3), np.uint8), "the image: .*which fits in no bucket"),
    ],
)
def test_an_unusable_image_is_an_error_of_one_line(detector, toy_checkpoint, image, message):
    toy_checkpoint.config.data.long_side = 1000
    with pytest.raises(ValueError, match=message) as error:
        Detector(toy_checkpoint)(image)
    assert "\n" not in str(error.value)


def test_the_error_of_an_unreadable_image_comes_in_its_place(detector, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    Image.fromarray(red_image(9)).save(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:60])
    with Image.open(tmp_path / "short.png") as opened:
        images = [red_image(153), tmp_path / "bad.jpg", red_image(102), opened]
        first, bad, second, short = detector.batch_with_errors(images, batch_size=2)
    assert [detections.scores[0] for detections in (first, second)] == pytest.approx([0.6, 0.4])
    for error, name in ((bad, "bad.jpg"), (short, "short.png")):
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"{tmp_path / name}: ")
    results = detector.batch(images, batch_size=1)
    assert next(results).scores[0] == pytest.approx(0.6)
    with pytest.raises(ValueError, match=r"bad\.jpg: the image is corrupt"):
        next(results)
    for batch_size in (0, 2.5, "2"):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be at least 1"):
            detector.batch([], batch_size=batch_size)


def test_the_package_imports_nothing_until_a_public_name_is_used():
    code = (
        "import sys, retinanet_jax\n"
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'imports too much'\n"
        "try:\n    retinanet_jax.detector_\n"
        "except AttributeError as error:\n    assert 'detector_' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert retinanet_jax.Detector is Detector


def test_the_earlier_name_of_detections_names_the_new_one():
    with pytest.raises(AttributeError, match="Result is called Detections since"):
        retinanet_jax.Result  # noqa: B018


@pytest.mark.parametrize("name", ["load", "__call__", "batch", "augmented"])
def test_the_example_of_the_documentation_runs(
    name, toy_config, compiled_shapes, tmp_path, monkeypatch
):
    """With a checkpoint on disk and two images of the sizes that the examples print."""
    toy_config.data.update(buckets=((64, 64),), eval_short_side=32, long_side=64)
    variables = {"params": {"kernel": np.zeros(3, np.float32)}}
    workdir = tmp_path / "runs" / "pets"
    checkpoint.write_imported(workdir, variables, toy_config, CATEGORIES[:2])
    # As if torchvision_v2 had been downloaded and converted before.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    converted = cached.conversion("torchvision_v2-5905b1c5")
    checkpoint.write_imported(converted, variables, toy_config, COCO_CATEGORIES)
    for file_name, level, size in (
        ("living_room.jpg", 204, (480, 640)),
        ("garden.jpg", 153, (640, 480)),
    ):
        Image.fromarray(red_image(level, size)).save(tmp_path / file_name)
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(Detector, name))
    example = doctest.DocTestParser().get_doctest(text, {"Detector": Detector}, name, None, 0)
    assert "Examples:\n" in text
    assert example.examples
    report = []
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)
    assert pathlib.Path("annotated.jpg").exists() == (name == "__call__")


@pytest.mark.parametrize("shapes", ["buckets", "own"])
@pytest.mark.parametrize("method", PIXEL_TYPES)
def test_the_network_has_the_same_input_as_in_evaluation(
    config, synthetic_dataset, tmp_path, method, shapes
):
    config.data.eval.update(
        annotations=f"{synthetic_dataset}/instances.json", images=f"{synthetic_dataset}/images"
    )
    config.data.update(resize=method, eval_shapes=shapes, eval_short_side=90, loader="numpy")
    config.data.buckets = ((96, 128), (128, 128))
    source = datasets.open_evaluation(config, tmp_path)
    plan = input_pipeline.eval_plan(config, source.sizes, batch_size=1)
    for batch in input_pipeline.host_batches(config, source, plan, range(3)):
        example = eval_example(source.image(int(batch.index[0])), config)
        assert example.images.shape == (1, 96, 96 if shapes == "own" else 128, 3)
        assert example.images.dtype == batch.images.dtype == PIXEL_TYPES[method]
        for field in ("images", "sizes", "scales", "colors"):
            np.testing.assert_array_equal(getattr(example, field), getattr(batch, field))


@pytest.mark.slow
def test_the_rest_of_a_batch_changes_no_detection(tiny_run):
    """Six images one by one, and in batches of four, the last of which has two fillers."""
    detector = Detector.load(tiny_run.workdir)
    images = sorted((tiny_run.workdir / "data/shapes-2/images").iterdir())[:6]
    num_detections = 0
    for image, together in zip(images, detector.batch(images, batch_size=4), strict=True):
        single = detector(image)
        assert together.class_names == single.class_names
        np.testing.assert_allclose(together.boxes, single.boxes, atol=1e-3)
        np.testing.assert_allclose(together.scores, single.scores, atol=1e-6)
        num_detections += len(single)
    assert num_detections > 50
