"""Test-time augmentation: each object once, in the place and with the limits of the detector."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from retinanet_jax import checkpoint, core, datasets
from retinanet_jax.__main__ import main
from retinanet_jax.cli.tta import define_tta, tta_options
from retinanet_jax.data.sources.base import Category
from retinanet_jax.detector import Detector
from retinanet_jax.inference import latency
from retinanet_jax.inference.augmented import MERGES
from retinanet_jax.inference.views import ORIENTATIONS, View

CATEGORIES = (Category(3, "dog"), Category(7, "cat"))
ALL_VIEWS = [*ORIENTATIONS, "0.5", "2", "rot90@2"]


@pytest.fixture
def compiled_shapes(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that were compiled, of a network that sees what is bright as a cat.

    The score of the cat is the brightness. A dog at .2 is in the upper left corner of each view.
    """
    compiled_shapes = []

    def detect_in_image(pixels, scale):
        bright = pixels[..., 0] > jnp.max(pixels) / 2
        extent = []
        for axis in (1, 0):
            line = jnp.any(bright, axis=axis)
            extent.append((jnp.argmax(line), len(line) - jnp.argmax(line[::-1])))
        (y0, y1), (x0, x1) = extent
        cat, dog = jnp.array([y0, x0, y1, x1]) * jnp.tile(scale, 2), jnp.array([0, 0, 2, 2.0])
        scores = jnp.stack([jnp.max(pixels) / 255, jnp.float32(0.2)])
        return core.Detections(jnp.stack([cat, dog]), scores, jnp.array([1, 0]), scores > 0)

    def detect(variables, batch, model, config, score_thresholds):
        compiled_shapes.append(batch.images.shape)
        detections = jax.vmap(detect_in_image)(batch.images, batch.scales)
        threshold = jnp.float32(config.detections.score_threshold)
        if score_thresholds is not None:
            threshold = jnp.array(score_thresholds)[detections.classes]
        detections = detections._replace(mask=detections.mask & (detections.scores > threshold))
        return jax.tree.map(lambda x: x[:, : config.detections.max_detections], detections)

    monkeypatch.setattr(latency, "detect", detect)
    return compiled_shapes


@pytest.fixture
def toy_checkpoint(toy_config, tmp_path, compiled_shapes) -> checkpoint.Checkpoint:
    toy_config.data.update(buckets=((32, 64), (64, 32)), eval_short_side=32, long_side=64)
    return checkpoint.Checkpoint({}, toy_config, CATEGORIES, 0, tmp_path / "run")


def image_of(box: tuple[int, int, int, int], brightness: int = 204) -> np.ndarray:
    """An image of 64 x 32 pixels with a bright box (x0, y0, x1, y1)."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = brightness
    return image


def assert_equal(detections, expected):
    for name in ("boxes", "scores", "classes", "image"):
        np.testing.assert_array_equal(getattr(detections, name), getattr(expected, name))


@pytest.mark.parametrize("merge", MERGES)
def test_an_object_is_detected_once_in_its_place(toy_checkpoint, compiled_shapes, merge):
    detector = Detector(toy_checkpoint, categories=["cat"]).augmented(ALL_VIEWS, merge=merge)
    boxes = [(4, 8, 24, 20), (40, 2, 64, 32), (0, 0, 64, 32)]
    results = list(detector.batch(map(image_of, boxes), batch_size=4))
    for box, detections in zip(boxes, results, strict=True):
        assert detections.class_names == ("cat",)
        np.testing.assert_allclose(detections.boxes, [box], atol=1e-4)
        np.testing.assert_allclose(detections.scores, [0.8], rtol=1e-5)
        np.testing.assert_array_equal(detections.image, image_of(box))
    # Each scale of each bucket is compiled once; sides are rounded up to multiples of 32.
    sizes = {(32, 64), (64, 32), (32, 32), (64, 128), (128, 64)}
    assert sorted(compiled_shapes) == sorted((4, *size, 3) for size in sizes)


def test_only_the_plain_view_is_the_detector_bit_for_bit(toy_checkpoint):
    detector = Detector(toy_checkpoint)
    for merge in MERGES:
        augmented = detector.augmented([], merge=merge)
        assert augmented.views == (View(),)
        image = image_of((3, 5, 17, 29))[:, :51]
        assert_equal(augmented(image), detector(image))


def test_the_limits_apply_to_the_merged_detections(toy_checkpoint):
    """With one flip, the cat of .8 is in both views, and a dog of .2 in each of two corners."""
    image = image_of((4, 8, 24, 20))

    def scores(merge, thresholds=None, **limits):
        stored = toy_checkpoint._replace(thresholds=thresholds)
        detector = Detector(stored, **limits).augmented(["flip"], merge=merge)
        return detector(image).scores.round(6).tolist()

    assert scores("nms") == pytest.approx([0.8, 0.2, 0.2])
    assert scores("wbf") == pytest.approx([0.8, 0.1, 0.1])
    assert scores("wbf", score_threshold=0.15) == pytest.approx([0.8])
    assert scores("nms", score_threshold=0.15) == pytest.approx([0.8, 0.2, 0.2])
    stored = checkpoint.Thresholds(0.85, {"dog": 0.05})
    assert scores("wbf", stored) == pytest.approx([0.1, 0.1])
    assert scores("wbf", max_detections=2) == pytest.approx([0.8, 0.1])
    # As without augmentation, the categories are selected after that.
    assert scores("wbf", max_detections=2, categories=["dog"]) == pytest.approx([0.1])


def test_a_detection_that_is_weak_in_one_view_counts_for_the_average(toy_checkpoint, monkeypatch):
    detector = Detector(toy_checkpoint, score_threshold=0.5).augmented(["flip"])
    views = iter([0.9, 0.3])
    monkeypatch.setattr(
        View, "pixels", lambda self, image: (image * (next(views) / 0.8)).astype(np.uint8)
    )
    detections = detector(image_of((0, 8, 64, 20)))
    np.testing.assert_allclose(detections.scores, [0.6], atol=0.01)


def test_with_class_agnostic_nms_averages_suppress_those_of_other_classes(toy_checkpoint):
    image = image_of((0, 0, 2, 2), 250)  # a cat at the place of the plain view's dog
    both = Detector(toy_checkpoint).augmented(["0.5"], merge="wbf")(image)
    assert both.class_names == ("cat", "dog")
    cats = Detector(toy_checkpoint, class_agnostic=True).augmented(["0.5"], merge="wbf")(image)
    assert cats.class_names == ("cat",)


def test_soft_nms_is_merged_by_weighted_box_fusion_only(toy_checkpoint):
    toy_checkpoint.config.detections.nms = "soft_linear"
    detector = Detector(toy_checkpoint)
    with pytest.raises(ValueError, match=r"nms=soft_linear retains; merge by 'wbf'\."):
        detector.augmented(["flip"], merge="nms")
    with pytest.raises(ValueError, match=r"merge='mean' must be one of nms, wbf\."):
        detector.augmented(["flip"], merge="mean")
    assert detector.augmented(["flip"], merge="wbf").class_names == ("dog", "cat")


def test_errors_are_those_of_the_images_in_their_order(toy_checkpoint, tmp_path):
    toy_checkpoint.config.data.buckets = ((32, 64),)
    (tmp_path / "text.jpg").write_text("no image")
    images = [image_of((4, 8, 24, 20)), tmp_path / "text.jpg", image_of((4, 8, 30, 20))]
    detector = Detector(toy_checkpoint, categories=["cat"])
    first, error, last = detector.augmented(["flip"]).batch_with_errors(images, 2)
    assert "text.jpg" in str(error)
    np.testing.assert_allclose(first.boxes, [(4, 8, 24, 20)], atol=1e-4)
    np.testing.assert_allclose(last.boxes, [(4, 8, 30, 20)], atol=1e-4)
    (error,) = detector.augmented(["rot90"]).batch_with_errors(images[:1])
    assert str(error).startswith("the image (view rot90): image 0 of (64, 32)")
    with pytest.raises(ValueError, match="expects a list of images and got a single"):
        detector.augmented().batch(images[0])


def test_the_flag_has_no_value_or_names_the_views():
    def options(*arguments):
        values = flags.FlagValues()
        define_tta(values)
        assert values(["program", *arguments, "a.jpg"])[1:] == ["a.jpg"]
        return tta_options(values)

    assert options() is None
    assert options("--tta", "--notta") is None
    assert options("--tta") == {"views": ("plain", "flip"), "merge": "wbf"}
    assert options("--tta=rot90,flip@2", "--tta_merge=nms") == {
        "views": ("plain", "rot90", "flip@2.0"),
        "merge": "nms",
    }


def test_evaluate_with_tta_has_a_folder_of_its_own(
    toy_config, compiled_shapes, synthetic_dataset, tmp_path, capsys, one_device
):
    toy_config.data.eval.update(
        source="coco",
        annotations=str(synthetic_dataset / "instances.json"),
        images=str(synthetic_dataset / "images"),
    )
    toy_config.evaluator = "pycocotools"
    source = datasets.open_evaluation(toy_config, tmp_path)
    checkpoint.write_imported(tmp_path, {"params": {}}, toy_config, source.categories)
    main(["retinanet-jax", "evaluate", f"--workdir={tmp_path}", "--tta=flip", "--tta_merge=nms"])
    output = capsys.readouterr().out
    assert "test-time augmentation: the views plain, flip, merged by nms" in output
    (file,) = (tmp_path / "eval").glob("*/0.json")
    content = json.loads(file.read_bytes())
    assert content["settings"]["tta.views"] == ["plain", "flip"]
    assert content["settings"]["tta.merge"] == "nms"
    results = json.loads(pathlib.Path(f"{file.parent}/0_detections.json").read_bytes())
    expected = Detector(checkpoint.load(tmp_path)).augmented(["flip"], merge="nms")
    detections = expected(source.image(0))
    assert results[: len(detections)] == detections.to_coco(source.image_ids[0])


def test_flags_that_exclude_augmentation_are_refused(error_line):
    assert "leave one of them out" in error_line("evaluate", "--tta", "--detections=a.json")
    assert "leave --distributed out" in error_line("evaluate", "--tta", "--distributed")
    assert "is only used with --tta; add it" in error_line("evaluate", "--tta_merge=nms")
    assert "the view 'flop' must be one of plain, flip" in error_line("evaluate", "--tta=flop")
