"""The comparison of scripts/compare_torchvision.py, without torchvision."""

import pathlib

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "compare_torchvision.py"


@pytest.fixture(scope="module")
def script(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def detections(script):
    rng = np.random.default_rng(0)
    corner, scores = rng.uniform(0, 500, (40, 2)), np.sort(rng.uniform(0.1, 0.9, 40))[::-1]
    boxes = np.concatenate([corner, corner + rng.uniform(5, 90, (40, 2))], axis=1)
    return script.DetectionArrays(boxes, scores, rng.integers(0, 5, 40))


def test_another_order_is_no_difference(script, detections):
    order = np.random.default_rng(1).permutation(40)
    reordered = script.DetectionArrays(*(x[order] for x in detections))
    assert script.compare(detections, reordered) == (1, 40, 40, 0, 0, 0)


def test_differences_of_boxes_scores_and_counterparts_are_measured(script, detections):
    boxes, scores, classes = (x.copy() for x in detections)
    boxes[3, 2] += 0.25
    scores[5] -= 1e-3
    difference = script.compare(detections, script.DetectionArrays(boxes, scores, classes))
    np.testing.assert_allclose(difference, (1, 40, 40, 0.25, 1e-3, 0), rtol=1e-6)
    # With another class, place or score, one detection of each list has no counterpart.
    classes[7] += 1
    boxes[9] += 2
    scores[11] += 0.02
    changed = script.DetectionArrays(boxes, scores, classes)
    assert script.compare(detections, changed).num_unmatched == 6
    empty = script.DetectionArrays(boxes[:0], scores[:0], classes[:0])
    assert script.compare(detections, empty).num_unmatched == 40
    assert script.compare(empty, detections).num_unmatched == 40
    assert script.compare(empty, empty) == (1, 0, 0, 0, 0, 0)


def test_a_detection_is_the_counterpart_of_only_one(script, detections):
    twice = script.DetectionArrays(*(np.repeat(x, 2, axis=0) for x in detections))
    assert script.compare(twice, detections) == (1, 80, 40, 0, 0, 40)


def test_seeded_weights_follow_from_name_and_seed(script):
    class Model:
        def state_dict(self):
            shapes = {"head.conv.weight": (8, 4, 3, 3), "head.conv2.weight": (8, 4, 3, 3)}
            return {
                name: np.zeros(shape)
                for name, shape in (shapes | {"bn.running_var": (64,)}).items()
            }

    arrays, again, other = (script.seeded_state_dict(Model(), seed) for seed in (0, 0, 1))
    for name, value in arrays.items():
        assert value.dtype == np.float32
        assert np.array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
    assert not np.array_equal(arrays["head.conv.weight"], arrays["head.conv2.weight"])
    assert (arrays["bn.running_var"] > 0).all()


def test_an_existing_file_is_not_replaced(script, monkeypatch, tmp_path, capsys):
    (tmp_path / "a.json").write_text("mine")
    monkeypatch.setattr("sys.argv", ["compare", "a.jpg", f"--json={tmp_path}/a.json"])
    with pytest.raises(SystemExit):
        script.main()
    assert f"--json={tmp_path}/a.json exists; give another file." in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == "mine"
