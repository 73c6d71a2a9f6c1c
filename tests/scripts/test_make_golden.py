"""Golden files have a source, and their script reproduces them."""

import json
import pathlib
import runpy

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("torchvision_*.json")), ids=lambda p: p.stem)
def test_golden_files_have_a_source(path):
    content = json.loads(path.read_text())
    assert content["source"].startswith("torchvision==0.28.0 with torch==2.13.0, ")
    assert content["weights"].startswith("tests/weights/state_dicts.py: ")
    assert {"input", "values"} < content.keys()
    assert path.name in (ROOT / "scripts" / "make_golden.py").read_text()


@pytest.mark.slow
def test_the_script_reproduces_them_with_torchvision():
    pytest.importorskip("torchvision")
    script = runpy.run_path(str(ROOT / "scripts" / "make_golden.py"))
    features = json.loads((GOLDEN / "torchvision_features.json").read_text())["features"]
    assert list(features) == list(script["ARCHITECTURES"])
    outputs = json.loads((GOLDEN / "torchvision_detectors.json").read_text())["outputs"]
    own = json.loads((GOLDEN / "torchvision_own_detectors.json").read_text())["cases"]
    assert list(own) == list(script["OWN_CASES"])
    for name, detections in script["own_detections"](script["own_case"]("5 ratios")).items():
        np.testing.assert_allclose(detections, own["5 ratios"][name], atol=1e-3)
    golden = {"resnet18": features["resnet18"], **outputs}
    actual = {"resnet18": script["features"]("resnet18")}
    actual |= {f"torchvision_{version}": script["outputs"](version) for version in ("v1", "v2")}
    assert golden.keys() == actual.keys()
    for name, arrays in actual.items():
        assert golden[name].keys() == arrays.keys()
        for key, numbers in arrays.items():
            expected = golden[name][key]
            np.testing.assert_allclose(numbers["rms"], expected["rms"], rtol=1e-8)
            # The values are in float64, rounded to seven digits.
            np.testing.assert_allclose(numbers["values"], expected["values"], rtol=1e-6, atol=1e-6)
