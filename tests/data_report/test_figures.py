"""The figures show the actual input of the network, with the anchors at their positions."""

import io

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import input_pipeline, visualize
from retinanet_jax.data_report import figures
from retinanet_jax.modeling import network_input


def first_batch(config, tmp_path):
    """Return the training data and its first batch."""
    source = input_pipeline.open_training(config, tmp_path)
    plan = input_pipeline.train_plan(config, source)
    (batch,) = input_pipeline.host_batches(config, source, plan, range(1))
    return source, batch


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_denormalizing_restores_the_image(tmp_path, make_dataset, make_config, order):
    dataset = make_dataset(tmp_path / "train")
    dataset.add_image()
    fields = dataset.write()
    config = make_config(fields, fields)
    config.input.update(order=order, mean=(103.9, 116.8, 123.7), std=(58.0, 57.0, 56.0))
    _, batch = first_batch(config, tmp_path)
    pixels = np.asarray(network_input(batch, config, train=True))[0]
    image = figures.denormalize(pixels, **config.input)
    np.testing.assert_array_equal(image[:64, :85], batch.images[0, :64, :85])
    # The padding has the mean color, which is the network's zero.
    mean = (104, 117, 124) if order == "rgb" else (124, 117, 104)
    assert (image[:, 85:] == mean).all()


def test_anchors_have_their_scaled_positions(tmp_path, make_dataset, make_config):
    dataset = make_dataset(tmp_path / "train")
    dataset.add_box(dataset.add_image(), [30, 30, 48, 48])
    fields = dataset.write()
    source, batch = first_batch(make_config(fields, fields, flip=False), tmp_path)
    black = np.zeros((64, 96, 3), np.uint8)
    anchor = np.array([[8.0, 16, 40, 64]])
    image = np.asarray(figures.draw_anchors(black, batch, 0, source, anchor, anchor[:0]))
    scale = figures.HEIGHT / 64
    assert image.shape == (figures.HEIGHT, 96 * scale, 3)
    yellow = (image[..., 0] > 60) & (image[..., 1] > 60) & (image[..., 2] == 0)
    rows, columns = np.flatnonzero(yellow.any(axis=1)), np.flatnonzero(yellow.any(axis=0))
    assert (rows[0], rows[-1] + 1) == (8 * scale, 40 * scale)
    assert (columns[0], columns[-1] + 1) == (16 * scale, 64 * scale)


def test_rows_are_filled_up_to_the_width():
    images = [Image.new("RGB", (width, 40), "red") for width in (900, 600, 700, 2000)]
    sheet = np.asarray(figures.arrange_in_rows(images))
    red = (sheet == (255, 0, 0)).all(axis=-1)
    step = 40 + figures.GAP
    assert sheet.shape[0] == 3 * step
    assert [int(red[row * step].sum()) for row in range(3)] == [1500, 700, 2000]


def test_a_caption_is_never_cut():
    short, long = (
        figures.add_caption(Image.new("RGB", (50, 40)), [text, "b"]) for text in ("a", "a" * 40)
    )
    assert short.width == 50
    assert long.width > 200
    assert short.height == long.height == 40 + 2 * visualize.LINE


@pytest.mark.parametrize("names", [("cat", "dog"), ("mèche", "猫")])
def test_the_bars_of_categories_have_the_colors_of_their_classes(names):
    """Whatever their order; a name without a font is no error."""
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    figure = matplotlib_figure.Figure()
    axis = figure.subplots()
    figures._plot_counts(axis, {names[0]: 9, names[1]: 5})
    figure.savefig(io.BytesIO())
    colors = [tuple(round(255 * v) for v in bar.get_facecolor()[:3]) for bar in axis.patches]
    assert [bar.get_width() for bar in axis.patches] == [5, 9]
    assert colors == [visualize.class_color(1), visualize.class_color(0)]
