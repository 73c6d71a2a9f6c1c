"""Anchors that a run chooses for its training data."""

import numpy as np
from test_proposals import Boxes, make_config

from retinanet_jax.data_report.automatic_anchors import choose_anchors


def boxes_of_sides(low, high, ratios=(1.0,)):
    """20 images of 480 x 640 with 6 boxes each, of heights of `low` to `high` pixels."""
    rng = np.random.default_rng(0)
    boxes = []
    for index in range(20):
        for height in np.exp(rng.uniform(*np.log([low, high]), 6)):
            width = height / ratios[index % len(ratios)]
            y, x = rng.uniform(0, (480 - height, 640 - width))
            boxes.append((index, 0, (y, x, y + height, x + width)))
    return Boxes([(480, 640)] * 20, boxes)


def test_anchors_that_cover_the_boxes_stay():
    config = make_config()
    anchors = choose_anchors(config, boxes_of_sides(40, 300), same_number=True)
    assert anchors.chosen is None
    assert anchors.description(0.5).startswith("those of the config: ")
    assert config.to_dict() == make_config().to_dict()


def test_small_objects_get_small_anchors_of_the_same_number():
    """Objects of 8 to 100 pixels: anchors from 32 pixels on leave out many; no batch is needed."""
    config = make_config()
    config.data.batch_size = 0
    anchors = choose_anchors(config, boxes_of_sides(8, 100), same_number=True)
    assert anchors.configured.uncovered > 0.3
    assert anchors.chosen.uncovered < anchors.configured.uncovered / 3
    config.update_from_flattened_dict(anchors.chosen.fields)
    assert len(config.anchors.scales) == len(config.anchors.ratios) == 3
    assert anchors.description(0.5).startswith(f"{anchors.chosen.name} chosen for the data, with ")


def test_more_anchors_are_chosen_only_where_their_number_is_free():
    """A single anchor a level covers either high or wide boxes."""
    config = make_config(scales=(1.0,), ratios=(1.0,))
    source = boxes_of_sides(60, 64, ratios=(0.4, 2.5))
    choices = [choose_anchors(config, source, same_number=same).chosen for same in (True, False)]
    per_cell = [
        len(choice.fields["anchors.scales"]) * len(choice.fields["anchors.ratios"])
        for choice in choices
    ]
    assert per_cell == [1, 2]


def test_an_epoch_without_a_box_leaves_the_anchors():
    anchors = choose_anchors(make_config(), Boxes([(480, 640)] * 4), same_number=True)
    assert anchors.chosen is None
    assert "an epoch has no box" in anchors.description(0.5)
