"""Each object in an image of several windows is detected exactly once."""

import numpy as np
import pytest
from planted import assert_each_once, plant, visible_parts

from retinanet_jax.inference.merging import ScoredBoxes, class_wise_nms
from retinanet_jax.inference.tiles import make_grid
from retinanet_jax.inference.window_merging import add_large, larger_than_windows, merge_by_owner

# Two windows, x = 0..100 and 80..180. Their cores meet at 90.
PAIR = make_grid(100, 180, tile=100, overlap=0.2)


def scored(boxes, scores=None, classes=None) -> ScoredBoxes:
    count = len(boxes)
    return ScoredBoxes(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores or [0.5] * count, np.float32),
        np.array(classes or [0] * count, int),
    )


def merged(boxes, window, scores=None, classes=None, *, grid=PAIR, class_agnostic=False):
    detected = scored(boxes, scores, classes)
    window = np.array(window, int)
    objects, incomplete = merge_by_owner(detected, window, grid, class_agnostic=class_agnostic)
    scores = [round(score, 3) for score in objects.scores.tolist()]
    return objects.boxes.tolist(), scores, incomplete.tolist()


def test_objects_of_any_size_appear_once_at_any_tile_and_overlap():
    """Also objects that are larger than the overlap, or than a window: of their parts."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width, tile = rng.integers([150, 150, 50], [450, 450, 300]).tolist()
        largest = int(rng.integers(3, 140))
        objects = plant(rng, height, width, largest=largest, pitch=largest + 3)
        grid = make_grid(height, width, tile=tile, overlap=rng.choice([0.01, 0.1, 0.2, 0.5]))
        detected, window = visible_parts(objects, grid, rng=rng)
        detected, _ = merge_by_owner(detected, window, grid, class_agnostic=False)
        assert_each_once(detected.boxes, objects)


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_objects_appear_once_although_windows_see_them_differently(noise):
    """Class-wise NMS would also return parts of them."""
    rng = np.random.default_rng(1)
    parts = 0
    for _ in range(6):
        height, width, tile = rng.integers([300, 300, 100], [700, 700, 300]).tolist()
        objects = plant(rng, height, width, largest=40, pitch=46)
        grid = make_grid(height, width, tile=tile, overlap=0.2)
        detected, window = visible_parts(objects, grid, rng=rng, noise=noise, min_visible=0.2)
        suppressed = class_wise_nms(detected, iou_threshold=0.5, class_agnostic=False)
        parts += len(suppressed.boxes) - len(objects)
        detected, _ = merge_by_owner(detected, window, grid, class_agnostic=False)
        assert_each_once(detected.boxes, objects, tolerance=12)
    assert parts > 0


def test_a_window_owns_what_is_nearer_to_its_middle():
    boxes = [[82, 0, 92, 9], [82, 0, 92, 9], [88, 20, 98, 29], [88, 20, 98, 29]]
    assert merged(boxes, [0, 1, 0, 1], [0.3, 0.9, 0.8, 0.4]) == (
        [[82, 0, 92, 9], [88, 20, 98, 29]],
        [0.3, 0.4],
        [False, False],
    )


def test_what_only_the_other_window_sees_is_not_returned():
    assert merged([[82, 0, 92, 9]], [1]) == ([], [], [])


def test_an_object_that_both_windows_own_appears_once():
    """The better one remains."""
    assert merged([[84, 0, 94, 9], [87, 0, 97, 9]], [0, 1], [0.6, 0.7]) == (
        [[87, 0, 97, 9]],
        [0.7],
        [False],
    )


def test_an_object_that_each_window_leaves_to_the_other_appears_once():
    assert merged([[87, 0, 97, 9], [84, 0, 94, 9]], [0, 1], [0.6, 0.7]) == (
        [[84, 0, 94, 9]],
        [0.7],
        [False],
    )


def test_four_windows_that_all_leave_an_object_to_another_return_it_once():
    grid = make_grid(180, 180, tile=100, overlap=0.2)  # cores meet at (90, 90)
    boxes = [[83, 81, 99, 97], [81, 83, 97, 99], [81, 82, 97, 97], [81, 81, 97, 97]]
    assert grid.owners(np.array(boxes)).tolist() == [1, 2, 0, 0]
    boxes, scores, _ = merged(boxes, [0, 1, 2, 3], [0.6, 0.7, 0.5, 0.4], grid=grid)
    assert (len(boxes), scores) == (1, [0.7])


def test_parts_of_an_object_that_is_larger_than_the_overlap_are_joined():
    boxes, scores, incomplete = merged([[60, 0, 100, 50], [80, 1, 150, 50]], [0, 1], [0.9, 0.6])
    assert (boxes, scores, incomplete) == ([[60, 0, 150, 50]], [0.9], [False])
    # If only one window detects its part, that is what remains.
    assert merged([[60, 0, 100, 50]], [0]) == ([[60, 0, 100, 50]], [0.5], [True])


def test_a_part_is_not_returned_next_to_the_whole():
    """Whatever the score of the part."""
    assert merged([[40, 0, 99, 30], [80, 0, 105, 30]], [0, 1], [0.5, 0.9])[0] == [[40, 0, 105, 30]]
    assert merged([[60, 0, 95, 30], [80, 0, 95, 30]], [0, 1], [0.5, 0.9])[0] == [[60, 0, 95, 30]]


def test_detections_of_one_window_are_not_compared():
    """Their overlap has passed the detector's own NMS."""
    boxes = [[10, 0, 50, 30], [12, 0, 50, 30], [84, 0, 94, 9], [84, 0, 94, 9.5], [84, 0, 94, 9]]
    assert len(merged(boxes, [0, 0, 0, 0, 1])[0]) == 4


def test_objects_of_different_classes_are_different_unless_classes_do_not_count():
    boxes, window = [[84, 0, 94, 9], [87, 0, 97, 9]], [0, 1]
    assert len(merged(boxes, window, classes=[0, 1])[0]) == 2
    assert len(merged(boxes, window, classes=[0, 1], class_agnostic=True)[0]) == 1


def test_windows_without_detections_return_none():
    assert merged([], []) == ([], [], [])
    nothing = scored([])
    assert len(class_wise_nms(nothing, iou_threshold=0.5, class_agnostic=False).scores) == 0
    assert len(larger_than_windows(nothing, PAIR).scores) == 0
    both = add_large(nothing, np.zeros(0, bool), nothing, class_agnostic=False)
    assert len(both.scores) == 0


def test_in_the_whole_image_only_objects_count_that_no_window_holds():
    whole = scored([[0, 0, 100, 100], [80, 0, 180, 50], [79, 0, 101, 5], [0, 0, 180, 100]])
    assert larger_than_windows(whole, PAIR).boxes.tolist() == [[79, 0, 101, 5], [0, 0, 180, 100]]


def test_a_large_object_replaces_its_parts_but_not_what_the_windows_show_completely():
    objects = scored([[20, 0, 100, 90], [60, 10, 90, 20], [100, 50, 140, 60]])
    incomplete = np.array([True, False, False])
    large = scored([[18, 0, 160, 90]], [0.7])
    both = add_large(objects, incomplete, large, class_agnostic=False)
    assert both.boxes.tolist() == [[60, 10, 90, 20], [100, 50, 140, 60], [18, 0, 160, 90]]
    # Joined from its parts, it has a more exact box than in the whole image.
    joined = scored([[20, 0, 158, 90]])
    both = add_large(joined, np.array([False]), large, class_agnostic=False)
    assert both.boxes.tolist() == [[20, 0, 158, 90]]
    # Also if it ends at a border by chance.
    both = add_large(joined, np.array([True]), large, class_agnostic=False)
    assert both.boxes.tolist() == [[20, 0, 158, 90]]
    # Of another class, it is another object.
    other = scored([[20, 0, 100, 90]], classes=[1])
    assert len(add_large(other, np.array([True]), large, class_agnostic=False).scores) == 2
    assert len(add_large(other, np.array([True]), large, class_agnostic=True).scores) == 1


def test_class_wise_nms_returns_the_best_of_overlapping_boxes():
    detected = scored(
        [[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10], [0, 0, 10, 10]],
        [0.5, 0.9, 0.7, 0.6],
        [0, 0, 0, 1],
    )
    selected = class_wise_nms(detected, iou_threshold=0.5, class_agnostic=False)
    np.testing.assert_allclose(selected.scores, [0.9, 0.7, 0.6])
    selected = class_wise_nms(detected, iou_threshold=0.5, class_agnostic=True)
    np.testing.assert_allclose(selected.scores, [0.9, 0.7])


def test_a_large_detection_does_not_replace_parts_of_a_higher_score():
    """In the reduced image, small objects may look like a large one, with a low score."""
    objects = scored([[20, 0, 100, 90], [110, 10, 140, 60]], [0.8, 0.3])
    large = scored([[18, 0, 160, 90]], [0.4])
    both = add_large(objects, np.array([True, True]), large, class_agnostic=False)
    assert both.boxes.tolist() == [[20, 0, 100, 90], [18, 0, 160, 90]]
