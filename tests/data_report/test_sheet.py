"""The sheet shows the actual input of the network, with the anchors of a few boxes."""

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import core, datasets, input_pipeline, visualize
from retinanet_jax.data.batch import Batch
from retinanet_jax.data_report import sheet
from retinanet_jax.modeling import image_anchors, network_input


def first_batch(config, tmp_path):
    """Return the training data and its first batch."""
    source = datasets.open_training(config, tmp_path)
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
    image = sheet.denormalize(pixels, **config.input)
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
    anchors = np.array([[0.0, 0, 64, 96], [8.0, 16, 60, 80]])
    groups = [sheet.BoxAnchors(np.array([1]), np.array([], int))]
    sheet_image = np.asarray(sheet.draw_example(black, batch, 0, source, anchors, groups))
    scale = sheet.HEIGHT / 64
    image = sheet_image[: sheet.HEIGHT, : round(96 * scale)]
    yellow = (image == visualize.YELLOW).all(axis=-1)
    rows, columns = np.flatnonzero(yellow.any(axis=1)), np.flatnonzero(yellow.any(axis=0))
    assert (rows[0], rows[-1] + 1) == (8 * scale, 60 * scale)
    assert (columns[0], columns[-1] + 1) == (16 * scale, 80 * scale)
    # The box has the color of its class, and the anchor that is not matched is not drawn.
    y1, x1, y2, _ = (batch.boxes[0, 0] * scale).astype(int)
    assert (image[(y1 + y2) // 2, x1] == visualize.class_color(0)).all()
    assert not image[0].any()


def test_each_box_has_the_anchors_that_training_matches_with_it(
    tmp_path, make_dataset, make_config
):
    """A square that anchors fit, and a tiny one with a forced match."""
    dataset = make_dataset(tmp_path / "train")
    image_id = dataset.add_image()
    dataset.add_box(image_id, [0, 0, 72, 72])
    dataset.add_box(image_id, [100, 60, 6, 6], "dog")
    fields = dataset.write()
    config = make_config(fields, fields, flip=False)
    config.matching.low_quality = True
    _, batch = first_batch(config, tmp_path)
    foreground = sheet.foreground_anchors(config, batch)
    boxes = batch.boxes[0][batch.mask[0]]
    square, tiny = sheet.anchors_of_boxes(foreground, 0, boxes)
    anchors = np.concatenate(image_anchors(batch.images.shape[1:3], config))
    ious = np.asarray(core.pairwise_iou(anchors, boxes))
    assert set(square.matched) == set(np.flatnonzero(ious[:, 0] >= 0.5))
    assert (np.diff(ious[square.matched, 0]) <= 0).all()
    assert len(tiny.matched) == 0
    assert set(tiny.forced) == set(np.flatnonzero(ious[:, 1] == ious[:, 1].max()))
    config.matching.low_quality = False
    assert not sheet.foreground_anchors(config, batch).forced.any()


def test_boxes_without_a_match_and_of_different_categories_are_chosen():
    none, some = np.array([], int), np.array([4])
    matched, forced = sheet.BoxAnchors(some, none), sheet.BoxAnchors(none, some)
    groups = [matched, matched, matched, forced, matched]
    assert sheet.choose_boxes(groups, np.array([0, 0, 0, 0, 1])) == [3, 0, 4]
    assert sheet.choose_boxes(groups[:1], np.array([0])) == [0]
    assert sheet.choose_boxes([], np.array([], int)) == []


def test_images_with_boxes_come_first(tmp_path, make_dataset, make_config):
    dataset = make_dataset(tmp_path / "train")
    for index in range(4):
        image_id = dataset.add_image()
        if index % 2:
            dataset.add_box(image_id, [0, 0, 72, 72])
    fields = dataset.write()
    config = make_config(fields, fields)
    source = datasets.open_training(config, tmp_path)
    plan = input_pipeline.train_plan(config, source)
    ((examples, _),) = sheet.first_examples(config, source, plan)
    assert set(examples.index.tolist()) == {1, 3}


def test_any_image_fits_in_the_sheet():
    """Whatever its aspect ratio, and however long the name of its file."""
    batch = Batch.of_images(
        np.zeros((1, 64, 2048, 3), np.uint8),
        np.float32([[64, 2048]]),
        np.ones((1, 2), np.float32),
        num_boxes=1,
        num_crowd=1,
    )

    class Named:
        categories = ()

        def file_name(self, _):
            return "x" * 250

    image = sheet.draw_example(batch.images[0], batch, 0, Named(), np.zeros((0, 4)), [])
    assert image.width <= sheet.WIDTH
    assert image.height < sheet.HEIGHT


def test_the_legend_has_the_colors_of_the_lines(config):
    legend = np.asarray(sheet.line_legend(config, 400)).reshape(-1, 3)
    for color in (sheet.MATCHED, sheet.FORCED, sheet.CROWD, visualize.class_color(0)):
        assert (legend == color).all(axis=1).any()


def test_rows_are_filled_up_to_the_width():
    images = [Image.new("RGB", (width, 40), "red") for width in (900, 600, 700, 2000)]
    rows = np.asarray(sheet.arrange_in_rows(images))
    red = (rows == (255, 0, 0)).all(axis=-1)
    step = 40 + sheet.GAP
    assert rows.shape[0] == 3 * step
    assert [int(red[row * step].sum()) for row in range(3)] == [1500, 700, 2000]


def test_a_caption_is_never_cut():
    short, long = (
        sheet.add_caption(Image.new("RGB", (50, 40)), [text, "b"]) for text in ("a", "a" * 40)
    )
    assert short.width == 50
    assert long.width > 200
    assert short.height == long.height == 40 + 2 * visualize.LINE
