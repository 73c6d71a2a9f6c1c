"""The report names images that are nearly of one brightness to the network."""

import json

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data.decoding import Decoding
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.value_range import parse_value_range
from retinanet_jax.data_report.findings import INFO, WARNING
from retinanet_jax.data_report.image_checks import check_value_range, take_fingerprints


@pytest.fixture
def find(tmp_path):
    """Return a function that returns the findings about images with given values."""

    def find_in(*values: list[int], value_range: str = "type", dtype: type = np.uint16):
        images = []
        for index, row in enumerate(values):
            name = f"{index}.png"
            Image.fromarray(np.array([row], dtype)).save(tmp_path / name)
            images.append({"id": index, "file_name": name, "height": 1, "width": len(row)})
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / "a.json").write_text(json.dumps(content))
        decoding = Decoding(parse_value_range(value_range))
        source = CocoSource(tmp_path / "a.json", tmp_path, decoding=decoding)
        decoded = range(len(source))
        fingerprints = take_fingerprints(source, decoded=decoded, progress=lambda count: None)
        assert not fingerprints.errors
        return check_value_range(source, fingerprints)

    return find_in


@pytest.mark.parametrize(
    ("values", "suggested"),
    [
        ([0, 4095], "0,4095"),
        ([1504, 3232], "0,4095"),
        ([3, 1000], "0,1023"),
        ([0, 16383], "0,16383"),
        ([29_000, 31_000], "29000,31000"),  # hundredths of a kelvin
    ],
)
def test_images_of_fewer_bits_than_their_type_are_named(find, values, suggested):
    (finding,) = find(values, [0, 65535])
    assert finding.severity == WARNING
    assert finding.message.startswith(
        "1 of 2 images of more than 8 bits a channel fill fewer than 7"
    )
    assert f"(first: 0.png: values {values[0]} to {values[1]}, " in finding.message
    assert f"set --config.data.value_range={suggested} so that" in finding.advice
    # With what is suggested there is nothing to report.
    (finding,) = find(values, value_range=suggested)
    assert (finding.severity, finding.advice) == (INFO, "")
    (finding,) = find(values, value_range="image")
    assert finding.severity == INFO


def test_images_of_8_bits_are_no_finding(find):
    assert find([0, 3], [7, 7], dtype=np.uint8) == []
