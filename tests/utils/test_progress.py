"""Progress is printed every few seconds, with readable units."""

import pytest

from retinanet_jax.utils.progress import (
    CLOCK,
    format_count,
    format_duration,
    make_progress,
    one_line,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 min 00 s"), (61, "1 min 01 s"), (3599.9, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations_have_two_units(seconds, text):
    assert format_duration(seconds) == text


def lines_of(clock, capsys, print_progress, calls):
    """Return the lines that are printed by calls at (seconds from now, units done)."""
    start = clock.seconds
    for seconds, done in calls:
        clock.seconds = start + seconds
        print_progress(done)
    return capsys.readouterr().out.splitlines()


def test_progress_is_printed_every_few_seconds_and_at_the_end(clock, capsys):
    calls = [(1, 1), (4, 2), (6, 3), (9, 6), (12, 8), (13, 9)]
    assert lines_of(clock, capsys, make_progress("train", 9), calls) == [
        "train: 3/9 images  0.4 images/s  0 min 15 s left",
        "train: 8/9 images  0.6 images/s  0 min 01 s left",
        "train: 9/9 images  0.7 images/s",
    ]


def test_the_time_before_the_first_result_does_not_count(clock, capsys):
    """It is that of starting threads and of compiling: 40 seconds, and then one per image."""
    calls = [(40, 1), (43, 4), (45, 6), (50, 11)]
    assert lines_of(clock, capsys, make_progress("predicting", 101), calls) == [
        "predicting: 1/101 images",
        "predicting: 6/101 images  1.0 images/s  1 min 35 s left",
        "predicting: 11/101 images  1.0 images/s  1 min 30 s left",
    ]


def test_results_that_arrive_together_have_no_speed(clock, capsys):
    calls = [(8, done) for done in range(1, 9)]
    assert lines_of(clock, capsys, make_progress("predicting", 8), calls) == [
        "predicting: 1/8 images",
        "predicting: 8/8 images",
    ]
    calls = [(2, 1), (2, 2), (8, 3), (8, 4), (14, 5)]  # two at a time, every 6 seconds
    assert lines_of(clock, capsys, make_progress("predicting", 101), calls) == [
        "predicting: 3/101 images  0.3 images/s  4 min 54 s left",
        "predicting: 5/101 images  0.3 images/s  4 min 48 s left",
    ]


def test_the_time_in_which_the_clock_is_stopped_does_not_count(clock, capsys):
    print_progress = make_progress("evaluating", 100)
    assert lines_of(clock, capsys, print_progress, [(0, 10)]) == []
    with CLOCK.stopped():
        clock.seconds += 30  # compiling another image shape
        with CLOCK.stopped():
            clock.seconds += 30
    assert lines_of(clock, capsys, print_progress, [(5, 20)]) == [
        "evaluating: 20/100 images  2.0 images/s  0 min 40 s left"
    ]


def test_progress_without_a_total_predicts_no_end(clock, capsys):
    print_progress = make_progress("weights.pth", unit="MB")
    assert lines_of(clock, capsys, print_progress, [(0, 0.4), (10, 12.4)]) == [
        "weights.pth: 12 MB  1.2 MB/s"
    ]


def test_nothing_done_yet_is_no_error(clock, capsys):
    calls = [(0, 0), (10, 0)]
    assert lines_of(clock, capsys, make_progress("train", 4), calls) == ["train: 0/4 images"]


def test_only_a_count_of_one_has_a_singular_noun():
    assert [format_count(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_one_line_has_no_line_breaks():
    assert one_line(ValueError("a\n  b\n\tc ")) == "a b c"
