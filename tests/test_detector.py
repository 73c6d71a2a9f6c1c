"""The Python API: however a picture comes, alone or among others, what is found is the same."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retinanet_jax import checkpoint, core, input_pipeline
from retinanet_jax import detector as detector_module
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.transforms import PIXEL_TYPES
from retinanet_jax.detector import Detection, Detector
from retinanet_jax.utils.threads import WORKERS, ahead, grouped, in_order

CATEGORIES = (Category(3, "dog"), Category(7, "cat"), Category(9, "catfish"))


@pytest.fixture
def traced(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that were compiled, of a network that finds two things in every picture.

    A cat that fills it, as probable as its first pixel is red, and at .2 a dog in its corner.
    """
    traced = []

    def detect(variables, batch, model, config):
        traced.append(batch.images.shape)
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
        kept = detections.scores > config.detections.score_threshold
        detections = detections._replace(mask=detections.mask & kept)
        return core.Detections(*(x[:, : config.detections.max_detections] for x in detections))

    monkeypatch.setattr(detector_module, "detect", detect)
    return traced


@pytest.fixture
def trained(toy_config, tmp_path) -> checkpoint.Checkpoint:
    toy_config.data.update(buckets=((32, 64), (64, 32)), eval_short_side=32, long_side=64)
    return checkpoint.Checkpoint({}, toy_config, CATEGORIES, 0, tmp_path / "run")


@pytest.fixture
def detector(traced, trained) -> Detector:
    return Detector(trained)


def red(level: int, *, upright: bool = False) -> np.ndarray:
    """A picture of one red, 20 x 30 pixels or 30 x 20."""
    pixels = np.zeros((30, 20, 3) if upright else (20, 30, 3), np.uint8)
    pixels[..., 0] = level
    return pixels


def test_a_result_has_names_scores_and_boxes_in_the_pictures_own_pixels(detector):
    image = red(204)
    result = detector(image)
    assert len(result) == 2
    np.testing.assert_array_equal(result.image, image)
    np.testing.assert_array_equal(result.boxes, np.float32([[0, 0, 30, 20], [0, 0, 2, 2]]))
    np.testing.assert_allclose(result.scores, [0.8, 0.2], rtol=1e-6)
    assert result.names == ("cat", "dog")
    assert result.category_ids.tolist() == [7, 3]
    cat, dog = result
    assert isinstance(cat, Detection)
    assert (cat.box.tolist(), cat.name, cat.category_id) == ([0, 0, 30, 20], "cat", 7)
    assert dog.score == pytest.approx(0.2)
    assert result.to_coco(5)[0] == {
        "image_id": 5,
        "category_id": 7,
        "bbox": [0, 0, 30, 20],
        "score": pytest.approx(0.8),
    }
    assert repr(result) == "<2 detections on 30 x 20 pixels: cat 0.80, dog 0.20>"
    assert (result[1].name, result[-1].name) == ("dog", "dog")
    assert detector.names == ("dog", "cat", "catfish")
    assert repr(detector) == f"<Detector of 3 categories, {detector.trained.folder}>"


def test_one_picture_is_no_batch(detector):
    with pytest.raises(ValueError, match="one picture is no batch; give a list"):
        detector.batch("a.jpg")


def test_a_result_draws_what_scores_enough(detector):
    result = detector(red(204))
    drawn = {t: np.asarray(result.draw(threshold=t)) for t in (0.1, 0.5, 0.9)}
    np.testing.assert_array_equal(drawn[0.9], result.image)
    assert not np.array_equal(drawn[0.5], drawn[0.9])
    assert not np.array_equal(drawn[0.1], drawn[0.5])
    np.testing.assert_array_equal(np.asarray(result.draw()), drawn[0.5])
    assert result._repr_png_().startswith(b"\x89PNG")


def test_a_picture_is_the_same_however_it_comes(detector, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn clockwise makes it upright
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "a.png", exif=turned)
    with Image.open(tmp_path / "a.png") as opened:
        ways = [pixels, tmp_path / "a.png", str(tmp_path / "a.png"), opened, opened]
        for result in detector.batch(ways, batch_size=2):
            np.testing.assert_array_equal(result.image, pixels)
    grey = detector(pixels[..., 0])
    np.testing.assert_array_equal(grey.image, np.repeat(pixels[..., :1], 3, axis=2))


def test_a_batch_keeps_the_order_and_compiles_each_shape_once(detector, traced):
    levels = list(range(60, 82))
    pictures = [red(level, upright=level % 3 == 0) for level in levels]
    results = list(detector.batch(pictures, batch_size=4))
    assert [result.scores[0] for result in results] == pytest.approx(np.array(levels) / 255)
    for picture, result in zip(pictures, results, strict=True):
        assert result.image is picture
        assert result.boxes[0].tolist() == [0, 0, picture.shape[1], picture.shape[0]]
    # 14 lie and 8 stand: short batches were completed.
    assert sorted(traced) == [(4, 32, 64, 3), (4, 64, 32, 3)]
    assert list(detector.batch([], batch_size=4)) == []


def test_a_batch_is_read_as_it_is_asked_for(detector):
    """Also where the only picture of its shape is the first: it waits for no second one."""
    taken = []

    def many():
        for number in range(500):
            taken.append(number)
            yield red(100 + number % 100, upright=number == 0)

    size = 2
    results = detector.batch(many(), batch_size=size)
    assert not taken
    for number in range(60):
        assert next(results).scores[0] == pytest.approx((100 + number % 100) / 255)
        assert len(taken) - number <= (detector_module.PATIENCE + 3) * size + WORKERS


def test_limits_replace_those_of_the_config(trained, traced):
    assert Detector(trained, score_threshold=0.5)(red(204)).names == ("cat",)
    assert Detector(trained, max_detections=1)(red(204)).names == ("cat",)
    assert Detector(trained, score_threshold=0.9)(red(204)).names == ()
    # The checkpoint's own config stays as it is.
    assert Detector(trained)(red(204)).names == ("cat", "dog")


def test_categories_choose_among_what_was_found(trained, traced):
    assert Detector(trained, categories=["dog", "catfish"])(red(204)).names == ("dog",)
    assert Detector(trained, categories="cat")(red(204)).category_ids.tolist() == [7]
    assert Detector(trained, categories=[])(red(204)).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"categories": ["dog", "cta"]}, "'cta' is none of the 3 categories .* cat"),
        ({"categories": ["zebra"]}, "there is, for example, dog, cat, catfish"),
        ({"score_threshold": 1.0}, "score_threshold=1.0 must be from 0 to 1"),
        ({"score_threshold": -0.1}, "score_threshold=-0.1"),
        ({"max_detections": 0}, "max_detections=0 must be at least 1"),
    ],
)
def test_what_cannot_be_asked_for_is_told(trained, given, line):
    with pytest.raises(ValueError, match=line) as told:
        Detector(trained, **given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ("nowhere.jpg", "nowhere.jpg: cannot be read .No such file"),
        (np.zeros((4, 4, 3), np.float32), "float32 .4, 4, 3. is no picture; give uint8"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 .4, 4, 4. is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "is no picture"),
        (np.zeros((4, 400, 3), np.uint8), "the picture: .*which no bucket"),
    ],
)
def test_a_picture_that_cannot_be_used_is_told(detector, trained, image, line):
    trained.config.data.long_side = 1000
    with pytest.raises(ValueError, match=line) as told:
        Detector(trained)(image)
    assert "\n" not in str(told.value)


def test_an_unreadable_picture_is_named_in_its_place(detector, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    Image.fromarray(red(9)).save(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:60])
    with Image.open(tmp_path / "short.png") as opened:
        pictures = [red(153), tmp_path / "bad.jpg", red(102), opened]
        first, bad, second, short = detector.outcomes(pictures, batch_size=2)
    assert [one.scores[0] for one in (first, second)] == pytest.approx([0.6, 0.4])
    for error, name in ((bad, "bad.jpg"), (short, "short.png")):
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"{tmp_path / name}: ")
    results = detector.batch(pictures, batch_size=1)
    assert next(results).scores[0] == pytest.approx(0.6)
    with pytest.raises(ValueError, match=r"bad\.jpg: the picture is corrupt"):
        next(results)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        detector.batch([], batch_size=0)


@given(st.lists(st.integers(0, 3)), st.integers(1, 5), st.integers(0, 8))
def test_groups_are_of_one_kind_and_wait_no_longer_than_they_may(kinds, size, patience):
    begun = []

    def items():
        for number, kind in enumerate(kinds):
            begun.append(number)
            yield kind

    seen = []
    for group in grouped(items(), lambda kind: kind, size=size, patience=patience):
        numbers = [number for number, _ in group]
        assert numbers == sorted(numbers)
        assert {kind for _, kind in group} == {kinds[number] for number in numbers}
        assert len({kinds[number] for number in numbers}) == 1
        full, last = len(group) == size, begun[-1] == len(kinds) - 1
        assert full or last or begun[-1] - numbers[0] >= patience
        seen.append(group)
    assert sorted(number for group in seen for number, _ in group) == list(range(len(kinds)))
    assert list(in_order(seen)) == kinds


def test_ahead_keeps_the_order_and_an_error_its_place():
    assert list(ahead(lambda x: 10 / x, range(1, 50), count=3)) == [10 / x for x in range(1, 50)]
    values = ahead(lambda x: 10 / x, (1, 0, 2), count=3)
    assert next(values) == 10
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_the_package_is_imported_at_once():
    code = (
        "import sys, retinanet_jax\n"
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'imports too much'\n"
        "try:\n    retinanet_jax.detector_\n"
        "except AttributeError as error:\n    assert 'detector_' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    from retinanet_jax import Detector as reached

    assert reached is Detector


@pytest.mark.parametrize("shapes", ["buckets", "own"])
@pytest.mark.parametrize("kind", PIXEL_TYPES)
def test_the_network_reads_what_it_reads_in_evaluation(config, drawn, tmp_path, kind, shapes):
    config.data.eval.update(annotations=f"{drawn}/instances.json", images=f"{drawn}/images")
    config.data.update(resize=kind, eval_shapes=shapes, eval_short_side=90, loader="numpy")
    config.data.buckets = ((96, 128), (128, 128))
    source = input_pipeline.open_evaluation(config, tmp_path)
    plan = input_pipeline.eval_plan(config, source.sizes, batch_size=1)
    for batch in input_pipeline.host_batches(config, source, plan, range(3)):
        image = source.image(int(batch.index[0]))
        alone = input_pipeline.eval_plan(config, np.array([image.shape[:2]]), batch_size=1).batch(0)
        read = detector_module.one_image_batch(image, alone)
        assert read.images.shape == (1, 96, 96 if shapes == "own" else 128, 3)
        assert read.images.dtype == batch.images.dtype == PIXEL_TYPES[kind]
        for field in ("images", "sizes", "scales", "colors"):
            np.testing.assert_array_equal(getattr(read, field), getattr(batch, field))


@pytest.mark.slow
def test_neighbours_and_fillers_change_no_detection(tiny_run):
    """Six pictures alone, and in batches of four, the last of which two fillers complete."""
    detector = Detector.load(tiny_run.workdir)
    pictures = sorted((tiny_run.workdir / "data/shapes-2/images").iterdir())[:6]
    together = list(detector.batch(pictures, batch_size=4))
    found = 0
    for picture, result in zip(pictures, together, strict=True):
        alone = detector(picture)
        assert result.names == alone.names
        np.testing.assert_allclose(result.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-6)
        found += len(alone)
    assert found > 50
