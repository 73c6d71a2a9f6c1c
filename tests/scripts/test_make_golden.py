"""The goldens say where they come from, and their script writes them again."""

import json
import pathlib
import runpy

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("torchvision_*.json")), ids=lambda p: p.stem)
def test_the_goldens_have_a_provenance(path):
    content = json.loads(path.read_text())
    assert content["source"].startswith("torchvision==0.28.0 with torch==2.13.0, ")
    assert "tests/weights/conftest.py: " in content["weights"]
    assert {"input", "values"} < content.keys()
    assert path.name in (ROOT / "scripts" / "make_golden.py").read_text()


@pytest.mark.slow
def test_the_script_writes_them_again_where_torchvision_is_installed():
    pytest.importorskip("torchvision")
    script = runpy.run_path(str(ROOT / "scripts" / "make_golden.py"))
    held = json.loads((GOLDEN / "torchvision_features.json").read_text())["features"]
    assert list(held) == list(script["ARCHITECTURES"])
    again = {"resnet18": script["features"]("resnet18")}
    held = {"resnet18": held["resnet18"]}
    outputs = json.loads((GOLDEN / "torchvision_detectors.json").read_text())["outputs"]
    held |= outputs
    again |= {f"torchvision_{version}": script["outputs"](version) for version in ("v1", "v2")}
    assert held.keys() == again.keys()
    for name, arrays in again.items():
        assert held[name].keys() == arrays.keys()
        for key, numbers in arrays.items():
            np.testing.assert_allclose(numbers["rms"], held[name][key]["rms"], rtol=1e-8)
            np.testing.assert_allclose(
                numbers["values"], held[name][key]["values"], rtol=1e-6, atol=1e-6
            )
