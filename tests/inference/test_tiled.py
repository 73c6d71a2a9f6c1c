"""A detector in tiles: the same as without them in a small image, and each object once in any."""

import re

import numpy as np
import pytest
from PIL import Image
from planted import assert_each_once, plant
from scipy import ndimage

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.sources.base import Category
from retinanet_jax.detector import Detector
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference import tiled
from retinanet_jax.inference.tiled import TiledDetector

CATEGORIES = (Category(3, "red"), Category(7, "green"))
RED, GREEN = (255, 0, 0), (0, 200, 0)


class RectangleDetector:
    """Detects rectangles on black exactly; the class is the strongest color, the score its level.

    Those that are dark, as small ones in a reduced image, are not detected; neither are images of
    more than `max_side` pixels.
    """

    class_names = ("red", "green")

    def __init__(self, checkpoint: Checkpoint, max_side: int = 10_000):
        self.checkpoint, self.max_side = checkpoint, max_side
        self.shapes: list[tuple[int, ...]] = []

    def batch_with_errors(self, images, batch_size=8):
        return map(self.detect, images)

    def detect(self, image):
        pixels = read_image(image)
        self.shapes.append(pixels.shape[:2])
        if max(pixels.shape) > self.max_side:
            return ValueError(f"the image: {max(pixels.shape)} pixels are too many.")
        labels, _ = ndimage.label(pixels.max(axis=2) > 190)
        slices = ndimage.find_objects(labels)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in slices]
        colors = np.array([pixels[window].max(axis=(0, 1)) for window in slices])
        colors = colors.reshape(-1, 3)
        order = np.argsort(-colors.max(axis=1), stable=True)
        return Detections(
            pixels,
            np.array(boxes, np.float32).reshape(-1, 4)[order],
            (colors.max(axis=1) / 255).astype(np.float32)[order],
            colors.argmax(axis=1)[order],
            CATEGORIES,
        )


@pytest.fixture
def trained(toy_config, tmp_path) -> Checkpoint:
    return Checkpoint({}, toy_config, CATEGORIES, 0, tmp_path / "run")


@pytest.fixture
def rectangles(trained) -> RectangleDetector:
    return RectangleDetector(trained)


def painted(height: int, width: int, boxes, color=RED) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in np.asarray(boxes, int).tolist():
        image[y0:y1, x0:x1] = color
    return image


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.5), (211, 0.2)])
def test_small_objects_in_a_large_image_are_each_detected_once(rectangles, tile, overlap):
    objects = plant(np.random.default_rng(0), 500, 700, largest=30, pitch=52)
    image = painted(500, 700, objects)
    detections = TiledDetector(rectangles, tile=tile, overlap=overlap)(image)
    np.testing.assert_array_equal(detections.image, image)
    assert rectangles.shapes.count((tile, tile)) == len(rectangles.shapes) - 1  # and the whole
    assert_each_once(detections.boxes, objects)


def test_nms_also_returns_what_a_border_leaves_of_an_object(rectangles):
    """The windows are x = 0..100, 75..175 and 150..250."""
    image = painted(100, 250, [[80, 10, 95, 20], [90, 40, 140, 60]])
    by_nms = TiledDetector(rectangles, tile=100, overlap=0.2, merge="nms")(image)
    parts = [[80, 10, 95, 20], [90, 40, 100, 60], [90, 40, 140, 60]]
    assert sorted(by_nms.boxes.tolist()) == parts
    by_owner = TiledDetector(rectangles, tile=100, overlap=0.2)(image)
    assert sorted(by_owner.boxes.tolist()) == [parts[0], parts[2]]


def test_objects_that_are_larger_than_windows_are_exact_too(rectangles):
    """Windows join their parts, which is more exact than the detection in the whole image."""
    objects = [[10, 10, 690, 60], [30, 100, 250, 480], [300, 101, 333, 140], [400, 90, 610, 95]]
    image = painted(500, 700, objects)
    tiles = TiledDetector(rectangles, tile=64, overlap=0.2)
    assert_each_once(tiles(image).boxes, np.array(objects))


def test_what_only_the_whole_image_shows_is_added_if_no_window_holds_it(trained):
    """The windows detect nothing; the whole image is reduced 10 times."""
    objects = np.array([[100, 100, 500, 400], [520, 20, 540, 40]])

    class OnlyWhole(RectangleDetector):
        def detect(self, image):
            return super().detect(image if image.shape == (50, 64, 3) else np.zeros_like(image))

    image = painted(500, 640, objects)
    detections = TiledDetector(OnlyWhole(trained), tile=128)(image)
    np.testing.assert_array_equal(detections.boxes, [[100, 100, 500, 400]])
    by_windows = TiledDetector(OnlyWhole(trained), tile=128, whole_image=False)(image)
    assert len(by_windows) == 0


def test_detections_are_sorted_and_of_their_classes(rectangles):
    image = painted(100, 300, [[10, 10, 20, 20]], GREEN)
    image[50:60, 200:210] = RED
    detections = TiledDetector(rectangles, tile=100)(image)
    assert detections.class_names == ("red", "green")
    np.testing.assert_allclose(detections.scores, [1, 200 / 255])
    assert detections.boxes.tolist() == [[200, 50, 210, 60], [10, 10, 20, 20]]
    assert detections.categories == CATEGORIES


def test_images_of_any_sizes_and_errors_come_in_order(rectangles, tmp_path):
    missing, broken = str(tmp_path / "missing.png"), tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    images = [
        missing,
        painted(60, 60, [[1, 2, 3, 4]]),
        painted(60, 200, [[1, 2, 3, 5]]),
        broken,
        painted(200, 60, [[1, 2, 3, 6]]),
        missing,
    ]
    tiles = TiledDetector(rectangles, tile=64)
    outcomes = list(tiles.batch_with_errors(iter(images), batch_size=2))
    for index, name in ((0, missing), (3, str(broken)), (5, missing)):
        assert isinstance(outcomes[index], ValueError)
        assert str(outcomes[index]).startswith(f"{name}: ")
    boxes = [outcomes[index].boxes.tolist() for index in (1, 2, 4)]
    assert boxes == [[[1, 2, 3, 4]], [[1, 2, 3, 5]], [[1, 2, 3, 6]]]
    with pytest.raises(ValueError, match=re.escape(f"{missing}: ")):
        tiles(missing)


def test_the_error_of_a_window_names_the_image(trained, tmp_path):
    Image.fromarray(painted(60, 200, [])).save(tmp_path / "a.png")
    tiles = TiledDetector(RectangleDetector(trained, max_side=50), tile=64)
    with pytest.raises(ValueError, match=r"^\S+/a\.png: 64 pixels are too many\.$"):
        tiles(tmp_path / "a.png")


def test_arguments_are_checked(rectangles):
    with pytest.raises(ValueError, match=r"^tile=8 must be an integer of at least 32"):
        TiledDetector(rectangles, tile=8)
    with pytest.raises(ValueError, match=r"^merge='wbf' must be one of owner, nms\.$"):
        TiledDetector(rectangles, merge="wbf")
    tiles = TiledDetector(rectangles)
    with pytest.raises(ValueError, match="expects a list of images"):
        tiles.batch_with_errors(painted(9, 9, []))
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        tiles.batch_with_errors([], batch_size=0)
    assert (tiles.checkpoint, tiles.class_names) == (rectangles.checkpoint, ("red", "green"))


def test_progress_counts_the_windows_of_each_image(rectangles):
    lines = []

    def report(name, count):
        return lambda done: lines.append((name, done, count))

    list(TiledDetector(rectangles, tile=64, report=report).batch([painted(64, 100, [])]))
    assert lines == [("the image", done, 3) for done in (1, 2, 3)]


def test_drawings_of_large_images_are_reduced(rectangles, monkeypatch):
    """The image and the boxes by the same factor."""
    monkeypatch.setattr(tiled, "DRAWING_SIDE", 100)
    image = painted(100, 250, [[30, 30, 90, 60]])
    detections = TiledDetector(rectangles, tile=64)(image)
    expected = Detections(
        np.asarray(Image.fromarray(image).reduce(3)),
        np.array([[10, 10, 30, 20]], np.float32),
        detections.scores,
        detections.classes,
        CATEGORIES,
    )
    drawing = detections.draw()
    assert drawing.size == (84, 34)
    np.testing.assert_array_equal(drawing, expected.draw())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--merge=nms"], "--merge=nms has no effect without --tile."),
        (["--nowhole_image"], "--whole_image=False has no effect without --tile."),
        (["--tile=100", "--merge=all"], "--merge='all' must be one of owner, nms."),
        (["--tile=9"], "tile=9 must be an integer of at least 32, the side"),
        (["--tile=100", "--overlap=1"], "overlap=1 must be above 0 and at most 0.9, a fraction"),
    ],
)
def test_predict_checks_the_flags_before_anything_is_loaded(flags, message, error_line, tmp_path):
    arguments = [f"--weights={tmp_path / 'none'}", f"--output={tmp_path / 'out'}", "a.png"]
    assert message in error_line("predict", *flags, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("tile", "overlap"), [(512, 0.1), (1024, 0.2), (1500, 0.05), (4096, 0.3)])
def test_objects_in_108_megapixels_are_each_detected_once(trained, config, tile, overlap):
    trained.config.data = config.data
    objects = plant(np.random.default_rng(0), 9000, 12000, largest=200, pitch=300)
    image = painted(9000, 12000, objects)
    detections = TiledDetector(RectangleDetector(trained), tile=tile, overlap=overlap)(image)
    assert_each_once(detections.boxes, objects, tolerance=1)


@pytest.mark.slow
def test_an_image_that_fits_in_one_window_has_the_detections_of_the_plain_detector(
    tiny_run, one_device
):
    """Bit for bit, by a trained network, also next to images of several windows."""
    detector = Detector.load(tiny_run.workdir)
    file = sorted(tiny_run.workdir.glob("data/*/images/*"))[0]
    large = np.tile(read_image(file), (2, 3, 1))
    plain = detector(file)
    by_windows = detector.tiled(file, max(plain.image.shape))
    tiles = TiledDetector(detector, tile=max(plain.image.shape), overlap=0.5)
    of_large, among_others = tiles.batch([large, file], batch_size=1)
    assert len(plain) > 0
    assert len(of_large) > len(plain)
    for detections in (by_windows, among_others):
        for name in ("boxes", "scores", "classes", "image"):
            np.testing.assert_array_equal(getattr(detections, name), getattr(plain, name))
