"""The judge of scripts/compare_torchvision.py, without torchvision."""

import pathlib

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "compare_torchvision.py"


@pytest.fixture(scope="module")
def script(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def found(script):
    rng = np.random.default_rng(0)
    corner, scores = rng.uniform(0, 500, (40, 2)), np.sort(rng.uniform(0.1, 0.9, 40))[::-1]
    boxes = np.concatenate([corner, corner + rng.uniform(5, 90, (40, 2))], axis=1)
    return script.DetectionArrays(boxes, scores, rng.integers(0, 5, 40))


def test_the_same_in_another_order_is_the_same(script, found):
    order = np.random.default_rng(1).permutation(40)
    assert script.compare(found, script.DetectionArrays(*(x[order] for x in found))) == (40, 0, 0, 0)


def test_every_kind_of_difference_is_seen(script, found):
    boxes, scores, classes = (x.copy() for x in found)
    boxes[3, 2] += 0.25
    scores[5] -= 1e-3
    difference = script.compare(found, script.DetectionArrays(boxes, scores, classes))
    np.testing.assert_allclose(difference, (40, 0.25, 1e-3, 0), rtol=1e-6)
    classes[7] += 1  # another class, another place, another score: one of each list is alone
    boxes[9] += 2
    scores[11] += 0.02
    assert script.compare(found, script.DetectionArrays(boxes, scores, classes)).unmatched == 6
    none = script.DetectionArrays(boxes[:0], scores[:0], classes[:0])
    assert script.compare(found, none).unmatched == script.compare(none, found).unmatched == 40
    assert script.compare(none, none) == (0, 0, 0, 0)


def test_one_of_ours_stands_for_one_of_theirs(script, found):
    twice = script.DetectionArrays(*(np.repeat(x, 2, axis=0) for x in found))
    assert script.compare(twice, found) == (80, 0, 0, 40)


def test_seeded_weights_are_each_names_own(script):
    one = script.seeded("head.conv.weight", (8, 4, 3, 3), seed=0)
    assert one.dtype == np.float32
    assert np.array_equal(one, script.seeded("head.conv.weight", (8, 4, 3, 3), seed=0))
    for other in (("head.conv2.weight", 0), ("head.conv.weight", 1)):
        assert not np.array_equal(one, script.seeded(other[0], (8, 4, 3, 3), seed=other[1]))
    assert (script.seeded("bn.running_var", (64,), seed=0) > 0).all()
