"""The drawn data set: the same from the same seed, true to its boxes, COCO in form."""

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
    return CocoSource(folder / synthetic.ANNOTATIONS, folder / synthetic.PICTURES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """150 pictures."""
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    return synthetic.write_shapes(folder, seed=0, images=150, image_size=160)


def test_same_seed_same_bytes_another_seed_others(tmp_path):
    first, second, other = (
        files(synthetic.write_shapes(tmp_path / name, seed=seed, images=3, image_size=64))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second
    assert len(first) == 5
    assert all(first[name] != other[name] for name in first)


def test_a_picture_does_not_depend_on_how_many_there_are(tmp_path):
    few = files(synthetic.write_shapes(tmp_path / "few", seed=3, images=2, image_size=64))
    more = files(synthetic.write_shapes(tmp_path / "more", seed=3, images=4, image_size=64))
    for name in ("images/000000.jpg", "images/000001.jpg"):
        assert few[name] == more[name]


def test_what_is_written_is_reused_and_nothing_else_is_touched(tmp_path):
    folder = tmp_path / "deep" / "shapes"
    recipe = {"seed": 3, "images": 2, "image_size": 64}
    synthetic.write_shapes(folder, **recipe)
    before = (folder / "instances.json").stat().st_mtime_ns
    assert synthetic.write_shapes(folder, **recipe) == folder
    assert (folder / "instances.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"shapes: holds shapes of \{'seed': 3.*another folder"):
        synthetic.write_shapes(folder, **recipe | {"seed": 4})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine: holds something else"):
        synthetic.write_shapes(tmp_path / "mine", **recipe)
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_shapes(tmp_path / "shapes", seed=0, images=2, image_size=64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"seed": -1}, {"images": 0}, {"image_size": 8}])
def test_a_wrong_recipe_is_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="seed must be at least 0"):
        synthetic.write_shapes(
            tmp_path / "a", **{"seed": 0, "images": 1, "image_size": 64} | changes
        )


def test_it_is_varied(drawn, caplog):
    caplog.set_level(logging.WARNING)
    source = load(drawn)
    assert not caplog.messages  # no box is clipped or left out
    assert [category.id for category in source.categories] == [1, 2, 3, 5, 7, 11]
    annotations = [source.annotations(index) for index in range(len(source))]
    counts = np.array([len(one.boxes) for one in annotations])
    assert set(counts.tolist()) == set(range(synthetic.MAX_OBJECTS + 1))
    assert 1 <= (counts == 0).sum() <= 15
    classes = np.bincount(np.concatenate([one.classes for one in annotations]), minlength=6)
    assert classes.min() > 0.6 * classes.mean()
    boxes = np.concatenate([one.boxes for one in annotations])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 160
    low, high = np.percentile(longest, [5, 95])
    assert low < 0.18
    assert high > 0.5
    assert longest.min() > 0
    assert longest.max() <= 0.67


def test_boxes_are_tight():
    """Each figure's own coverage, in the picture, reaches all four sides of its box."""
    for number in range(40):
        for figure in synthetic.draw_image(1, number, 160)[1]:
            whole = np.zeros((160, 160))
            whole[figure.window] = figure.coverage
            rows, columns = (np.flatnonzero(whole.max(axis=axis)) for axis in (1, 0))
            x1, y1, x2, y2 = figure.box
            assert (int(x1), int(y1)) == (columns[0], rows[0])
            assert (int(np.ceil(x2)), int(np.ceil(y2))) == (columns[-1] + 1, rows[-1] + 1)


def test_no_figure_is_hidden_too_far():
    for number in range(40):
        figures = synthetic.draw_image(2, number, 160)[1]
        owner = np.full((160, 160), -1)
        for index, figure in enumerate(figures):
            owner[figure.window][figure.coverage > 0.5] = index
        for index, figure in enumerate(figures):
            assert (owner == index).sum() >= (1 - synthetic.MAX_HIDDEN) * figure.area


def test_a_figure_by_hand():
    square = np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])
    hole = np.array([[15.0, 15], [25, 15], [25, 25], [15, 25]])
    figure = synthetic.render(4, square, hole, 160)
    assert figure.area == 300
    # Drawn at four times the size: a box is good to a quarter of a pixel.
    np.testing.assert_allclose(figure.box, (10, 10, 30, 30), atol=0.25)
    np.testing.assert_allclose(figure.coverage.sum(), 300, rtol=0.03)
    cut = synthetic.render(4, square - 20, None, 160)
    assert cut.area == 400
    np.testing.assert_allclose(cut.box, (0, 0, 10, 10), atol=0.25)


def test_a_cut_figures_box_is_around_what_is_left():
    """Of a diamond whose centre lies on the corner, a triangle of half its width is left."""
    diamond = np.array([[0.0, -20], [20, 0], [0, 20], [-20, 0]]) + [-10, 0]
    np.testing.assert_allclose(
        synthetic.render(1, diamond, None, 160).box, (0, 0, 10, 10), atol=0.26
    )


def test_pycocotools_takes_it(drawn):
    truth = COCO(str(drawn / synthetic.ANNOTATIONS))
    assert len(truth.getImgIds()) == 150
    assert truth.getCatIds() == [1, 2, 3, 5, 7, 11]
    content = json.loads((drawn / synthetic.ANNOTATIONS).read_text())
    assert load(drawn).ground_truth() == content
