"""The synthetic dataset is reproducible, varied and in COCO's format, and its boxes are tight."""

import json
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO

from retinanet_jax.data.sources import synthetic
from retinanet_jax.data.sources.coco import CocoSource


def files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def load(folder) -> CocoSource:
    return CocoSource(folder / synthetic.ANNOTATIONS, folder / synthetic.IMAGES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Return the folder of a dataset of 150 images."""
    folder = tmp_path_factory.mktemp("synthetic") / "shapes"
    return synthetic.write_shapes(folder, seed=0, num_images=150, image_size=160)


def test_equal_seeds_give_equal_files_and_other_seeds_give_others(tmp_path):
    first, second, other = (
        files(synthetic.write_shapes(tmp_path / name, seed=seed, num_images=3, image_size=64))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second
    assert len(first) == 5
    assert all(first[name] != other[name] for name in first)


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    few = files(synthetic.write_shapes(tmp_path / "few", seed=3, num_images=2, image_size=64))
    more = files(synthetic.write_shapes(tmp_path / "more", seed=3, num_images=4, image_size=64))
    for name in ("images/000000.jpg", "images/000001.jpg"):
        assert few[name] == more[name]


def test_a_written_dataset_is_reused_and_other_folders_are_not_changed(tmp_path):
    folder = tmp_path / "deep" / "shapes"
    settings = {"seed": 3, "num_images": 2, "image_size": 64}
    synthetic.write_shapes(folder, **settings)
    before = (folder / "instances.json").stat().st_mtime_ns
    assert synthetic.write_shapes(folder, **settings) == folder
    assert (folder / "instances.json").stat().st_mtime_ns == before
    with pytest.raises(
        ValueError, match=r"shapes: contains shapes with \{'seed': 3.*another folder"
    ):
        synthetic.write_shapes(folder, **settings | {"seed": 4})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine: contains something else"):
        synthetic.write_shapes(tmp_path / "mine", **settings)
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"


def test_a_dataset_that_version_0_1_wrote_is_recognized(tmp_path):
    settings = {"seed": 3, "images": 2, "image_size": 64, "version": 1}
    (tmp_path / "recipe.json").write_text(json.dumps(settings))
    synthetic.write_shapes(tmp_path, seed=3, num_images=2, image_size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_an_interruption_leaves_no_files(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "generate_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_shapes(tmp_path / "shapes", seed=0, num_images=2, image_size=64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"seed": -1}, {"num_images": 0}, {"image_size": 8}])
def test_numbers_that_are_too_small_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="seed must be at least 0"):
        synthetic.write_shapes(
            tmp_path / "a", **{"seed": 0, "num_images": 1, "image_size": 64} | changes
        )


def test_the_dataset_is_varied(dataset, caplog):
    caplog.set_level(logging.WARNING)
    source = load(dataset)
    assert not caplog.messages  # no box is clipped or left out
    assert [category.id for category in source.categories] == [1, 2, 3, 5, 7, 11]
    annotations = [source.annotations(index) for index in range(len(source))]
    counts = np.array([len(objects.boxes) for objects in annotations])
    assert set(counts.tolist()) == set(range(synthetic.MAX_OBJECTS + 1))
    assert 1 <= (counts == 0).sum() <= 15
    classes = np.bincount(np.concatenate([objects.classes for objects in annotations]), minlength=6)
    assert classes.min() > 0.6 * classes.mean()
    boxes = np.concatenate([objects.boxes for objects in annotations])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 160
    low, high = np.percentile(longest, [5, 95])
    assert low < 0.18
    assert high > 0.5
    assert longest.min() > 0
    assert longest.max() <= 0.67


def test_boxes_are_tight():
    """The coverage of each figure in the image reaches all four sides of its box."""
    for index in range(40):
        for figure in synthetic.generate_image(1, index, 160)[1]:
            whole = np.zeros((160, 160))
            whole[figure.window] = figure.coverage
            rows, columns = (np.flatnonzero(whole.max(axis=axis)) for axis in (1, 0))
            x1, y1, x2, y2 = figure.box
            assert (int(x1), int(y1)) == (columns[0], rows[0])
            assert (int(np.ceil(x2)), int(np.ceil(y2))) == (columns[-1] + 1, rows[-1] + 1)


def test_no_figure_is_hidden_more_than_allowed():
    for image_index in range(40):
        figures = synthetic.generate_image(2, image_index, 160)[1]
        front = np.full((160, 160), -1)
        for index, figure in enumerate(figures):
            front[figure.window][figure.coverage > 0.5] = index
        for index, figure in enumerate(figures):
            assert (front == index).sum() >= (1 - synthetic.MAX_HIDDEN) * figure.area


def test_a_square_with_a_hole():
    square = np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])
    hole = np.array([[15.0, 15], [25, 15], [25, 25], [15, 25]])
    figure = synthetic.render(4, square, hole, 160)
    assert figure.area == 300
    # Rendered at four times the size, so a box is exact to a quarter of a pixel.
    np.testing.assert_allclose(figure.box, (10, 10, 30, 30), atol=0.25)
    np.testing.assert_allclose(figure.coverage.sum(), 300, rtol=0.03)
    cut = synthetic.render(4, square - 20, None, 160)
    assert cut.area == 400
    np.testing.assert_allclose(cut.box, (0, 0, 10, 10), atol=0.25)


def test_the_box_of_a_cut_figure_contains_only_the_visible_part():
    """Of a diamond with the center (-10, 0), a triangle of 10 x 10 pixels is visible."""
    diamond = np.array([[0.0, -20], [20, 0], [0, 20], [-20, 0]]) + np.array([-10, 0])
    np.testing.assert_allclose(
        synthetic.render(1, diamond, None, 160).box, (0, 0, 10, 10), atol=0.26
    )


def test_pycocotools_loads_the_dataset(dataset):
    truth = COCO(str(dataset / synthetic.ANNOTATIONS))
    assert len(truth.getImgIds()) == 150
    assert truth.getCatIds() == [1, 2, 3, 5, 7, 11]
    content = json.loads((dataset / synthetic.ANNOTATIONS).read_text())
    del content["info"]
    assert load(dataset).ground_truth() == content
