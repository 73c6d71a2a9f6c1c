"""Results are computed ahead, by threads or on the device, and yielded in order."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet_jax.utils import threads
from retinanet_jax.utils.threads import (
    DaemonThreads,
    grouped,
    in_background,
    in_order,
    map_ahead,
    newest,
    one_in_flight,
)


@given(st.lists(st.integers(0, 3)), st.integers(1, 5), st.integers(0, 8))
def test_a_group_has_one_key_and_waits_no_longer_than_its_patience(keys, size, patience):
    taken = []

    def items():
        for index, key in enumerate(keys):
            taken.append(index)
            yield key

    groups = []
    for group in grouped(items(), lambda key: key, size=size, patience=patience):
        indices = [index for index, _ in group]
        assert indices == sorted(indices)
        assert {key for _, key in group} == {keys[index] for index in indices}
        assert len({keys[index] for index in indices}) == 1
        is_full, is_last = len(group) == size, taken[-1] == len(keys) - 1
        assert is_full or is_last or taken[-1] - indices[0] >= patience
        groups.append(group)
    assert sorted(index for group in groups for index, _ in group) == list(range(len(keys)))
    assert list(in_order(groups)) == keys


def test_map_ahead_keeps_the_order_of_results_and_errors():
    assert list(map_ahead(lambda x: 10 / x, range(1, 50), num_ahead=3)) == [
        10 / x for x in range(1, 50)
    ]
    values = map_ahead(lambda x: 10 / x, (1, 0, 2), num_ahead=3)
    assert next(values) == 10
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_closing_threads_drops_what_has_not_begun_and_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(threads, "CLOSE_SECONDS", 0.1)
    before, released, called = threading.active_count(), threading.Event(), []
    workers = DaemonThreads(2)
    assert workers.submit(max, 3, 5).result() == 5
    stuck = [workers.submit(released.wait) for _ in range(2)]
    workers.submit(called.append, 1)
    workers.close()
    assert not any(future.done() for future in stuck)
    released.set()
    while threading.active_count() > before:
        time.sleep(0.01)
    assert called == []


def test_threads_can_be_closed_by_one_of_them():
    # As the garbage collector does that runs there, with a generator that nobody has closed.
    before, called = threading.active_count(), []
    workers = DaemonThreads(2)
    workers.submit(workers.close, lambda: called.append(1)).result()
    while threading.active_count() > before:
        time.sleep(0.01)
    assert called == [1]


def test_background_items_are_taken_one_ahead_and_closed_in_their_thread():
    events = []

    def items():
        try:
            for i in range(9):
                events.append(i)
                yield i
        finally:
            events.append(threading.current_thread() is threading.main_thread())

    background = in_background(items(), lambda: None)
    assert events == []
    assert next(background) == 0
    while events != [0, 1]:
        time.sleep(0.01)
    background.close()
    assert events == [0, 1, False]
    assert list(in_background((x for x in (1, 2)), lambda: None)) == [1, 2]


def test_an_error_of_a_background_item_is_raised_in_the_caller():
    results = in_background((1 / x for x in (1, 0)), lambda: None)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_wait_for_a_background_item_can_be_ended():
    def check():
        raise InterruptedError

    released = threading.Event()
    with pytest.raises(InterruptedError):
        next(in_background((released.wait(1) for _ in range(1)), check))
    released.set()


def test_only_the_newest_of_items_that_come_too_fast_remain():
    ended = threading.Event()

    def items():
        try:
            yield from range(100)
        finally:
            ended.set()

    results = newest(items(), 3, lambda: None)
    yielded = [next(results)]
    assert ended.wait(5)
    yielded += results
    assert yielded[-3:] == [97, 98, 99]
    assert len(yielded) <= 4
    assert yielded == sorted(set(yielded))


def test_of_items_that_come_slowly_none_is_dropped():
    is_taken = threading.Semaphore(1)
    results = newest((is_taken.acquire() and i for i in range(20)), 1, lambda: None)
    yielded = []
    for item in results:
        yielded.append(item)
        is_taken.release()
    assert yielded == list(range(20))


def test_an_error_comes_after_the_newest_items():
    results = newest((1 / x for x in (1, 2, 0)), 5, lambda: None)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_wait_for_the_newest_item_can_be_ended():
    def check():
        raise InterruptedError

    released = threading.Event()
    with pytest.raises(InterruptedError):
        next(newest((released.wait(1) for _ in range(1)), 1, check))
    released.set()


def test_an_item_in_flight_is_yielded_after_the_next_has_started():
    started = []
    results = one_in_flight(started.append(i) or i for i in range(3))
    assert started == []
    assert [(result, tuple(started)) for result in results] == [
        (0, (0, 1)),
        (1, (0, 1, 2)),
        (2, (0, 1, 2)),
    ]
    assert list(one_in_flight([])) == []
