"""Whether the configured buckets hold the images of a dataset."""

import pytest

from retinanet_jax import datasets, input_pipeline
from retinanet_jax.data_report.bucket_fit import (
    check_buckets,
    check_evaluation_buckets,
    count_limited_jitter,
    fit_buckets,
)
from retinanet_jax.data_report.findings import Finding


def test_missing_evaluation_buckets_are_an_error(tmp_path, make_dataset, make_config):
    dataset = make_dataset(tmp_path / "eval")
    dataset.add_image(128, 96)
    fields = dataset.write()
    config = make_config(fields, fields, buckets=((64, 96),))
    source = datasets.open_evaluation(config, tmp_path)
    finding = check_evaluation_buckets(config, source)
    assert finding.severity == "error"
    assert "is resized to (85, 64), which fits in no bucket" in finding.message
    config.data.buckets = ((96, 64),)
    finding = check_evaluation_buckets(config, source)
    assert finding == Finding("info", "eval: buckets", "11.5% of the computed pixels are padding")


@pytest.fixture
def landscape_and_portrait(tmp_path, make_dataset):
    """The fields of a dataset of four images of 96 x 128 and one of 128 x 96."""
    dataset = make_dataset(tmp_path / "train")
    for _ in range(4):
        dataset.add_image()
    dataset.add_image(128, 96)
    return dataset.write()


def test_all_shapes_of_the_report_are_configured(tmp_path, make_config, landscape_and_portrait):
    """Nothing is padded to 96 x 96, which contains both orientations."""
    config = make_config(landscape_and_portrait, {})
    fit = fit_buckets(config, datasets.open_training(config, tmp_path))
    rows = [row[:2] for row in fit.tables["configured"].rows]
    assert rows == [((64, 96), 4), ((96, 64), 1)]
    assert fit.suggested == ((64, 96), (96, 64))
    assert fit.tables["two shapes"] == fit.tables["configured"]
    finding = check_buckets(fit)
    assert finding == Finding(
        "info", "buckets", "11.5% of the computed pixels are padding, with 2 shapes"
    )


def test_buckets_that_contain_no_square_are_an_error_with_working_advice(
    tmp_path, make_dataset, make_config
):
    dataset = make_dataset(tmp_path / "train")
    dataset.add_image(96, 96)
    dataset.add_image()
    config = make_config(dataset.write(), {}, buckets=((32, 96), (96, 32)))
    fit = fit_buckets(config, datasets.open_training(config, tmp_path))
    assert "image 0 of (96, 96)" in fit.error
    assert fit.suggested == ((64, 64), (64, 96))
    assert fit.plan.buckets.tolist() == [[64, 64], [64, 96]]


def test_buckets_that_limit_the_scale_jitter_are_a_warning(
    tmp_path, make_config, landscape_and_portrait
):
    """96 x 128 is resized to 64 x 85, and to 80 x 107 by a jitter of 1.25."""
    jitter = {"scale_jitter": (0.8, 1.25)}
    config = make_config(landscape_and_portrait, {}, **jitter, buckets=((96, 128), (96, 64)))
    source = datasets.open_training(config, tmp_path)
    fit = fit_buckets(config, source)
    assert count_limited_jitter(fit.plan) == 1
    finding = check_buckets(fit)
    assert finding.severity == "warning"
    assert (
        "add larger buckets, because these limit the scale_jitter of 1 of 5 images"
        in finding.advice
    )
    config.data.buckets = ((96, 128), (128, 96))
    assert count_limited_jitter(input_pipeline.train_plan(config, source)) == 0
    config.data.buckets = ((96, 128), (96, 64))
    config.data.rot90 = True
    assert count_limited_jitter(input_pipeline.train_plan(config, source)) == 5
    config.data.update(rot90=False, scale_jitter=(0.8, 1.0))
    assert count_limited_jitter(input_pipeline.train_plan(config, source)) == 0
