"""Progress is printed every few seconds, with readable units."""

import types

import pytest

from retinanet_jax.utils import progress
from retinanet_jax.utils.progress import format_count, format_duration, make_progress, one_line


@pytest.fixture
def set_clock(monkeypatch):
    """Return a function that sets the results of successive calls of `time.monotonic`."""

    def set_clock(*seconds):
        clock = types.SimpleNamespace(monotonic=iter(seconds).__next__)
        monkeypatch.setattr(progress, "time", clock)

    return set_clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 min 00 s"), (61, "1 min 01 s"), (3599.9, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations_have_two_units(seconds, text):
    assert format_duration(seconds) == text


def test_progress_is_printed_every_few_seconds_and_at_the_end(set_clock, capsys):
    set_clock(100.0, 101.0, 106.0, 107.0, 108.0)
    report = make_progress("train", 4)
    for done in (1, 2, 3, 4):
        report(done)
    assert capsys.readouterr().out.splitlines() == [
        "train: 2/4 images  0.3 images/s  0 min 06 s left",
        "train: 4/4 images  0.5 images/s  0 min 00 s left",
    ]


def test_progress_without_a_total_predicts_no_end(set_clock, capsys):
    set_clock(0.0, 10.0)
    make_progress("weights.pth", unit="MB")(12.4)
    assert capsys.readouterr().out == "weights.pth: 12 MB  1.2 MB/s\n"


def test_nothing_done_yet_is_no_error(set_clock, capsys):
    set_clock(0.0, 10.0)
    make_progress("train", 4)(0)
    assert capsys.readouterr().out == "train: 0/4 images  0.0 images/s  unknown time left\n"


def test_only_a_count_of_one_has_a_singular_noun():
    assert [format_count(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_one_line_has_no_line_breaks():
    assert one_line(ValueError("a\n  b\n\tc ")) == "a b c"
