"""Whether the configured buckets hold the images of a dataset."""

from retinanet_jax import input_pipeline
from retinanet_jax.data_report.bucket_fit import check_evaluation_buckets
from retinanet_jax.data_report.findings import Finding


def test_missing_evaluation_buckets_are_an_error(tmp_path, make_dataset, make_config):
    dataset = make_dataset(tmp_path / "eval")
    dataset.add_image(128, 96)
    fields = dataset.write()
    config = make_config(fields, fields, buckets=((64, 96),))
    source = input_pipeline.open_evaluation(config, tmp_path)
    finding = check_evaluation_buckets(config, source)
    assert finding.severity == "error"
    assert "is resized to (85, 64), which fits in no bucket" in finding.message
    config.data.buckets = ((96, 64),)
    finding = check_evaluation_buckets(config, source)
    assert finding == Finding("info", "eval: buckets", "11.5% of the computed pixels are padding")
