"""Proposals are measured as the configured anchors are, run as they stand, and help."""

import shlex

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from retinanet_jax import input_pipeline
from retinanet_jax.configs import r50_fpn
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.data_report import findings
from retinanet_jax.data_report.anchor_choice import measure
from retinanet_jax.data_report.anchor_fit import check_crops
from retinanet_jax.data_report.annotation_checks import check_categories, read_boxes
from retinanet_jax.data_report.coverage import PlacedBoxes
from retinanet_jax.data_report.proposals import (
    IMAGE_FACTORS,
    box_weights,
    images_fit,
    propose,
    scale_sizes,
    thin_out,
)
from retinanet_jax.data_report.views import epoch_views

CELLS, PLATELETS = 0, 1


class Boxes(Source):
    """A dataset of boxes in images that do not exist.

    Args:
        sizes: The height and width of each image.
        boxes: (index of the image, class, yxyx box) of each object.
    """

    def __init__(self, sizes, boxes=()):
        objects = ObjectList()
        for number, (image_index, class_index, box) in enumerate(boxes):
            objects.append(number, image_index, class_index, box)
        super().__init__(
            "boxes",
            image_ids=list(range(len(sizes))),
            file_names=[f"{index}.png" for index in range(len(sizes))],
            sizes=np.array(sizes, np.int32),
            categories=[Category(1, "cells"), Category(2, "platelets")],
            objects=objects.to_objects(),
        )

    def read(self, index):
        raise AssertionError("no image is read")


def blood_cells(cell_side=100, platelet_sides=(14, 28)):
    """40 images of 480 x 640 with 12 cells each, and a platelet in every second one."""
    rng = np.random.default_rng(0)
    boxes = []
    for image_index in range(40):
        sides = [(CELLS, cell_side * rng.uniform(0.8, 1.2, 2)) for _ in range(12)]
        if image_index % 2:
            sides.append((PLATELETS, np.full(2, rng.uniform(*platelet_sides))))
        for class_index, (height, width) in sides:
            y, x = rng.uniform(0, (480 - height, 640 - width))
            boxes.append((image_index, class_index, (y, x, y + height, x + width)))
    return Boxes([(480, 640)] * 40, boxes)


def make_config(**anchors):
    config = r50_fpn.get_config("tiny").unlock()
    config.data.update(short_sides=(480,), eval_short_side=480, long_side=1000)
    config.data.update(buckets=((480, 640),), batch_size=4, flip=False)
    config.anchors.update(base_scale=4.0, max_level=7)
    config.anchors.update(anchors)
    return config


def measured(config, source):
    """Return the views and the coverage of a config."""
    plan = input_pipeline.train_plan(config, source)
    views = list(epoch_views(source, plan, min_visible=config.data.min_visible))
    return views, measure("", {}, config, views, num_classes=len(source.categories))


def proposals_for(config, source):
    views, configured = measured(config, source)
    return configured, propose(config, source, views, {"train": source}, configured)


@pytest.fixture
def with_flags(monkeypatch):
    """Return a function `(config, flags of a choice) -> config` of a command with these flags."""

    def parse(config, choice):
        argv = ["program", *shlex.split(findings.flags(choice.fields))]
        monkeypatch.setattr("sys.argv", argv)
        values = flags.FlagValues()
        copy = config.copy_and_resolve_references()
        config_flags.DEFINE_config_dict("config", copy, flag_values=values)
        values(argv)
        return values.config

    return parse


def test_each_proposal_covers_a_rare_category_and_its_flags_give_that_coverage(with_flags):
    source, config = blood_cells(), make_config()
    configured, proposals = proposals_for(config, source)
    assert configured.uncovered < 0.05
    assert configured.classes.fractions[PLATELETS] > 0.5
    by_name = {proposal.name.split()[0]: proposal for proposal in proposals}
    assert set(by_name) == {"base_scale", "3", "short"}
    for proposal in proposals:
        _, measured_again = measured(with_flags(config, proposal), source)
        np.testing.assert_array_equal(measured_again.boxes.ious, proposal.boxes.ious)
        assert measured_again.anchors_per_image == proposal.anchors_per_image
        assert proposal.classes.fractions[PLATELETS] < 0.15
        assert proposal.uncovered < 0.02
    # Larger images cost more; other anchors, as many as configured, do not.
    cost = configured.anchors_per_image
    assert by_name["base_scale"].anchors_per_image == by_name["3"].anchors_per_image == cost
    assert by_name["short"].anchors_per_image > 1.5 * cost


def test_well_covered_boxes_have_no_proposal():
    configured, proposals = proposals_for(make_config(), blood_cells(platelet_sides=(40, 60)))
    assert configured.uncovered < 0.01
    assert proposals == ()


def test_levels_are_proposed_where_the_network_may_have_more():
    source = blood_cells(cell_side=350, platelet_sides=(40, 60))
    for max_level, proposed in ((5, True), (7, False)):
        config = make_config(max_level=max_level)
        _, proposals = proposals_for(config, source)
        levels = [choice for choice in proposals if "anchors.max_level" in choice.fields]
        assert bool(levels) == proposed
        for choice in levels:
            assert choice.fields == {"anchors.max_level": 7}
            assert choice.uncovered < 0.01


def test_levels_that_cover_no_more_boxes_are_not_proposed():
    _, proposals = proposals_for(make_config(max_level=5), blood_cells())
    assert proposals
    assert not [choice for choice in proposals if "anchors.max_level" in choice.fields]


def test_smaller_images_are_proposed_where_boxes_exceed_all_anchors():
    """They cost least, and so are the first choice."""
    source = blood_cells(cell_side=350, platelet_sides=(150, 160))
    _, proposals = proposals_for(make_config(max_level=5), source)
    assert proposals[0].fields["data.short_sides"][0] < 480


def test_crops_are_scaled_with_the_images(with_flags):
    config = make_config()
    config.data.update(crop_size=(320, 320), scale_jitter=(0.8, 1.2), buckets=((320, 320),))
    source = blood_cells()
    _, proposals = proposals_for(config, source)
    (larger,) = [choice for choice in proposals if "data.crop_size" in choice.fields]
    factor = larger.fields["data.short_sides"][0] / 480
    assert larger.fields["data.crop_size"] == (320 * factor, 320 * factor)
    _, measured_again = measured(with_flags(config, larger), source)
    np.testing.assert_array_equal(measured_again.boxes.ious, larger.boxes.ious)


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float", "pillow"])
@pytest.mark.parametrize("factor", IMAGE_FACTORS)
def test_multiplied_buckets_contain_the_images_that_the_buckets_contain(resize, factor):
    """With the slack of the factor; without it, an image may exceed its bucket by a pixel."""
    config = make_config()
    rng = np.random.default_rng(0)
    sizes = rng.integers(300, 3000, (4000, 2))
    config.data.update(resize=resize, buckets=((480, 1024), (1024, 480)), rot90=True)
    parts = {"train": Boxes(sizes), "eval": Boxes(sizes)}
    assert images_fit(config, parts)
    config.update_from_flattened_dict(scale_sizes(config, factor, factor))
    assert images_fit(config, parts)


def test_buckets_that_images_exceed_by_a_pixel_are_enlarged(monkeypatch):
    """A width of 640.3 pixels is rounded to 640, but twice that to 1281."""
    monkeypatch.setattr("retinanet_jax.data_report.proposals.IMAGE_FACTORS", (2,))
    large, small = (0.0, 0.0, 200.0, 200.0), (0.0, 0.0, 40.0, 40.0)
    boxes = [(0, CELLS, large), (1, PLATELETS, small)] * 20
    for width, bucket in ((1334, (992, 1312)), (1333, (960, 1280))):
        _, proposals = proposals_for(make_config(), Boxes([(1000, width)] * 2, boxes))
        (larger,) = [choice for choice in proposals if "data.buckets" in choice.fields]
        assert larger.fields["data.buckets"] == (bucket,)


def test_half_of_the_weight_belongs_to_poor_categories():
    classes = np.repeat([0, 1, 2], [60, 20, 5])
    np.testing.assert_allclose(box_weights(classes, np.array([], int)), np.full(85, 1 / 85))
    weights = box_weights(classes, np.array([1]))
    assert weights.sum() == pytest.approx(1)
    assert weights[classes == 1].sum() == pytest.approx((1 + 20 / 85) / 2)
    # Two categories have equal weights, and a category of 5 boxes half of that of 10 or more.
    weights = box_weights(classes, np.array([1, 2]))
    extra = [weights[classes == k].sum() - weights[0] * (classes == k).sum() for k in (1, 2)]
    assert extra[1] == pytest.approx(extra[0] / 2)


def test_a_thinned_sample_has_the_weight_of_all_boxes():
    count = 1000
    sides = np.tile(np.arange(count, dtype=np.float32), (2, 1))
    placed = PlacedBoxes(sides, np.zeros((5, 2, count), np.float32), 3)
    weights = np.where(np.arange(count) < 10, 50.0, 0.5)
    weights /= weights.sum()
    sample, sample_weights = thin_out(placed, weights, 100)
    assert len(sample_weights) <= 100
    assert sample_weights.sum() == pytest.approx(1)
    heavy = sample.sides[0] < 10
    assert heavy.sum() == 10
    assert sample_weights[heavy].sum() == pytest.approx(weights[:10].sum(), abs=0.01)
    everything, same = thin_out(placed, weights, count)
    assert everything is placed
    assert same is weights


@pytest.mark.parametrize(("num_images", "threshold"), [(300, "0.1"), (100_000, "0.001")])
def test_the_more_images_the_lower_is_the_threshold_of_the_repetitions(num_images, threshold):
    source = Boxes([(64, 64)] * num_images, [(7, CELLS, (8.0, 8.0, 40.0, 40.0))])
    finding = check_categories(source, read_boxes(source))
    assert f"--config.data.repeat_threshold={threshold} repeats their" in finding.advice


def test_what_mosaics_leave_out_is_not_due_to_the_crops():
    source = Boxes(
        [(320, 320)] * 8, [(index, CELLS, (0.0, 0.0, 300.0, 300.0)) for index in range(8)]
    )
    config = make_config()
    config.data.update(crop_size=(320, 320), buckets=((320, 320),), mosaic=1.0)
    config.data.update(short_sides=(320,), long_side=320)
    plan = input_pipeline.train_plan(config, source)
    of_crops, of_all = (
        check_crops(list(epoch_views(source, plan, min_visible=0.9, is_composed=is_composed)))
        for is_composed in (False, True)
    )
    assert of_crops.message.startswith("crops leave out 0 of 8 boxes")
    assert of_all.severity == findings.WARNING
